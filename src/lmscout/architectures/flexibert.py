"""FlexiBERT encoders: the 500 architectures with GLUE scores of Serianni and Kalita.

The search space is Tuli et al.'s (arXiv 2205.11656), the benchmark is arXiv 2305.18915
(github aaronserianni/training-free-nas).  The form is ELECTRA's, with LayerNorm after each
residual connection; every block has a mixer, a head count and an MLP of its own.  The published
measuring code built every model 256 wide with MLPs of 1,024; these are built as they were
trained.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lmscout.architectures.flexibert_mixers import MIXERS, build_mixer, mixer_parameters
from lmscout.architectures.layers import Embedding, Linear, draw_weights
from lmscout.architectures.spec import (
    ArchitectureSpec,
    LanguageModel,
    ProbePoints,
    require_depth,
    require_fields,
    require_positive,
)
from lmscout.errors import LmscoutError, brief

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

    def build(self, seed: int) -> "FlexibertEncoder":
        """The encoder in eval mode: weights normal (0, 0.02), biases 0, norms the identity."""
        self.require_memory()
        model = FlexibertEncoder(self)
        draw_weights(model, seed, WEIGHT_STD)
        return model.eval()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FlexibertSpec":
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
