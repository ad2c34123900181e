"""FlexiBERT encoders and their six token mixers.

The search space is Tuli et al.'s (arXiv 2205.11656), the benchmark Serianni and Kalita's (arXiv
2305.18915, github aaronserianni/training-free-nas): ELECTRA's form, with LayerNorm after each
residual connection, and a mixer, a head count and an MLP for each block.  The mixers are those of
their PyTorch models; Fourier and cosine mixers lack a projection, a residual and a norm.
The published measuring code built every model 256 wide with MLPs of 1,024; these are built as
they were trained.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from lmscout.errors import brief
from lmscout.models.layers import Conv1d, Embedding, Linear, draw_weights, merge_heads, split_heads
from lmscout.models.spec import (
    CHECKED,
    ArchitectureSpec,
    LanguageModel,
    ProbePoints,
    Size,
    Vocabulary,
    Width,
    above_zero,
    linear_layers,
    linear_parameters,
)

WEIGHT_STD = 0.02
NORM_EPSILON = 1e-12
TOKEN_TYPES = 2
PADDING_TOKEN = 0
SIGN_SEED = 20_230_518
CONVOLUTION_HEAD_RATIO = 2  # a convolving mixer keeps half of the heads for attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlexibertBlock:
    """One encoder layer."""

    mixer: str  # how tokens are mixed: one of `MIXERS`
    heads: Size  # how many heads share the width; even for the convolving mixers
    feed_forward: Size  # width of the MLP's hidden layers
    # how many hidden layers, each with its activation, the MLP has
    stack: Annotated[int, above_zero(int, 64)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FlexibertSpec(ArchitectureSpec):
    """A FlexiBERT encoder."""

    kind: ClassVar[str] = "flexibert"
    title: ClassVar[str] = "FlexiBERT spec"
    causal: ClassVar[bool] = False

    blocks: tuple[FlexibertBlock, ...]  # the layers, first to last
    embedding_width: Width = 128  # width of the embeddings, projected to `width` if they differ
    vocabulary: Vocabulary = 30_522
    max_length: Size = 512

    def __post_init__(self) -> None:
        if not self.blocks:
            raise self.error("blocks is empty; an encoder has at least one")
        for index, block in enumerate(self.blocks):
            where, heads = f"blocks[{index}]", block.heads
            if block.mixer not in MIXERS:
                raise self.error(
                    f"{where}: mixer {brief(block.mixer)} is unknown; there are {', '.join(MIXERS)}"
                )
            if self.width % heads:
                raise self.error(f"{where}: heads {heads} does not divide the width {self.width}")
            if block.mixer.startswith("DSC") and heads % CONVOLUTION_HEAD_RATIO:
                raise self.error(
                    f"{where}: heads {heads} is odd; {block.mixer} splits them in two halves"
                )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def parameters(self) -> int:
        """Parameters of embeddings and blocks; ELECTRA's heads are no part of the model."""
        rows = self.vocabulary + self.max_length + TOKEN_TYPES
        embeddings = (rows + 2) * self.embedding_width
        if self.embedding_width != self.width:
            embeddings += linear_parameters(self.embedding_width, self.width)
        return embeddings + self.body_parameters()

    def body_parameters(self) -> int:
        """Parameters of the blocks; the last LayerNorm belongs to the last block."""
        return sum(_parameters(block, self.width) for block in self.blocks)

    def multiply_adds(self) -> int:
        """Multiply-adds of a token in the blocks, in a sequence of `max_length`.

        A weight of a linear layer or a convolution costs one.  The rest is `products` of the
        mixer: attention to all positions, generated kernels, and transforms.
        """
        return sum(_multiply_adds(block, self.width, self.max_length) for block in self.blocks)

    def build(self, seed: int) -> FlexibertEncoder:
        """The encoder in eval mode: weights normal (0, 0.02), biases 0, norms the identity."""
        self.require_memory()
        model = FlexibertEncoder(self)
        draw_weights(model, seed, WEIGHT_STD)
        return model.eval()


