"""LLaMA decoders: heads, key-value heads and MLP width of each block its own, or missing.

RMSNorm before attention and MLP, rotary positions, grouped-query attention, a gated MLP, no
biases: the form of Touvron et al. (arXiv 2302.13971) with the grouped queries of Ainslie et al.
(arXiv 2305.13245).  With equal blocks, the numbers are those of transformers'
`LlamaForCausalLM`.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import StrictBool
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from lmscout.models.layers import (
    DecoderBlock,
    DecoderSpec,
    Embedding,
    Linear,
    SelfAttention,
    draw_weights,
)
from lmscout.models.spec import CHECKED, LanguageModel, PerBlock, Positive, Size, Vocabulary


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LlamaSpec(DecoderSpec):
    """A LLaMA with per-block heads and MLP widths."""

    kind: ClassVar[str] = "llama"
    title: ClassVar[str] = "LLaMA spec"

    # query heads of each block; each divides the width into heads of an even size; 0 for no
    # attention
    heads: PerBlock
    # key and value heads of each block; each divides the query heads; 0 where there is no attention
    key_value_heads: PerBlock
    inner: PerBlock  # width of the gated MLP of each block; 0 for no MLP
    vocabulary: Vocabulary
    max_length: Size
    tied: StrictBool = True  # whether the output projection is the embedding table
    rope_theta: Positive = 10_000.0  # base of the rotary frequencies
    norm_epsilon: Positive = 1e-5  # of every RMSNorm
    weight_std: Positive = 0.02  # standard deviation of weights and tables when drawn

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.key_value_heads) != len(self.heads):
            raise self.error(
                f"key_value_heads has {len(self.key_value_heads)} entries and heads "
                f"{len(self.heads)}; both need one for each block"
            )
        for index, (heads, shared) in enumerate(zip(self.heads, self.key_value_heads, strict=True)):
            field = f"key_value_heads[{index}]"
            if heads == 0 and shared:
                raise self.error(f"{field} is {shared}, but the block has no attention; make it 0")
            if heads and not shared:
                raise self.error(f"{field} must be a whole number above 0, not 0")
            if heads and heads % shared:
                raise self.error(
                    f"{field} is {shared}, which does not divide heads[{index}], {heads}"
                )
            if heads and self.width // heads % 2:
                raise self.error(
                    f"heads[{index}] is {heads}, so that a head has size {self.width // heads}; "
                    "rotary positions need an even one"
                )

    def body_parameters(self) -> int:
        """Parameters of the blocks and the final norm."""
        total = self.width
        for heads, shared, inner in zip(self.heads, self.key_value_heads, self.inner, strict=True):
            if heads:
                narrow = shared * (self.width // heads)
                total += self.width + 2 * self.width * (self.width + narrow)
            if inner:
                total += self.width + 3 * self.width * inner
        return total

    def matrices(self) -> int:
        """As in `DecoderSpec`."""
        norms = 1 + sum(map(bool, (*self.heads, *self.inner)))
        return self.body_parameters() - norms * self.width

    def parameters(self) -> int:
        """Parameters of embedding, body and, unless it is tied, the output projection."""
        tables = 1 if self.tied else 2
        return tables * self.vocabulary * self.width + self.body_parameters()

    def pass_bytes(self) -> int:
        """As in `ArchitectureSpec`, with the cosines and sines of the rotary positions."""
        return super().pass_bytes() + 2 * 4 * self.max_length * self.width

    def build(self, seed: int) -> LlamaModel:
        """The model in eval mode: weights normal, norms the identity."""
        self.require_memory()
        model = LlamaModel(self)
        draw_weights(model, seed, self.weight_std)
        return model.eval()


class Rotary(nn.Module):
    """Rotary positions (Su et al., arXiv 2104.09864): pairs of coordinates turned by position.

    Coordinate i of the first half of a head is paired with coordinate i of the second.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, size: int, length: int, theta: float) -> None:
        super().__init__()
        frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cosine", angles.cos().float().repeat(1, 2), persistent=False)
        self.register_buffer("sine", angles.sin().float().repeat(1, 2), persistent=False)

    def forward(self, heads: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape and type."""
        cosine, sine = (one[: heads.shape[2]].to(heads.dtype) for one in (self.cosine, self.sine))
        first, second = heads.chunk(2, dim=-1)
        return heads * cosine + torch.cat((-second, first), dim=-1) * sine


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202): a gate, through SiLU, times another map."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = Linear(width, inner, bias=False)
        self.up = Linear(width, inner, bias=False)
        self.activation = nn.SiLU()
        self.down = Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        return self.down(self.activation(self.gate(hidden)) * self.up(hidden))


class LlamaModel(LanguageModel):
    """The language model that a `LlamaSpec` builds."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        width, norm = spec.width, partial(nn.RMSNorm, spec.width, eps=spec.norm_epsilon)

        def attention(heads: int, shared: int) -> SelfAttention:
            rotary = Rotary(width // heads, spec.max_length, spec.rope_theta)
            return SelfAttention(width, heads, shared, rotary=rotary, bias=False)

        self.max_length = spec.max_length
        self.tokens = Embedding(spec.vocabulary, width)
        self.blocks = nn.ModuleList(
            DecoderBlock(
                norm,
                attention(heads, shared) if heads else None,
                GatedMlp(width, inner) if inner else None,
                gated=True,
            )
            for heads, shared, inner in zip(
                spec.heads, spec.key_value_heads, spec.inner, strict=True
            )
        )
        self.norm = norm()
        self.head = Linear(width, spec.vocabulary, bias=False)
        if spec.tied:
            self.head.weight = self.tokens.weight

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to ``[B, T, width]``."""
        self.check_length(tokens)
        return self.tokens(tokens)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats; tokens ``[B, T]``, T at least 2."""
        hidden, targets = self.next_token_states(tokens)
        return functional.cross_entropy(self.head(hidden), targets)
