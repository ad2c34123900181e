"""One low-rank adapter for all plans of a dense model.

What an adapter adds to a matrix is B A.  Its first rows are those of B, its first columns those
of A; so the adapter of a plan's prefix is a prefix of the adapter, and adding B A to the dense
weights gives weights of which every prefix is adapted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.pruning.families import (
    Affine,
    AttentionParts,
    Family,
    MlpParts,
    unit_maps,
)
from lmscout.pruning.subnetworks.activations import half_step
from lmscout.pruning.subnetworks.plan import Plan


@dataclass(frozen=True)
class LowRank(Affine):
    """A linear map with its adapter.

    Attributes:
        down: [rank, in], A.
        up: [out, rank], B.
    """

    down: Tensor
    up: Tensor

    def rows(self, count: int) -> LowRank:
        """The first outputs alone."""
        first = super().rows(count)
        return LowRank(first.weight, first.bias, self.down, self.up[:count])

    def columns(self, count: int) -> LowRank:
        """The first inputs alone."""
        return LowRank(self.weight[:, :count], self.bias, self.down[:, :count], self.up)

    def apply(self, x: Tensor) -> Tensor:
        """The map and what the adapter adds."""
        narrow = functional.linear(x.to(self.down.dtype), self.down)
        return super().apply(x) + functional.linear(narrow, self.up).to(x.dtype)


class ElasticAdapter:
    """Adapters of every matrix whose sides follow units.

    Attributes:
        weights: what learns, by name; float32 or wider.
        vocabulary: how many logits a token has.
    """

    def __init__(self, model: PreTrainedModel, family: Family, rank: int, seed: int) -> None:
        """Adapters that add nothing yet.

        Args:
            model: the dense model, its units in final order; its own weights do not learn.
            family: its family.
            rank: of the adapters.
            seed: of the first half, A; B starts at 0.
        """
        self._model, self._family = model, family
        self.vocabulary: int = model.config.vocab_size
        self._blocks = list(family.blocks(model))
        self._halves = family.all_halves(model)
        self.weights: dict[str, nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed)
        for (index, kind), part in self._halves.items():
            for number, one in enumerate(unit_maps(part)):
                out, entries = one.weight.shape
                wide = torch.promote_types(one.weight.dtype, torch.float32)
                down = torch.randn(rank, entries, generator=generator) / entries**0.5
                up = torch.zeros(out, rank)
                name = f"{index}.{kind}.{number}"
                self.weights[f"{name}.down"] = nn.Parameter(down.to(one.weight.device, wide))
                self.weights[f"{name}.up"] = nn.Parameter(up.to(one.weight.device, wide))

    def hidden(self, plan: Plan, tokens: Tensor) -> Tensor:
        """The last hidden state of an adapted plan, with its gradient: [B, T, width]."""
        return self._walk(plan.steps, tokens, adapted=True)

    @torch.no_grad()
    def dense_hidden(self, tokens: Tensor) -> Tensor:
        """That of the dense model as it is."""
        return self._walk([part.units for part in self._halves.values()], tokens, adapted=False)

    def head(self, hidden: Tensor) -> Tensor:
        """Last hidden states to logits."""
        return self._family.logits(self._model, hidden)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapters to the dense weights, in place, one matrix at a time."""
        for (index, kind), part in self._halves.items():
            for number, one in enumerate(unit_maps(part)):
                down, up = self._pair(index, kind, number)
                one.weight.copy_(one.weight.to(down.dtype) + up @ down)

    def _walk(self, steps: Sequence[int], tokens: Tensor, *, adapted: bool) -> Tensor:
        hidden = self._family.embed(self._model, tokens)
        context = self._family.context(self._model, hidden)
        for ((index, kind), whole), units in zip(self._halves.items(), steps, strict=True):
            if units:
                part = self._adapted(index, kind, whole) if adapted else whole
                block = self._blocks[index]
                hidden = half_step(self._family, block, part.first(units), hidden, context)
        return hidden

    def _adapted(
        self, index: int, kind: str, part: AttentionParts | MlpParts
    ) -> AttentionParts | MlpParts:
        """The matrices of attention or MLP, each with its adapter."""
        return part.with_maps(
            LowRank(one.weight, one.bias, *self._pair(index, kind, number))
            for number, one in enumerate(unit_maps(part))
        )

    def _pair(self, index: int, kind: str, number: int) -> tuple[Tensor, Tensor]:
        name = f"{index}.{kind}.{number}"
        return self.weights[f"{name}.down"], self.weights[f"{name}.up"]
