"""Layers whose tensors are drawn once from a given generator, and the blocks of decoders.

PyTorch's own layers draw default weights from the global generator when they are made.  These
leave the tensors unset; `draw_weights` fills each of them exactly once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmscout.models.spec import ArchitectureSpec, PerBlock, ProbePoints, linear_layers

_GROUP = 16  # numbers that PyTorch transforms together
_GROUPS_AT_ONCE = 4096  # so that they stay in a core's cache
_GROUPS_ON_GPU = 2**18  # in temporary tensors of 32 MiB


class _Undrawn:
    def reset_parameters(self) -> None:
        """Leave the tensors to `draw_weights`."""


class Linear(_Undrawn, nn.Linear):
    """`torch.nn.Linear` without the default draw."""


class Embedding(_Undrawn, nn.Embedding):
    """`torch.nn.Embedding` without the default draw."""


class Conv1d(_Undrawn, nn.Conv1d):
    """`torch.nn.Conv1d` without the default draw."""


class Projection(Linear):
    """A bias-free linear map in and out of an embedding; has a standard deviation of its own."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)


class ResidualLinear(Linear):
    """A linear map into the residual stream; GPT-2 draws it narrower, the deeper the model."""


@torch.no_grad()
def draw_weights(
    model: nn.Module, seed: int, std: float, std_of: Mapping[type[nn.Module], float] | None = None
) -> None:
    """Fill every parameter of a model, in the order of registration, each once, from one seed.

    Weights are normal with mean 0, the same on every CPU, with a standard deviation `std`, or that
    in `std_of` for a type of layer; biases are 0; a norm is the identity; the row of an embedding's
    padding token is 0.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in drawn:
                continue
            drawn.add(id(parameter))
            if name.endswith("bias"):
                parameter.zero_()
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                parameter.fill_(1.0)
            else:
                own_std = (std_of or {}).get(type(module), std)
                _draw_normal(parameter, own_std, generator)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def _draw_normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill a float32 tensor as `Tensor.normal_` does on a CPU, with the same bits on every CPU.

    PyTorch transforms uniform numbers in groups of 16 by Box and Muller's method, in float32, with
    routines whose last bits differ between CPUs.  Here the transform is in float64, rounded once,
    on the tensor's device; the uniform numbers are always drawn on the CPU.
    """
    flat = parameter.view(-1)
    if len(flat) < _GROUP:  # PyTorch draws these in float64
        flat.copy_(_on_cpu(flat).normal_(0.0, std, generator=generator))
        return
    flat.copy_(_on_cpu(flat).uniform_(generator=generator))
    whole = flat[: len(flat) // _GROUP * _GROUP].view(-1, _GROUP)
    for groups in torch.split(whole, _GROUPS_AT_ONCE if flat.is_cpu else _GROUPS_ON_GPU):
        _transform(groups, std)
    if len(flat) % _GROUP:
        last = flat[-_GROUP:]
        last.copy_(_on_cpu(last).uniform_(generator=generator))
        _transform(last.view(1, _GROUP), std)


def _on_cpu(tensor: Tensor) -> Tensor:
    """The tensor if it is on the CPU, else one there of its shape."""
    return tensor if tensor.is_cpu else torch.empty_like(tensor, device="cpu")


def _transform(groups: Tensor, std: float) -> None:
    """Box and Muller's transform of uniform numbers [n, 16], in place."""
    first, second = groups.double().chunk(2, dim=1)
    radius = first.neg_().log1p_().mul_(-2 * std**2).sqrt_()
    angle = second.mul_(2 * math.pi)
    groups.copy_(torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1))


def split_heads(hidden: Tensor, heads: int) -> Tensor:
    """``[B, T, heads · size]`` to ``[B, heads, T, size]``."""
    batch, length, width = hidden.shape
    return hidden.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(hidden: Tensor) -> Tensor:
    """``[B, heads, T, size]`` to ``[B, T, heads · size]``."""
    return hidden.transpose(1, 2).flatten(2)


class CausalAttention(nn.Module):
    """Attention of a position to itself and to earlier positions.

    Attributes:
        softmax: makes the probabilities ``[B, heads, T, T]``; a hook on it sees them.
        fused: whether PyTorch's fused attention is used, which has no such probabilities.
    """

    fused: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, added: Tensor | None = None
    ) -> Tensor:
        """Queries, keys and values ``[B, heads, T, size]`` to ``[B, T, heads · size]``.

        With `added`, ``[B, heads, T, T]``, to the products of queries and keys, it is never fused.
        """
        if self.fused and added is None:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            return merge_heads(mixed)
        products = queries @ keys.transpose(-1, -2)
        if added is not None:
            products = products + added
        scores = products / math.sqrt(queries.shape[-1])
        length = queries.shape[2]
        future = torch.ones(length, length, dtype=torch.bool, device=queries.device).triu(1)
        probabilities = self.softmax(scores.masked_fill(future, -math.inf))
        return merge_heads(probabilities @ values)


def fuse_attention(model: nn.Module) -> None:
    """Use fused attention in a model that is trained and not probed."""
    for module in model.modules():
        if isinstance(module, CausalAttention):
            module.fused = True


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
