"""What a model family provides: its blocks, their matrices by unit, and how they compute.

A unit is what pruning removes: an attention group (a key-value head with its query heads), an MLP
channel, or of a mixture an expert, or some channels of every expert.  A family describes both
sublayers of a block as views of the model's own weights; any prefix of their units computes by
itself.  Sorting, measuring, compensating, cutting and saving are written once, for every family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation import plain_type

ATTENTION, MLP = "attention", "mlp"
KINDS = (ATTENTION, MLP)  # the sublayers of a block, in the order of computation

Place = tuple[int, str]  # a block's number, and "attention" or "mlp"
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RmsNorm:
    """Division of each token by its root mean square, times a gain by channel."""

    weight: Tensor  # [width], a view of the model's
    epsilon: float  # added to the mean square
    offset: float = 0.0  # of the weight; the gain is their sum

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of [..., width]."""
        size = self.weight.shape
        if not self.offset:  # one kernel
            return functional.rms_norm(x, size, self.weight, self.epsilon)
        wide = torch.promote_types(x.dtype, torch.float32)
        return functional.rms_norm(x.to(wide), size, self.gain.to(wide), self.epsilon).to(x.dtype)

    @property
    def gain(self) -> Tensor:
        """Factor of each channel, [width], in float32 or wider."""
        return self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)) + self.offset

    def rate(self, x: Tensor) -> Tensor:
        """Factor of each token, [..., width] to [..., 1], in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)


@dataclass(frozen=True)
class Multiplier:
    """A constant factor in the place of a norm."""

    gain: float

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        return x * self.gain

    def rate(self, x: Tensor) -> float:
        """Factor of each token: 1."""
        return 1.0


@dataclass(frozen=True)
class Affine:
    """A linear map as views of a model's weights."""

    weight: Tensor  # [out, in], a view even where the model stores it transposed or fused
    bias: Tensor | None  # [out], or None
    # over all of its outputs, or None; its weight follows the units as rows do
    norm: RmsNorm | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weight, and bias and weight of the norm if there are any."""
        bias = () if self.bias is None else (self.bias,)
        return self.weight, *bias, *(() if self.norm is None else (self.norm.weight,))

    def changed(self, change: Function) -> Self:
        """The same with every tensor of `tensors` changed."""
        bias = None if self.bias is None else change(self.bias)
        norm = self.norm and replace(self.norm, weight=change(self.norm.weight))
        return replace(self, weight=change(self.weight), bias=bias, norm=norm)

    def rows(self, count: int) -> Self:
        """The first outputs only."""
        return self.changed(lambda one: one[:count])

    def columns(self, count: int) -> Self:
        """The first inputs only."""
        return replace(self, weight=self.weight[..., :count])

    def linear(self, x: Tensor) -> Tensor:
        """The map of [..., in] to [..., out] without the norm."""
        return functional.linear(x, self.weight, self.bias)

    def apply(self, x: Tensor) -> Tensor:
        """The map of [..., in] to [..., out]."""
        return self.linear(x) if self.norm is None else self.norm(self.linear(x))

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return self.changed(lambda one: one.to(device))


@dataclass(frozen=True, kw_only=True)
class Sublayer(ABC):
    """Attention or MLP of one block: x + after(output(inner(norm(x))))."""

    # maps whose rows follow the units, an equal number of rows for each unit
    inputs: tuple[Affine, ...]
    output: Affine  # the output projection, whose columns follow the units
    units: int  # number of units; 0 where an earlier pruning has removed the sublayer
    norm: Function  # the norm before the sublayer, [..., width] to the same
    # the norm after the output projection, or a constant factor; None for neither
    after: RmsNorm | Multiplier | None = None

    @abstractmethod
    def inner(self, normed: Tensor, context: Any) -> Tensor:
        """The sublayer between norm and output projection.

        [B, T, width] and what `Family.context` gives, to [B, T, columns of `output`].
        """

    def entering(self, hidden: Tensor, context: Any) -> Tensor:
        """What enters the output projection: [B, T, width] to [B, T, columns of `output`]."""
        return self.inner(self.norm(hidden), context)

    def added(self, projected: Tensor) -> Tensor:
        """What is added to the hidden state, from the output of a projection [..., width]."""
        return projected if self.after is None else self.after(projected)

    def update(self, hidden: Tensor, context: Any, output: Affine | None = None) -> Tensor:
        """What the sublayer adds to [B, T, width], by another output projection if one is given."""
        return self.added((output or self.output).apply(self.entering(hidden, context)))

    def step(self, hidden: Tensor, context: Any, output: Affine | None = None) -> Tensor:
        """The hidden state after the sublayer, as `update`: [B, T, width] to the same."""
        if not self.units:
            return hidden
        hidden = hidden.to(self.device)
        return hidden + self.update(hidden, context, output)

    @property
    def device(self) -> torch.device:
        """The device of its weights, to which a hidden state moves before it."""
        return self.output.weight.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the maps."""
        return tuple(tensor for one in self.maps for tensor in one.tensors)

    @property
    def members(self) -> Sequence[Sublayer]:
        """The sublayers whose units have an order of their own: this one."""
        return (self,)

    @property
    def moments(self) -> tuple[int, int]:
        """Number of vectors whose moments order its units, and entries of each."""
        return 1, self.output.weight.shape[-1]

    def views(self) -> list[Tensor]:
        """Every tensor that follows the units, as views [units, entries of a unit, ...].

        The output projection is first, transposed.
        """
        tensors = [self.output.weight.T]
        tensors += [tensor for one in self.inputs for tensor in one.tensors]
        return [torch.unflatten(one, 0, (self.units, -1)) for one in tensors]

    def changed(self, change: Function) -> Self:
        """The same with every tensor of `tensors` changed."""
        return self.with_maps(one.changed(change) for one in self.maps)

    def as_leaves(self) -> Self:
        """The same with its tensors as leaves of the autograd graph, in the same memory."""
        return self.changed(lambda one: one.detach().requires_grad_())

    @property
    def maps(self) -> tuple[Affine, ...]:
        """All linear maps, the output projection last."""
        return *self.inputs, self.output

    def with_maps(self, maps: Iterable[Affine]) -> Self:
        """The same units with other maps, in the order of `maps`."""
        *inputs, output = maps
        return replace(self, inputs=tuple(inputs), output=output)

    def first(self, units: int) -> Self:
        """The first units only, as views."""
        if units == self.units:
            return self
        inputs = tuple(one.rows(len(one.weight) // self.units * units) for one in self.inputs)
        columns = self.output.weight.shape[1] // self.units * units
        return replace(self, inputs=inputs, output=self.output.columns(columns), units=units)

    @property
    def parameters(self) -> int:
        """Parameters in the units: all but the output bias and the norm."""
        inputs = sum(tensor.numel() for one in self.inputs for tensor in one.tensors)
        return inputs + self.output.weight.numel()


@dataclass(frozen=True, kw_only=True)
class Attention(Sublayer):
    """Causal attention; its inputs are query, key and value, and its units groups of heads."""

    head_size: int  # rows of a head; a group has one head of keys and one of values
    scale: float  # factor of the products of queries and keys
    query_norm: Function | None = None  # norm over each head of queries, or None
    key_norm: Function | None = None  # norm over each head of keys, or None
    # (queries, keys, context) to both with rotary positions; None without these
    rotate: Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]] | None = None
    # bound of the products of queries and keys, by a hyperbolic tangent; None without
    softcap: float | None = None

    @property
    def group_size(self) -> int:
        """Query heads of a group."""
        return len(self.inputs[0].weight) // (self.units * self.head_size)

    def inner(self, normed: Tensor, context: Any) -> Tensor:
        """Attended values, [B, T, units * group_size * head_size]."""
        value = self._heads(self.inputs[2], normed)
        if self.softcap is not None:
            shares = self.probabilities(normed, context)
            attended = shares @ value.repeat_interleave(self.group_size, 1)
            return attended.transpose(1, 2).flatten(2)
        query, key = self._queries_and_keys(normed, context)
        attended = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.scale, enable_gqa=self.group_size > 1
        )
        return attended.transpose(1, 2).flatten(2)

    def probabilities(self, normed: Tensor, context: Any) -> Tensor:
        """The attention probabilities, [B, units * group_size, T, T]."""
        query, key = self._queries_and_keys(normed, context)
        scores = query @ key.repeat_interleave(self.group_size, 1).transpose(-1, -2) * self.scale
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh() * self.softcap
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1)

    def _queries_and_keys(self, normed: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        query = self._heads(self.inputs[0], normed, self.query_norm)
        key = self._heads(self.inputs[1], normed, self.key_norm)
        return (query, key) if self.rotate is None else self.rotate(query, key, context)

    def _heads(self, affine: Affine, normed: Tensor, norm: Function | None = None) -> Tensor:
        """[B, T, width] to [B, heads, T, head_size]."""
        heads = affine.apply(normed).view(*normed.shape[:2], -1, self.head_size)
        return (heads if norm is None else norm(heads)).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Mlp(Sublayer):
    """An MLP: the activation of its first input map, times the second one's output if any."""

    activation: Function  # elementwise

    def inner(self, normed: Tensor, context: Any = None) -> Tensor:
        """The activated (and gated) channels, [B, T, channels]."""
        return self.gated(self.activated(normed), normed)

    def activated(self, normed: Tensor) -> Tensor:
        """The output of the activation function, [B, T, channels]."""
        return self.activation(self.inputs[0].apply(normed))

    def gated(self, act: Tensor, normed: Tensor) -> Tensor:
        """The output of `activated` times the other input map's; in place without gradients."""
        for one in self.inputs[1:]:
            factor = one.apply(normed)
            act = act * factor if act.requires_grad else act.mul_(factor)
        return act


@dataclass(frozen=True, kw_only=True)
class Mixture(Sublayer):
    """A mixture of gated MLPs, a few of which are selected for each token.

    There are no maps: what enters an expert are the tokens that select it.
    """

    gate: Tensor  # [experts, channels, width]
    up: Tensor  # likewise
    router: Tensor  # [experts, width]
    selected: int  # experts of a token; all if there are no more
    normalized: bool  # whether the shares of selected experts are divided by their sum
    activation: Function  # elementwise

    @property
    @abstractmethod
    def contraction(self) -> Tensor:
        """[experts, width, channels]."""

    @property
    def maps(self) -> tuple[Affine, ...]:
        """None."""
        return ()

    def with_maps(self, maps: Iterable[Affine]) -> Self:
        """The same."""
        return self

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Weights of the experts and of the router, whatever the units are."""
        return self.contraction, self.gate, self.up, self.router

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(self.router)

    def shares(self, logits: Tensor, there: int | None = None) -> Tensor:
        """Weights of experts in the sum, 0 if not selected, from router logits [n, experts].

        `there` is the number of finite logits of a token, if some are minus infinity.
        """
        shares = logits.float().softmax(-1)
        top, index = shares.topk(min(self.selected, there or self.experts), dim=-1)
        if self.normalized:
            top = top / top.sum(-1, keepdim=True)
        return torch.zeros_like(shares).scatter(-1, index, top)

    def routed(self, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Number, tokens [n] and their shares [n, 1] of each expert, for x [tokens, width]."""
        shares = self.shares(functional.linear(x, self.router))
        for number in range(self.experts):
            (tokens,) = shares[:, number].nonzero(as_tuple=True)
            yield number, tokens, shares[tokens, number, None]

    def channels(self, number: int, x: Tensor) -> Tensor:
        """The gated channels of one expert, [n, width] to [n, channels]."""
        gate = self.activation(functional.linear(x, self.gate[number]))
        return gate * functional.linear(x, self.up[number])

    def expert(self, number: int, x: Tensor) -> Tensor:
        """The output of one expert, [n, width] to the same."""
        return functional.linear(self.channels(number, x), self.contraction[number])

    def inner(self, normed: Tensor, context: Any) -> Tensor:
        """No columns."""
        return normed[..., :0]

    def update(self, hidden: Tensor, context: Any, output: Affine | None = None) -> Tensor:
        """The weighted sum of the selected experts' outputs, [B, T, width]."""
        own = self if output is None else replace(self, output=output)
        x = self.norm(hidden).flatten(0, -2)
        total = torch.zeros_like(x)
        for number, tokens, shares in self.routed(x):
            found = own.expert(number, x[tokens]) * shares
            total = total.index_add(0, tokens, found.to(x.dtype))
        return self.added(total.view_as(hidden))


@dataclass(frozen=True, kw_only=True)
class Experts(Mixture):
    """A mixture whose units are experts.

    Removed experts change which of the others are selected, so nothing is a sum over units, and
    `output` has no columns.
    """

    down: Tensor  # [experts, width, channels]

    @property
    def contraction(self) -> Tensor:
        """[experts, width, channels]."""
        return self.down

    @property
    def moments(self) -> tuple[int, int]:
        """None."""
        return 0, 0

    def changed(self, change: Function) -> Self:
        """The same with every tensor of `tensors` changed."""
        down, gate, up, router = map(change, self.tensors)
        return replace(self, down=down, gate=gate, up=up, router=router)

    def first(self, units: int) -> Self:
        """The first experts only, as views."""
        return replace(self.changed(lambda one: one[:units]), units=units)

    def views(self) -> list[Tensor]:
        """Every tensor as a view [experts, entries, ...], the contractions first, transposed."""
        return [self.down.transpose(1, 2), self.gate, self.up, self.router[:, None]]

    @property
    def parameters(self) -> int:
        """Parameters of experts and router."""
        return sum(tensor.numel() for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True)
class ExpertChannels(Mixture):
    """A mixture whose units are some channels of every expert, of each as many.

    `output` is all contractions, [experts, width, channels].  The channels of each expert have an
    order of their own.
    """

    @property
    def contraction(self) -> Tensor:
        """[experts, width, channels]."""
        return self.output.weight

    @property
    def members(self) -> Sequence[Mlp]:
        """The experts as MLPs."""
        return [
            Mlp(
                inputs=(Affine(gate, None), Affine(up, None)),
                output=Affine(down, None),
                units=down.shape[1],
                norm=self.norm,
                activation=self.activation,
            )
            for gate, up, down in zip(self.gate, self.up, self.contraction, strict=True)
        ]

    @property
    def moments(self) -> tuple[int, int]:
        """Number of experts, and their channels."""
        return self.experts, self.contraction.shape[2]

    def changed(self, change: Function) -> Self:
        """The same with every tensor of `tensors` changed."""
        down, gate, up, router = map(change, self.tensors)
        return replace(self, output=Affine(down, None), gate=gate, up=up, router=router)

    def first(self, units: int) -> Self:
        """The first channels of every expert, as views."""
        count = self.contraction.shape[2] // self.units * units
        gate, up, output = self.gate[:, :count], self.up[:, :count], self.output.columns(count)
        return replace(self, gate=gate, up=up, output=output, units=units)

    @property
    def parameters(self) -> int:
        """Parameters of experts."""
        return sum(tensor.numel() for tensor in self.tensors[:-1])


@dataclass(frozen=True)
class BlockParts:
    """Both sublayers of a block."""

    attention: Attention
    mlp: Mlp | Mixture

    @property
    def sublayers(self) -> dict[str, Sublayer]:
        """Attention and MLP by kind, in the order of `KINDS`."""
        return {ATTENTION: self.attention, MLP: self.mlp}


class Family(ABC):
    """Models of one layout; `lmscout.testing.check_family` checks an implementation.

    Attributes:
        model_types: the `model_type` of the configurations it covers.
        norm_offset: added to the weights of norms.
    """

    model_types: ClassVar[tuple[str, ...]]
    norm_offset: ClassVar[float] = 0.0

    @abstractmethod
    def blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The model's transformer blocks, in order."""

    @abstractmethod
    def attention(self, block: Any) -> Attention:
        """The attention of a block that has it, as views: writing to them writes to the model."""

    @abstractmethod
    def mlp(self, block: Any) -> Mlp | Mixture:
        """The MLP of a block that has it, or its experts, likewise."""

    @abstractmethod
    def embed(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """Tokens [B, T] to the hidden state [B, T, width] that enters block 0."""

    @abstractmethod
    def context(self, model: PreTrainedModel, hidden: Tensor) -> Any:
        """Position information of [B, T, width] for the attention of every block."""

    @abstractmethod
    def final_norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm after the last block; `weight` [width] and offset are its gain."""

    @abstractmethod
    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The last hidden state [..., width] through final norm and head: [..., vocabulary]."""

    @abstractmethod
    def uniform_config(
        self, config: PreTrainedConfig, *, depth: int, groups: int, channels: int
    ) -> PreTrainedConfig:
        """A plain configuration of this family with one width for all blocks.

        Raises:
            LmscoutError: the layout has no such configuration.
        """

    def parts(self, block: nn.Module) -> BlockParts:
        """The sublayers of a block that has both."""
        return BlockParts(self.attention(block), self.mlp(block))

    def all_parts(self, model: PreTrainedModel) -> list[BlockParts]:
        """The sublayers of every block, in order; those that are not there have no units.

        Raises:
            LmscoutError: no block has attention, or none an MLP.
        """
        blocks = list(self.blocks(model))
        config: Any = model.config
        if plain_type(config) == config.model_type:
            return [self.parts(block) for block in blocks]
        sizes = config.attention_groups, config.mlp_channels
        for kind, units in zip(KINDS, sizes, strict=True):
            if not any(units):
                raise LmscoutError(
                    f"the model has no {kind} in any block: lmscout cannot prune it further"
                )
        attention, mlp = (
            [of(block) if count else None for block, count in zip(blocks, units, strict=True)]
            for of, units in zip((self.attention, self.mlp), sizes, strict=True)
        )
        no_attention, no_mlp = (
            next(one for one in kind if one is not None).first(0) for kind in (attention, mlp)
        )
        return [
            BlockParts(cast(Attention, one or no_attention), cast("Mlp | Mixture", other or no_mlp))
            for one, other in zip(attention, mlp, strict=True)
        ]

    def all_sublayers(self, model: PreTrainedModel) -> dict[Place, Sublayer]:
        """All sublayers by block number and kind, in the order of computation."""
        return {
            (index, kind): sublayer
            for index, parts in enumerate(self.all_parts(model))
            for kind, sublayer in parts.sublayers.items()
        }
