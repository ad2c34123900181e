"""FlexiBERT encoders and their six token mixers.

The six token mixers of the FlexiBERT search space, with their parameter counts.

The space is Tuli et al.'s (arXiv 2205.11656); the form of every mixer, down to what the
Fourier and cosine mixers leave out, follows the PyTorch models with which Serianni and Kalita
(arXiv 2305.18915) measured their benchmark.  ConvBERT's span-based mixing is Jiang et al.'s
(arXiv 2008.02496).

FlexiBERT encoders: the 500 architectures with GLUE scores of Serianni and Kalita.

The search space is Tuli et al.'s (arXiv 2205.11656), the benchmark is arXiv 2305.18915
(github aaronserianni/training-free-nas).  The form is ELECTRA's, with LayerNorm after each
residual connection; every block has a mixer, a head count and an MLP of its own.  The published
measuring code built every model 256 wide with MLPs of 1,024; these are built as they were
trained.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lmscout.errors import LmscoutError, brief
from lmscout.models.layers import Conv1d, Embedding, Linear, draw_weights, merge_heads, split_heads
from lmscout.models.spec import (
    ArchitectureSpec,
    LanguageModel,
    ProbePoints,
    require_depth,
    require_fields,
    require_positive,
)

# Published as (operation type, parameter): (SA, SDP), (SA, WMA), (LT, DFT), (LT, DCT),
# (DSC, 5), (DSC, 9).
MIXERS = ("SDP", "WMA", "DFT", "DCT", "DSC5", "DSC9")

# A convolving mixer keeps half of the heads for attention; the other half convolve.
CONVOLUTION_HEAD_RATIO = 2
KERNELS = (("DSC5", 5), ("DSC9", 9))


class Mixer(nn.Module, ABC):
    """Mixes tokens: hidden state ``[B, T, width]`` to ``[B, T, width]``.

    Attributes:
        residual: whether the block adds an output projection, a residual connection and a
            LayerNorm after the mixer.
    """

    residual: bool = True

    @abstractmethod
    def head(self) -> tuple[nn.Linear, ...]:
        """The projections that make queries, keys and values, or what is transformed."""

    def softmax_points(self) -> tuple[nn.Module, ...]:
        """Modules that put out attention probabilities ``[B, heads, T, T]``."""
        return ()

    def spectrum_points(self) -> tuple[nn.Module, ...]:
        """Modules that put out a transform ``[B, heads, T, size]`` instead of probabilities."""
        return ()


class Attention(Mixer):
    """Multi-head attention over all positions; ``inner`` is the width of all heads together."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, inner)
        self.key = Linear(width, inner)
        self.value = Linear(width, inner)
        self.softmax = nn.Softmax(dim=-1)

    def head(self) -> tuple[nn.Linear, ...]:
        """Query, key and value."""
        return self.query, self.key, self.value

    def softmax_points(self) -> tuple[nn.Module, ...]:
        """The one attention softmax."""
        return (self.softmax,)

    def attend(self, query: Tensor, hidden: Tensor) -> Tensor:
        """Queries ``[B, T, inner]`` over the hidden state: context ``[B, heads, T, size]``."""
        queries = split_heads(query, self.heads)
        keys = split_heads(self.key(hidden), self.heads)
        values = split_heads(self.value(hidden), self.heads)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        context: Tensor = self.softmax(scores) @ values
        return context


