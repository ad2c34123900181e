"""LLaMA-type decoders: heads, key-value heads and MLP width of each block its own, or missing.

RMSNorm before each half of a block, rotary positions, grouped-query attention, a gated MLP, no
biases: the form of Touvron et al. (arXiv 2302.13971), with the grouped queries of Ainslie et al.
(arXiv 2305.13245), and the numbers of transformers' `LlamaForCausalLM` where all blocks are
alike.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmscout.errors import LmscoutError
from lmscout.models.layers import CausalAttention, Embedding, Linear, draw_weights, split_heads
from lmscout.models.spec import (
    ArchitectureSpec,
    LanguageModel,
    ProbePoints,
    require_blocks,
    require_fields,
    require_numbers,
    require_positive,
    require_truths,
    require_tuples,
)

OWNER = "LLaMA spec"


@dataclass(frozen=True, kw_only=True)
class LlamaSpec(ArchitectureSpec):
    """A LLaMA with per-block heads and MLP widths.

    Attributes:
        heads: query heads of each block; each divides the width into heads of an even size;
            0 for no attention.
        key_value_heads: key and value heads of each block; each divides the query heads; 0
            where there is no attention.
        inner: width of the gated MLP of each block; 0 for no MLP.
        tied: whether the output projection is the embedding table.
        rope_theta: base of the rotary frequencies.
        norm_epsilon: of every RMSNorm.
        weight_std: standard deviation of weights and tables when drawn.
    """

    kind: ClassVar[str] = "llama"
    causal: ClassVar[bool] = True

    heads: tuple[int, ...]
    key_value_heads: tuple[int, ...]
    inner: tuple[int, ...]
    vocabulary: int
    max_length: int
    tied: bool = True
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    weight_std: float = 0.02

    def __post_init__(self) -> None:
        require_positive(
            OWNER, width=self.width, vocabulary=self.vocabulary, max_length=self.max_length
        )
        require_truths(OWNER, tied=self.tied)
        require_numbers(
            OWNER,
            rope_theta=self.rope_theta,
            norm_epsilon=self.norm_epsilon,
            weight_std=self.weight_std,
        )
        require_blocks(OWNER, self.width, self.heads, self.inner)
        require_tuples(OWNER, key_value_heads=self.key_value_heads)
        if len(self.key_value_heads) != len(self.heads):
            raise LmscoutError(
                f"{OWNER}: key_value_heads has {len(self.key_value_heads)} entries and heads "
                f"{len(self.heads)}; both need one for each block"
            )
        for index, (heads, shared) in enumerate(zip(self.heads, self.key_value_heads, strict=True)):
            self._check_heads(index, heads, shared)

    def _check_heads(self, index: int, heads: int, shared: int) -> None:
        if heads == 0:
            if shared != 0:
                raise LmscoutError(
                    f"{OWNER}: key_value_heads[{index}] is {shared}, but the block has no "
                    "attention; make it 0"
                )
            return
        require_positive(OWNER, **{f"key_value_heads[{index}]": shared})
        if heads % shared:
            raise LmscoutError(
                f"{OWNER}: key_value_heads[{index}] is {shared}, which does not divide "
                f"heads[{index}], {heads}"
            )
        if self.width // heads % 2:
            raise LmscoutError(
                f"{OWNER}: heads[{index}] is {heads}, so that a head has size "
                f"{self.width // heads}; rotary positions need an even one"
            )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.heads)

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

    def parameters(self) -> int:
        """Parameters of embedding, body and, where it is not tied, the output projection."""
        tables = 1 if self.tied else 2
        return tables * self.vocabulary * self.width + self.body_parameters()

    def build(self, seed: int) -> "LlamaModel":
        """The model in eval mode: weights normal, norms the identity."""
        self.require_memory()
        model = LlamaModel(self)
        draw_weights(model, seed, self.weight_std)
        return model.eval()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LlamaSpec":
        """The spec from what `to_dict` gave, less ``kind``."""
        tuples = {name: tuple(item) for name, item in values.items() if isinstance(item, list)}
        return cls(**require_fields(OWNER, cls, {**values, **tuples}))


class Rotary(nn.Module):
    """Rotary positions (Su et al., arXiv 2104.09864): pairs of coordinates turned by position.

    Coordinate i of the first half of a head is paired with coordinate i of the second.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, size: int, length: int, theta: float) -> None:
        super().__init__()
        frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
        self.register_buffer("cosine", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sine", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, heads: Tensor) -> Tensor:
        """``[B, heads, T, size]`` to the same shape and type."""
        cosine, sine = (one[: heads.shape[2]].to(heads.dtype) for one in (self.cosine, self.sine))
        first, second = heads.chunk(2, dim=-1)
        return heads * cosine + torch.cat((-second, first), dim=-1) * sine


class GroupedAttention(nn.Module):
    """Causal attention in which several query heads share a key and a value head."""

    def __init__(self, width: int, heads: int, shared: int, rotary: Rotary) -> None:
        super().__init__()
        self.heads, self.shared = heads, shared
        narrow = shared * (width // heads)
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, narrow, bias=False)
        self.value = Linear(width, narrow, bias=False)
        self.rotary = rotary
        self.attend = CausalAttention()
        self.output = Linear(width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        queries = self.rotary(split_heads(self.query(hidden), self.heads))
        keys = self.rotary(split_heads(self.key(hidden), self.shared))
        values = split_heads(self.value(hidden), self.shared)
        mixed = self.attend(queries, self._spread(keys), self._spread(values))
        output: Tensor = self.output(mixed)
        return output

    def _spread(self, shared: Tensor) -> Tensor:
        """``[B, shared, T, size]`` to ``[B, heads, T, size]``, each head repeated in place."""
        if self.shared == self.heads:
            return shared
        group = self.heads // self.shared
        return shared[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2)


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
        output: Tensor = self.down(self.activation(self.gate(hidden)) * self.up(hidden))
        return output


class LlamaBlock(nn.Module):
    """Attention and MLP, or one of them, each on the normed hidden state and added to it."""

    def __init__(self, spec: LlamaSpec, index: int) -> None:
        super().__init__()
        width, heads, inner = spec.width, spec.heads[index], spec.inner[index]
        self.attends, self.has_mlp = heads > 0, inner > 0
        if self.attends:
            rotary = Rotary(width // heads, spec.max_length, spec.rope_theta)
            self.attention_norm = nn.RMSNorm(width, eps=spec.norm_epsilon)
            self.attention = GroupedAttention(width, heads, spec.key_value_heads[index], rotary)
        if self.has_mlp:
            self.mlp_norm = nn.RMSNorm(width, eps=spec.norm_epsilon)
            self.mlp = GatedMlp(width, inner)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        if self.attends:
            hidden = hidden + self.attention(self.attention_norm(hidden))
        if self.has_mlp:
            hidden = hidden + self.mlp(self.mlp_norm(hidden))
        return hidden

    def probe_points(self) -> ProbePoints:
        """Where the inputs are read in this block."""
        head: tuple[nn.Linear, ...] = ()
        mixing, mlp = head, head
        if self.attends:
            attention = self.attention
            head = (attention.query, attention.key, attention.value)
            mixing = (*head, attention.output)
        if self.has_mlp:
            mlp = (self.mlp.gate, self.mlp.up, self.mlp.down)
        activation = (self.mlp.activation,) if self.has_mlp else ()
        return ProbePoints(
            block=self,
            act=activation,
            head=head,
            softmax=(self.attention.attend.softmax,) if self.attends else (),
            spectrum=(),
            linear=(*mixing, *mlp),
            mlp=mlp,
            gate=activation,
        )


class LlamaModel(LanguageModel):
    """The language model that a `LlamaSpec` builds."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.max_length = spec.max_length
        self.tokens = Embedding(spec.vocabulary, spec.width)
        self.blocks = nn.ModuleList(LlamaBlock(spec, index) for index in range(spec.depth))
        self.norm = nn.RMSNorm(spec.width, eps=spec.norm_epsilon)
        self.head = Linear(spec.width, spec.vocabulary, bias=False)
        if spec.tied:
            self.head.weight = self.tokens.weight

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to ``[B, T, width]``."""
        self.check_length(tokens)
        embedded: Tensor = self.tokens(tokens)
        return embedded

    def encode(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` through the blocks and the final norm."""
        for block in self.blocks:
            hidden = block(hidden)
        normed: Tensor = self.norm(hidden)
        return normed

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats.

        Args:
            tokens: ``[B, T]``, int64, T at least 2.

        Raises:
            LmscoutError: a sequence has no next token, or more tokens than positions.
        """
        hidden, targets = self.next_token_states(tokens)
        return functional.cross_entropy(self.head(hidden), targets)

    def probe_points(self) -> tuple[ProbePoints, ...]:
        """Where the inputs are read, one entry a block."""
        return tuple(cast(LlamaBlock, block).probe_points() for block in self.blocks)
