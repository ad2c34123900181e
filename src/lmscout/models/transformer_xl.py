"""LiteTransformerSearch's Transformer-XL: heads and MLP width of each block its own, or missing.

Transformer-XL is Dai et al.'s (arXiv 1901.02860); the search space and its trained models are
Javaheripi et al.'s (arXiv 2203.02094, github microsoft/archai, branch neurips-lts): relative
positions, MLPs with ReLU, norms after attention and MLP, an adaptive embedding and softmax.  A
pass is over one segment without a memory, as the first one of their training.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import StrictBool
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from lmscout.models.adaptive import AdaptiveModel, AdaptiveSpec, AdaptiveVocabulary
from lmscout.models.decoder import DecoderBlock, Mlp, SelfAttention
from lmscout.models.layers import Linear, Projection, draw_weights, split_heads
from lmscout.models.spec import CHECKED


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TransformerXlSpec(AdaptiveSpec):
    """A Transformer-XL with per-block heads and MLP widths.

    Attributes:
        pre_norm: whether norms come before attention and MLP; else after each sum.  There is
            no final norm.
    """

    kind: ClassVar[str] = "transformer_xl"
    title: ClassVar[str] = "Transformer-XL spec"
    attention_maps: ClassVar[int] = 5

    pre_norm: StrictBool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 2:
            raise self.error(f"width is {self.width}; sinusoidal positions need an even one")

    def attention_parameters(self) -> int:
        """As in `AdaptiveSpec`, with the two offsets of the queries."""
        return self.attentions * (self.attention_maps * self.width + 2) * self.width

    def multiply_adds(self) -> int:
        """As in `DecoderSpec`, with the products of queries and relative positions."""
        products = self.attentions * self.width // 2 * (self.max_length + 1)
        return super().multiply_adds() + products

    def build(self, seed: int) -> TransformerXlModel:
        """The model in eval mode: weights and offsets normal, biases 0, norms the identity."""
        self.require_memory()
        model = TransformerXlModel(self)
        draw_weights(model, seed, self.weight_std, {Projection: self.projection_std})
        return model.eval()


class RelativeAttention(SelfAttention):
    """Causal attention to contents and to relative positions (arXiv 1901.02860, section 3.3).

    The score of a query i and a key j is (q_i + u) · k_j + (q_i + v) · W r_(i - j), over the root
    of the head's size; r is a sinusoidal embedding of the distance.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, bias=False)
        self.position = Linear(width, width, bias=False)
        self.content_offset = nn.Parameter(torch.empty(heads, 1, width // heads))  # u
        self.position_offset = nn.Parameter(torch.empty(heads, 1, width // heads))  # v

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        queries, keys, values = (
            split_heads(project(hidden), self.heads)
            for project in (self.query, self.key, self.value)
        )
        distances = split_heads(self.position(_falling_distances(hidden))[None], self.heads)
        products = (queries + self.position_offset) @ distances.transpose(-1, -2)
        contents = queries + self.content_offset
        return self.output(self.attend(contents, keys, values, _by_key(products)))


def _falling_distances(hidden: Tensor) -> Tensor:
    """Sines, then cosines, of the distances T - 1 to 0 for ``[B, T, width]``: ``[T, width]``."""
    _, length, width = hidden.shape
    steps = torch.arange(0, width, 2, dtype=hidden.dtype, device=hidden.device)
    distances = torch.arange(length - 1, -1, -1, dtype=hidden.dtype, device=hidden.device)
    angles = distances[:, None] / 10_000 ** (steps / width)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _by_key(products: Tensor) -> Tensor:
    """Products of query i with falling distances, as those of query i with keys j = 0, 1, ....

    Row i begins T - 1 - i places to the right of where it should.  With one column more on the
    left, and rows of T + 1 numbers cut into rows of T from the second on, it begins in its place;
    keys after i hold numbers without meaning.

    Args:
        products: ``[B, heads, T, T]``; the last axis holds distances T - 1 to 0.

    Returns:
        ``[B, heads, T, T]``; the last axis holds keys 0 to T - 1.
    """
    *outer, length, _ = products.shape
    return functional.pad(products, (1, 0)).view(*outer, length + 1, length)[..., 1:, :]


class TransformerXlModel(AdaptiveModel):
    """The language model that a `TransformerXlSpec` builds."""

    def __init__(self, spec: TransformerXlSpec) -> None:
        super().__init__()
        self.max_length = spec.max_length
        self.vocabulary = AdaptiveVocabulary(spec)
        self.blocks = nn.ModuleList(
            DecoderBlock(
                partial(nn.LayerNorm, spec.width),
                RelativeAttention(spec.width, heads) if heads else None,
                Mlp(spec.width, inner, nn.ReLU()) if inner else None,
                post_norm=not spec.pre_norm,
            )
            for heads, inner in zip(spec.heads, spec.inner, strict=True)
        )
        self.norm = nn.Identity()

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to ``[B, T, width]``."""
        self.check_length(tokens)
        return self.vocabulary.embed(tokens)