class ScaledDotProduct(Attention):
    """SDP: softmax(q·k / √size) (Vaswani et al., arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, heads)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        return merge_heads(self.attend(self.query(hidden), hidden))


class WeightedMultiplicative(Attention):
    """WMA: softmax(qW·k / √size), with one more matrix W between query and key."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, heads)
        self.weight = Linear(width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        return merge_heads(self.attend(self.weight(self.query(hidden)), hidden))


class SpanConvolution(Attention):
    """DSC: half of the heads attend, the others convolve with a kernel made for each position.

    The kernel of a position is a softmax over ``kernel`` numbers, computed from the product of
    the query with a separable convolution of the hidden state around it.
    """

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        attention_heads = heads // CONVOLUTION_HEAD_RATIO
        inner = attention_heads * (width // heads)
        super().__init__(width, inner, attention_heads)
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


class Transform(Mixer):
    """A fixed transform over positions and over the features of each head.

    Upstream's measuring code follows these mixers with no output projection, no residual
    connection and no LayerNorm; its recorded parameter counts confirm it.
    """

    residual = False

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mixing = Linear(width, width)
        self.spectrum = nn.Identity()

    @abstractmethod
    def transform(self, features: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape."""

    def head(self) -> tuple[nn.Linear, ...]:
        """The one projection before the transform."""
        return (self.mixing,)

    def spectrum_points(self) -> tuple[nn.Module, ...]:
        """The transformed heads."""
        return (self.spectrum,)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix ``[B, T, width]``."""
        features = split_heads(self.mixing(hidden), self.heads)
        return merge_heads(self.spectrum(self.transform(features)))


class Fourier(Transform):
    """DFT: the real part of the two-dimensional Fourier transform (arXiv 2105.03824)."""

    def transform(self, features: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape."""
        real: Tensor = torch.fft.fft2(features).real
        return real


class Cosine(Transform):
    """DCT: the two-dimensional cosine transform of type II, not normalised."""

    def transform(self, features: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape."""
        length, size = features.shape[-2:]
        return _cosines(length, features) @ features @ _cosines(size, features).T


def _cosines(size: int, like: Tensor) -> Tensor:
    """The matrix ``[size, size]`` of 2·cos(π·k·(2n + 1) / 2N), rows k and columns n."""
    index = torch.arange(size, dtype=torch.float64, device=like.device)
    angles = index[:, None] * (2 * index + 1) * (math.pi / (2 * size))
    return (2 * angles.cos()).to(like.dtype)


def build_mixer(mixer: str, width: int, heads: int) -> Mixer:
    """The mixer of that name (one of `MIXERS`), its tensors not yet drawn."""
    if mixer == "SDP":
        return ScaledDotProduct(width, heads)
    if mixer == "WMA":
        return WeightedMultiplicative(width, heads)
    if mixer == "DFT":
        return Fourier(width, heads)
    if mixer == "DCT":
        return Cosine(width, heads)
    return SpanConvolution(width, heads, dict(KERNELS)[mixer])


def mixer_parameters(mixer: str, width: int, heads: int) -> int:
    """Parameters of the mixer, with the output projection and LayerNorm that follow it."""
    if mixer in ("DFT", "DCT"):
        return _linear(width, width)
    after = _linear(width, width) + 2 * width
    if mixer in ("SDP", "WMA"):
        between = width * width if mixer == "WMA" else 0
        return 3 * _linear(width, width) + between + after
    kernel = dict(KERNELS)[mixer]
    attention_heads = heads // CONVOLUTION_HEAD_RATIO
    inner = attention_heads * (width // heads)
    separable = width * kernel + width * inner + inner
    to_kernel = _linear(inner, attention_heads * kernel)
    return 4 * _linear(width, inner) + separable + to_kernel + after


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


WEIGHT_STD = 0.02
NORM_EPSILON = 1e-12
TOKEN_TYPES = 2
PADDING_TOKEN = 0
SIGN_SEED = 20_230_518


@dataclass(frozen=True, kw_only=True)
class FlexibertBlock:
    """One encoder layer.

    Attributes:
        mixer: how tokens are mixed: one of `flexibert_mixers.MIXERS`.
        heads: how many heads share the width; even for the convolving mixers.
        feed_forward: width of the MLP's hidden layers.
        stack: how many hidden layers, each with its activation, the MLP has.
    """

    mixer: str
    heads: int
    feed_forward: int
    stack: int


@dataclass(frozen=True, kw_only=True)
class FlexibertSpec(ArchitectureSpec):
    """A FlexiBERT encoder.

    Attributes:
        blocks: the layers, first to last.
        embedding_width: width of the embeddings, projected to `width` where they differ.
    """

    kind: ClassVar[str] = "flexibert"
    causal: ClassVar[bool] = False

    blocks: tuple[FlexibertBlock, ...]
    embedding_width: int = 128
    vocabulary: int = 30_522
    max_length: int = 512

    def __post_init__(self) -> None:
        require_positive(
            "FlexiBERT spec",
            width=self.width,
            embedding_width=self.embedding_width,
            vocabulary=self.vocabulary,
            max_length=self.max_length,
        )
        if not self.blocks:
            raise LmscoutError("FlexiBERT spec: blocks is empty; an encoder has at least one")
        require_depth("FlexiBERT spec", len(self.blocks))
        for index, block in enumerate(self.blocks):
            _check_block(f"FlexiBERT spec: blocks[{index}]", block, self.width)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def parameters(self) -> int:
        """Parameters of embeddings and blocks; ELECTRA's heads are no part of the model."""
        rows = self.vocabulary + self.max_length + TOKEN_TYPES
        embeddings = rows * self.embedding_width + 2 * self.embedding_width
        if self.embedding_width != self.width:
            embeddings += self.embedding_width * self.width + self.width
        return embeddings + self.body_parameters()

    def body_parameters(self) -> int:
        """Parameters of the blocks; the last LayerNorm belongs to the last block."""
        return sum(_block_parameters(block, self.width) for block in self.blocks)

    def build(self, seed: int) -> FlexibertEncoder:
        """The encoder in eval mode: weights normal (0, 0.02), biases 0, norms the identity."""
        self.require_memory()
        model = FlexibertEncoder(self)
        draw_weights(model, seed, WEIGHT_STD)
        return model.eval()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FlexibertSpec:
        """The spec from what `to_dict` gave, less ``kind``."""
        blocks = values.get("blocks", [])
        if not isinstance(blocks, list):
            raise LmscoutError(f"FlexiBERT spec: blocks must be a list, not {brief(blocks)}")
        parsed = tuple(
            FlexibertBlock(**require_fields(f"FlexiBERT spec: blocks[{index}]", FlexibertBlock, b))
            for index, b in enumerate(blocks)
        )
        return cls(**require_fields("FlexiBERT spec", cls, {**values, "blocks": parsed}))


def _check_block(owner: str, block: FlexibertBlock, width: int) -> None:
    if block.mixer not in MIXERS:
        names = ", ".join(MIXERS)
        raise LmscoutError(f"{owner}: mixer {brief(block.mixer)} is unknown; there are {names}")
    require_positive(owner, heads=block.heads, feed_forward=block.feed_forward, stack=block.stack)
    if width % block.heads:
        raise LmscoutError(f"{owner}: heads {block.heads} does not divide the width {width}")
    if block.mixer.startswith("DSC") and block.heads % 2:
        raise LmscoutError(
            f"{owner}: heads {block.heads} is odd; {block.mixer} splits them in two halves"
        )


def _block_parameters(block: FlexibertBlock, width: int) -> int:
    inner = block.feed_forward
    feed_forward = (width * inner + inner) + (block.stack - 1) * (inner * inner + inner)
    feed_forward += inner * width + width
    return mixer_parameters(block.mixer, width, block.heads) + feed_forward + 2 * width


def _linear_layers(module: nn.Module) -> tuple[nn.Linear, ...]:
    return tuple(layer for layer in module.modules() if isinstance(layer, nn.Linear))


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
        output: Tensor = self.output(hidden)
        return output


class EncoderBlock(nn.Module):
    """Mixer, then MLP, each followed by what its kind asks for."""

    def __init__(self, block: FlexibertBlock, width: int) -> None:
        super().__init__()
        self.mixer = build_mixer(block.mixer, width, block.heads)
        if self.mixer.residual:
            self.output = Linear(width, width)
            self.mixer_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.feed_forward = FeedForward(width, block.feed_forward, block.stack)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        mixed = self.mixer(hidden)
        if self.mixer.residual:
            mixed = self.mixer_norm(self.output(mixed) + hidden)
        normed: Tensor = self.norm(self.feed_forward(mixed) + mixed)
        return normed

    def probe_points(self) -> ProbePoints:
        """Where the inputs are read in this block."""
        return ProbePoints(
            block=self,
            act=tuple(self.feed_forward.activations),
            head=self.mixer.head(),
            softmax=self.mixer.softmax_points(),
            spectrum=self.mixer.spectrum_points(),
            linear=_linear_layers(self),
            mlp=_linear_layers(self.feed_forward),
        )


class FlexibertEncoder(LanguageModel):
    """The encoder that a `FlexibertSpec` builds.

    Attributes:
        sign_seed: the seed of the signs in `loss`; the same in every encoder.
    """

    sign_seed: int = SIGN_SEED

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

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to ``[B, T, width]``; every token is of type 0."""
        self.check_length(tokens)
        places = self.positions.weight[: tokens.shape[1]] + self.token_types.weight[0]
        hidden: Tensor = self.project(self.embedding_norm(self.tokens(tokens) + places))
        return hidden

    def encode(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` through all blocks."""
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def loss(self, tokens: Tensor) -> Tensor:
        """The last hidden state, summed with fixed random signs.

        The plain sum says nothing: the last layer is a LayerNorm whose weight is 1 and whose
        bias is 0, so every position sums to 0 whatever enters it, and every gradient is
        rounding noise.  Random signs, drawn from a fixed seed for the shape of the hidden
        state, keep the loss linear in the hidden state and give each of its entries a
        gradient of magnitude 1.

        Args:
            tokens: ``[B, T]``, int64.
        """
        hidden = self(tokens)
        generator = torch.Generator().manual_seed(self.sign_seed)
        signs = torch.randint(0, 2, hidden.shape, generator=generator) * 2 - 1
        total: Tensor = (hidden * signs.to(hidden)).sum()
        return total

    def probe_points(self) -> tuple[ProbePoints, ...]:
        """Where the inputs are read, one entry a block."""
        return tuple(cast(EncoderBlock, block).probe_points() for block in self.blocks)
