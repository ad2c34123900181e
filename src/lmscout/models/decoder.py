"""Common parts of the decoders: blocks, each with attention, an MLP or both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lmscout.models.layers import CausalAttention, Linear, ResidualLinear, split_heads
from lmscout.models.spec import ArchitectureSpec, PerBlock, ProbePoints, linear_layers


class DecoderSpec(ArchitectureSpec):
    """Base of the decoders' specs.

    Attributes:
        heads: attention heads of each block; each divides the width; 0 for no attention.
        inner: width of the MLP of each block; 0 for no MLP.
    """

    causal = True
    heads: PerBlock
    inner: PerBlock

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.heads)

    @abstractmethod
    def matrices(self) -> int:
        """Parameters of the blocks' matrices: those of a body without biases and norms."""

    def multiply_adds(self) -> int:
        """Multiply-adds of a token in the blocks, in a sequence of `max_length`.

        A weight costs one.  Attention adds two products with the positions before and at the
        token's own, (max_length + 1) / 2 of them on average.
        """
        return self.matrices() + sum(map(bool, self.heads)) * self.width * (self.max_length + 1)

    def __post_init__(self) -> None:
        if not self.heads or len(self.heads) != len(self.inner):
            raise self.error(
                f"heads has {len(self.heads)} entries and inner {len(self.inner)}; "
                "both need one for each block"
            )
        for index, (heads, inner) in enumerate(zip(self.heads, self.inner, strict=True)):
            if heads == inner == 0:
                raise self.error(
                    f"heads[{index}] and inner[{index}] are both 0; a block has attention, "
                    "an MLP or both"
                )
            if heads and self.width % heads:
                raise self.error(
                    f"heads[{index}] is {heads}, which does not divide width {self.width}"
                )


class SelfAttention(nn.Module):
    """Causal attention; several query heads may share a key and a value head.

    Args:
        width: of the hidden state.
        heads: query heads.
        shared: key and value heads, which divide the query heads; as many as those if None.
        rotary: applied to queries and keys ``[B, heads, T, size]``.
        bias: whether the linear layers have one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        shared: int | None = None,
        *,
        rotary: nn.Module | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.shared = heads, shared or heads
        narrow = self.shared * (width // heads)
        self.query = Linear(width, width, bias)
        self.key = Linear(width, narrow, bias)
        self.value = Linear(width, narrow, bias)
        self.rotary = rotary or nn.Identity()
        self.attend = CausalAttention()
        self.output = ResidualLinear(width, width, bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        queries = self.rotary(split_heads(self.query(hidden), self.heads))
        keys = self.rotary(split_heads(self.key(hidden), self.shared))
        values = split_heads(self.value(hidden), self.shared)
        return self.output(self.attend(queries, self._repeat(keys), self._repeat(values)))

    def _repeat(self, shared: Tensor) -> Tensor:
        """``[B, shared, T, size]`` to ``[B, heads, T, size]``, each head repeated in place."""
        group = self.heads // self.shared
        return shared[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2)


class Mlp(nn.Module):
    """Two linear maps around an activation."""

    def __init__(self, width: int, inner: int, activation: nn.Module) -> None:
        super().__init__()
        self.expand = Linear(width, inner)
        self.activation = activation
        self.contract = ResidualLinear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        return self.contract(self.activation(self.expand(hidden)))


class DecoderBlock(nn.Module):
    """Attention and MLP, or one of them, each added to the hidden state.

    A norm comes before each of them, or after each sum.

    Args:
        norm: makes a norm.
        attention: None for none.
        mlp: with the module `activation`; None for none.
        gated: whether the activation multiplies another path.
        post_norm: whether norms come after.
    """

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        attention: SelfAttention | None,
        mlp: nn.Module | None,
        *,
        gated: bool = False,
        post_norm: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = norm() if attention else None
        self.attention = attention
        self.mlp_norm = norm() if mlp else None
        self.mlp = mlp
        self.gated, self.post_norm = gated, post_norm

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        for norm, part in ((self.attention_norm, self.attention), (self.mlp_norm, self.mlp)):
            if norm and part and self.post_norm:
                hidden = norm(hidden + part(hidden))
            elif norm and part:
                hidden = hidden + part(norm(hidden))
        return hidden

    def probe_points(self) -> ProbePoints:
        """Where the inputs are read in this block."""
        attention, mlp = self.attention, self.mlp
        act: tuple[Any, ...] = (mlp.activation,) if mlp else ()
        return ProbePoints(
            block=self,
            act=act,
            head=(attention.query, attention.key, attention.value) if attention else (),
            softmax=(attention.attend.softmax,) if attention else (),
            spectrum=(),
            linear=linear_layers(self),
            mlp=linear_layers(mlp) if mlp else (),
            gate=act if self.gated else (),
        )
