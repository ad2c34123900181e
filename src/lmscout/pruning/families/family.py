"""What a family of models has to say: where its units are, and how a block computes.

A unit is what pruning removes: an attention group (a key-value head with the query heads
that read it) or an MLP channel.  A family names the matrices whose rows or columns follow
the units, as views of the model's own weights in one orientation, and computes the inner
part of attention and MLP from whatever prefix of them it is handed.  All else (sorting,
cutting, measuring, refitting, saving) is written once, for every family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

ATTENTION, MLP = "attention", "mlp"
KINDS = (ATTENTION, MLP)  # the halves of a block, in the order in which it computes them


@dataclass(frozen=True)
class Affine:
    """A linear map as views of a model's weights.

    Attributes:
        weight: [out, in], a view even where the model stores it transposed or fused.
        bias: [out], or None.
    """

    weight: Tensor
    bias: Tensor | None

    def rows(self, count: int) -> Affine:
        """The first outputs alone."""
        return Affine(self.weight[:count], None if self.bias is None else self.bias[:count])

    def columns(self, count: int) -> Affine:
        """The first inputs alone."""
        return Affine(self.weight[:, :count], self.bias)

    def apply(self, x: Tensor) -> Tensor:
        """The map of [..., in] to [..., out]."""
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class AttentionParts:
    """The matrices of a block's attention.

    Attributes:
        query: rows follow groups, `group_size` heads a group.
        key: rows follow groups, one head a group.
        value: rows follow groups, one head a group.
        output: columns follow groups, as the rows of `query`.
        groups: number of groups.
        group_size: query heads a group.
        head_size: rows a head.
    """

    query: Affine
    key: Affine
    value: Affine
    output: Affine
    groups: int
    group_size: int
    head_size: int

    @property
    def output_columns(self) -> int:
        """Columns of `output` that one group feeds."""
        return self.group_size * self.head_size

    @property
    def units(self) -> int:
        """Number of groups."""
        return self.groups

    @property
    def inputs(self) -> tuple[Affine, ...]:
        """The maps whose rows follow groups."""
        return self.query, self.key, self.value

    def with_maps(self, maps: Iterable[Affine]) -> AttentionParts:
        """The same groups with other maps, in the order of `unit_maps`."""
        query, key, value, output = maps
        return replace(self, query=query, key=key, value=value, output=output)

    def first(self, groups: int) -> AttentionParts:
        """The first groups alone, as views."""
        wide, narrow = groups * self.output_columns, groups * self.head_size
        return AttentionParts(
            self.query.rows(wide),
            self.key.rows(narrow),
            self.value.rows(narrow),
            self.output.columns(wide),
            groups,
            self.group_size,
            self.head_size,
        )


@dataclass(frozen=True)
class MlpParts:
    """The matrices of a block's MLP.

    Attributes:
        expand: maps whose rows follow channels (gate and up, or one).
        output: columns follow channels.
    """

    expand: tuple[Affine, ...]
    output: Affine

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.output.weight.shape[1]

    @property
    def units(self) -> int:
        """Number of channels."""
        return self.channels

    @property
    def inputs(self) -> tuple[Affine, ...]:
        """The maps whose rows follow channels."""
        return self.expand

    def with_maps(self, maps: Iterable[Affine]) -> MlpParts:
        """The same channels with other maps, in the order of `unit_maps`."""
        *expand, output = maps
        return MlpParts(tuple(expand), output)

    def first(self, channels: int) -> MlpParts:
        """The first channels alone, as views."""
        return MlpParts(
            tuple(one.rows(channels) for one in self.expand), self.output.columns(channels)
        )


def unit_maps(part: AttentionParts | MlpParts) -> tuple[Affine, ...]:
    """The linear maps of attention or MLP, the output projection last."""
    return *part.inputs, part.output


def unit_parameters(part: AttentionParts | MlpParts) -> int:
    """Parameters of attention or MLP that its units carry: all but the output bias."""
    biases = sum(one.bias.numel() for one in part.inputs if one.bias is not None)
    return part.output.weight.numel() + biases + sum(one.weight.numel() for one in part.inputs)


def causal_probabilities(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention probabilities of heads that see what came before them.

    Args:
        query: [B, heads, T, head size].
        key: [B, heads or a divisor of them, T, head size]; neighbouring queries share a key.
        scale: of the products.

    Returns:
        [B, heads, T, T].
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(-1, -2) * scale
    unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(unseen, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class BlockParts:
    """The matrices of one block whose sides follow units."""

    attention: AttentionParts
    mlp: MlpParts

    @property
    def sublayers(self) -> dict[str, AttentionParts | MlpParts]:
        """Attention and MLP by kind, in the order of `KINDS`."""
        return {ATTENTION: self.attention, MLP: self.mlp}


class Family(ABC):
    """Models of one layout.

    Attributes:
        model_types: the `model_type` of the configurations it covers.
    """

    model_types: ClassVar[tuple[str, ...]]

    @abstractmethod
    def blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The model's transformer blocks, in order."""

    @abstractmethod
    def parts(self, block: nn.Module) -> BlockParts:
        """The matrices of a block, as views: writing to them writes to the model."""

    def all_parts(self, model: PreTrainedModel) -> list[BlockParts]:
        """The matrices of every block, in order."""
        return [self.parts(block) for block in self.blocks(model)]

    def all_sublayers(
        self, model: PreTrainedModel
    ) -> dict[tuple[int, str], AttentionParts | MlpParts]:
        """Attention and MLP of every block by its number and kind, as a model computes them."""
        return {
            (index, kind): sublayer
            for index, parts in enumerate(self.all_parts(model))
            for kind, sublayer in parts.sublayers.items()
        }

    @abstractmethod
    def embed(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """Tokens [B, T] to the hidden state [B, T, width] that enters block 0."""

    @abstractmethod
    def context(self, model: PreTrainedModel, hidden: Tensor) -> Any:
        """What every block's attention needs of the positions; made once for [B, T, width]."""

    @abstractmethod
    def attention_norm(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden state as attention reads it."""

    @abstractmethod
    def attend(
        self, block: nn.Module, parts: AttentionParts, normed: Tensor, context: Any
    ) -> Tensor:
        """Attention up to its output projection.

        Args:
            block: for what is not cut (norms of queries and keys).
            parts: the groups that are kept.
            normed: [B, T, width].
            context: from `context`.

        Returns:
            [B, T, groups * group_size * head_size].
        """

    @abstractmethod
    def mlp_norm(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden state as the MLP reads it."""

    @abstractmethod
    def activate(self, block: nn.Module, parts: MlpParts, normed: Tensor) -> Tensor:
        """The MLP up to its output projection: [B, T, width] to [B, T, channels]."""

    @abstractmethod
    def probabilities(
        self, block: nn.Module, parts: AttentionParts, normed: Tensor, context: Any
    ) -> Tensor:
        """The attention probabilities of `attend`, [B, groups * group_size, T, T]."""

    @abstractmethod
    def activated(self, block: nn.Module, parts: MlpParts, normed: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the MLP's activation function, and what `activate` makes of it.

        Both [B, T, channels], and the first is not overwritten: it can be differentiated.
        """

    @abstractmethod
    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The last hidden state [..., width] through the final norm and head: [..., vocabulary]."""

    @abstractmethod
    def uniform_config(
        self, config: PreTrainedConfig, *, depth: int, groups: int, channels: int
    ) -> PreTrainedConfig:
        """A plain configuration of this family with one width for all blocks.

        Raises:
            LmscoutError: the layout has no such configuration.
        """