class Attention(nn.Module):
    """SDP: softmax(q·k / √size) over all positions (Vaswani et al., arXiv 1706.03762).

    Args:
        width: of the hidden state.
        heads: that attend.
        inner: width of all heads together; the model's width if None.
    """

    def __init__(self, width: int, heads: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or width
        self.heads = heads
        self.query = Linear(width, inner)
        self.key = Linear(width, inner)
        self.value = Linear(width, inner)
        self.softmax = nn.Softmax(dim=-1)

    def attend(self, query: Tensor, hidden: Tensor) -> Tensor:
        """Queries ``[B, T, inner]`` over the hidden state: context ``[B, heads, T, size]``."""
        queries = split_heads(query, self.heads)
        keys = split_heads(self.key(hidden), self.heads)
        values = split_heads(self.value(hidden), self.heads)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        return self.softmax(scores) @ values

    def products(self, length: int) -> int:
        """Multiply-adds of a token beside those of weights: with keys, and with values."""
        return 2 * self.query.out_features * length

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        return merge_heads(self.attend(self.query(hidden), hidden))


class WeightedMultiplicative(Attention):
    """WMA: softmax(qW·k / √size), with one more matrix W between query and key."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.weight = Linear(width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        return merge_heads(self.attend(self.weight(self.query(hidden)), hidden))


class SpanConvolution(Attention):
    """DSC: half of the heads attend, the others convolve with a kernel made for each position.

    The kernel of a position is a softmax over ``kernel`` numbers, computed from the product of
    the query with a separable convolution of the hidden state around it (ConvBERT, Jiang et al.,
    arXiv 2008.02496).
    """

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        attention_heads = heads // CONVOLUTION_HEAD_RATIO
        inner = attention_heads * (width // heads)
        super().__init__(width, attention_heads, inner)
        self.kernel = kernel
        self.depthwise = Conv1d(width, width, kernel, groups=width, padding=kernel // 2, bias=False)
        self.pointwise = Conv1d(width, inner, 1, bias=False)
        self.span_bias = nn.Parameter(torch.empty(inner, 1))
        self.to_kernel = Linear(inner, attention_heads * kernel)
        self.convolved = Linear(width, inner)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        query = self.query(hidden)
        context = self.attend(query, hidden).transpose(1, 2)
        return torch.cat([context, self._convolve(query, hidden)], dim=2).flatten(2)

    def products(self, length: int) -> int:
        """As in `Attention`, and the kernel of each head with the neighbours."""
        return super().products(length) + self.kernel * self.query.out_features

    def _convolve(self, query: Tensor, hidden: Tensor) -> Tensor:
        """Queries ``[B, T, inner]`` and the hidden state to ``[B, T, heads, size]``."""
        span = self.pointwise(self.depthwise(hidden.transpose(1, 2))) + self.span_bias
        kernels = self.to_kernel(span.transpose(1, 2) * query)
        kernels = kernels.view(*kernels.shape[:2], self.heads, self.kernel).softmax(dim=-1)
        reach = self.kernel // 2
        padded = nn.functional.pad(self.convolved(hidden), (0, 0, reach, reach))
        neighbours = padded.unfold(1, self.kernel, 1)
        per_head = neighbours.reshape(*kernels.shape[:3], -1, self.kernel)
        convolved: Tensor = per_head @ kernels.unsqueeze(-1)
        return convolved.squeeze(-1)


class Transform(nn.Module, ABC):
    """A fixed transform over positions and over the features of each head.

    Upstream's measuring code follows these mixers with no output projection, no residual
    connection and no LayerNorm; its recorded parameter counts confirm it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mixing = Linear(width, width)
        self.spectrum = nn.Identity()

    @abstractmethod
    def transform(self, features: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape."""

    def products(self, length: int) -> int:
        """Multiply-adds of a token in the transform, over positions and over a head's features."""
        width = self.mixing.out_features
        return width * sum(map(self._of_a_number, (length, width // self.heads)))

    @staticmethod
    @abstractmethod
    def _of_a_number(size: int) -> int:
        """Multiply-adds of each number when so many are transformed."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        features = split_heads(self.mixing(hidden), self.heads)
        return merge_heads(self.spectrum(self.transform(features)))


class Fourier(Transform):
    """DFT: the real part of the two-dimensional Fourier transform (arXiv 2105.03824)."""

    def transform(self, features: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape."""
        return torch.fft.fft2(features).real

    @staticmethod
    def _of_a_number(size: int) -> int:
        """Of the fast transform of radix 2: a half complex product, which is four, in each step."""
        return 2 * math.ceil(math.log2(size))


class Cosine(Transform):
    """DCT: the two-dimensional cosine transform of type II, not normalised."""

    def transform(self, features: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape."""
        length, size = features.shape[-2:]
        return _cosines(length, features) @ features @ _cosines(size, features).T

    @staticmethod
    def _of_a_number(size: int) -> int:
        """Of the product with the matrix."""
        return size


def _cosines(size: int, like: Tensor) -> Tensor:
    """The matrix ``[size, size]`` of 2·cos(π·k·(2n + 1) / 2N), rows k and columns n."""
    index = torch.arange(size, dtype=torch.float64, device=like.device)
    angles = index[:, None] * (2 * index + 1) * (math.pi / (2 * size))
    return (2 * angles.cos()).to(like.dtype)


# Published as (operation type, parameter): (SA, SDP), (SA, WMA), (LT, DFT), (LT, DCT),
# (DSC, 5), (DSC, 9).
MIXERS: dict[str, Callable[[int, int], nn.Module]] = {
    "SDP": Attention,
    "WMA": WeightedMultiplicative,
    "DFT": Fourier,
    "DCT": Cosine,
    "DSC5": partial(SpanConvolution, kernel=5),
    "DSC9": partial(SpanConvolution, kernel=9),
}
"""Makers of mixers, from the width and the number of heads."""


class FeedForward(nn.Module):
    """A stack of linear layers, each with its own activation module, back to the width."""

    def __init__(self, width: int, inner: int, stack: int) -> None:
        super().__init__()
        sizes = [width, *[inner] * stack]
        self.layers = nn.ModuleList(Linear(before, after) for before, after in pairwise(sizes))
        self.activations = nn.ModuleList(nn.GELU() for _ in range(stack))
        self.output = Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        for layer, activation in zip(self.layers, self.activations, strict=True):
            hidden = activation(layer(hidden))
        return self.output(hidden)


class EncoderBlock(nn.Module):
    """Mixer, then MLP; attention is followed by a projection, a residual and a LayerNorm."""

    def __init__(self, block: FlexibertBlock, width: int) -> None:
        super().__init__()
        self.mixer = MIXERS[block.mixer](width, block.heads)
        if isinstance(self.mixer, Attention):
            self.output = Linear(width, width)
            self.mixer_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.feed_forward = FeedForward(width, block.feed_forward, block.stack)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        mixed = self.mixer(hidden)
        if isinstance(self.mixer, Attention):
            mixed = self.mixer_norm(self.output(mixed) + hidden)
        return self.norm(self.feed_forward(mixed) + mixed)

    def probe_points(self) -> ProbePoints:
        """Where the inputs are read in this block."""
        mixer: Any = self.mixer
        attends = isinstance(mixer, Attention)
        return ProbePoints(
            block=self,
            act=tuple(self.feed_forward.activations),
            head=(mixer.query, mixer.key, mixer.value) if attends else (mixer.mixing,),
            softmax=(mixer.softmax,) if attends else (),
            spectrum=() if attends else (mixer.spectrum,),
            linear=linear_layers(self),
            mlp=linear_layers(self.feed_forward),
        )


@cache
def _parameters(block: FlexibertBlock, width: int) -> int:
    with torch.device("meta"):
        return sum(one.numel() for one in EncoderBlock(block, width).parameters())


@cache
def _multiply_adds(block: FlexibertBlock, width: int, length: int) -> int:
    with torch.device("meta"):
        built = EncoderBlock(block, width)
    layers = (one for one in built.modules() if isinstance(one, nn.Linear | nn.Conv1d))
    mixer: Any = built.mixer
    return sum(layer.weight.numel() for layer in layers) + mixer.products(length)


class FlexibertEncoder(LanguageModel):
    """The encoder that a `FlexibertSpec` builds."""

    def __init__(self, spec: FlexibertSpec) -> None:
        super().__init__()
        embedding_width = spec.embedding_width
        self.max_length = spec.max_length
        self.tokens = Embedding(spec.vocabulary, embedding_width, padding_idx=PADDING_TOKEN)
        self.positions = Embedding(spec.max_length, embedding_width)
        self.token_types = Embedding(TOKEN_TYPES, embedding_width)
        self.embedding_norm = nn.LayerNorm(embedding_width, eps=NORM_EPSILON)
        self.project: nn.Module = nn.Identity()
        if embedding_width != spec.width:
            self.project = Linear(embedding_width, spec.width)
        self.blocks = nn.ModuleList(EncoderBlock(block, spec.width) for block in spec.blocks)
        self.norm = nn.Identity()  # the last block ends in a norm

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to ``[B, T, width]``; every token is of type 0."""
        self.check_length(tokens)
        places = self.positions.weight[: tokens.shape[1]] + self.token_types.weight[0]
        return self.project(self.embedding_norm(self.tokens(tokens) + places))

    def loss(self, tokens: Tensor) -> Tensor:
        """The last hidden state, summed with fixed random signs, for tokens ``[B, T]`` (int64).

        The plain sum is useless: the last layer is a LayerNorm of weight 1 and bias 0, so every
        position sums to 0 and every gradient is rounding noise.  Random signs, drawn from a fixed
        seed for the shape of the hidden state, keep the loss linear in the hidden state and give
        each of its entries a gradient of magnitude 1.
        """
        hidden = self(tokens)
        generator = torch.Generator().manual_seed(SIGN_SEED)
        signs = torch.randint(0, 2, hidden.shape, generator=generator) * 2 - 1
        return (hidden * signs.to(hidden)).sum()
