"""Sizes of uniform plans: how many blocks are dropped, and one width for those that are kept.

A uniform plan can be saved as a plain model of its family.  Under a budget, the number of
dropped blocks and the groups leave one choice of channels: as many as the budget allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedConfig

from lmscout.errors import LmscoutError
from lmscout.pruning.saving.cutting import is_uniform
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.plan_arrays import Rows

_MOST_DROPPED = 2  # one block in so many


@dataclass(frozen=True)
class UniformSize:
    """What all kept blocks of a plan have in common.

    Attributes:
        dropped: number of blocks dropped whole.
        groups: of every other block.
        channels: likewise.
    """

    dropped: int
    groups: int
    channels: int


@dataclass(frozen=True)
class UniformChoices:
    """What a plain model of a family may be.

    Attributes:
        depth: blocks of the dense model.
        dropped: numbers of blocks that may be dropped, rising from 0.
        groups: numbers of groups that kept blocks may have, rising.
        channels: of a dense block.
    """

    depth: int
    dropped: tuple[int, ...]
    groups: tuple[int, ...]
    channels: int

    @classmethod
    def of(cls, shape: Shape, config: PreTrainedConfig) -> UniformChoices:
        """What transformers accepts of a model's family.

        Args:
            shape: of the dense model.
            config: the dense model's.

        Raises:
            LmscoutError: blocks are not alike, or there is no plain form at all.
        """
        kinds = (shape.groups, shape.channels, shape.group_parameters, shape.channel_parameters)
        if any(len(set(kind)) > 1 for kind in kinds):
            raise LmscoutError(
                "the blocks of this model have different sizes, so that no plain model of its "
                "family is a part of it: save it with --shape any"
            )
        depth, channels = shape.depth, shape.channels[0]
        groups = tuple(
            number
            for number in range(1, shape.groups[0] + 1)
            if is_uniform(Plan((number,) * depth, (channels,) * depth), config)
        )
        if not groups:
            raise LmscoutError(
                f"{config.model_type} has no plain form of this model: save it with --shape any"
            )
        most = depth // _MOST_DROPPED
        kept = (True,) * (depth - 1) + (False,)
        shorter = Plan(
            tuple(groups[-1] * one for one in kept), tuple(channels * one for one in kept)
        )
        if most and not is_uniform(shorter, config):
            most = 0
        return cls(depth, tuple(range(most + 1)), groups, channels)

    def sizes(self, budget: Budget) -> tuple[UniformSize, ...]:
        """All sizes that use a budget up, as far as whole channels in every block do.

        A channel more in every kept block would exceed the budget.  Sizes whose blocks have
        all their channels count where they use the budget up, to its slack or to a channel a
        block; where a budget has no slack, if neither a block more nor more groups fit.

        Args:
            budget: one that costs blocks alike.

        Raises:
            LmscoutError: there is none; it names the nearest budget that can be met.
        """
        grid = self._grid()
        channels = self._most_channels(grid, budget)
        full = channels == self.channels
        if budget.slack is None:
            table = np.pad(full.reshape(len(self.dropped), -1), ((1, 0), (0, 1)))
            larger = (table[:-1, :-1] | table[1:, 1:]).ravel()
            spent = ~(full & larger)
        else:
            costs = budget.cost(self._rows(grid, channels))
            step = costs - budget.cost(self._rows(grid, np.maximum(channels - 1, 0)))
            spent = ~full | (budget.limit - costs <= np.maximum(budget.slack, step))
        chosen = (channels > 0) & spent
        if not chosen.any():
            raise LmscoutError(self._nearest(grid, channels, budget))
        return tuple(
            UniformSize(int(dropped), int(groups), int(number))
            for (dropped, groups), number in zip(grid[chosen], channels[chosen], strict=True)
        )

    def _grid(self) -> Rows:
        """Every number of dropped blocks with every number of groups, [n, 2]."""
        dropped, groups = np.meshgrid(self.dropped, self.groups, indexing="ij")
        return np.stack([dropped.ravel(), groups.ravel()], axis=1)

    def _rows(self, grid: Rows, channels: Rows) -> Rows:
        """A plan of each size, [n, 2L]; which blocks it drops does not matter."""
        kept = np.arange(self.depth) >= grid[:, :1]
        return np.concatenate([kept * grid[:, 1:], kept * channels[:, None]], axis=1)

    def _most_channels(self, grid: Rows, budget: Budget) -> Rows:
        """The most channels with which a size costs no more than the limit, or 0, [n]."""
        low, high = np.zeros(len(grid), np.int64), np.full(len(grid), self.channels)
        while (low < high).any():
            middle = (low + high + 1) // 2
            fits = budget.cost(self._rows(grid, middle)) <= budget.limit
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        return low

    def _nearest(self, grid: Rows, channels: Rows, budget: Budget) -> str:
        """The message about a budget that no size meets."""
        below = budget.cost(self._rows(grid, channels))[channels > 0]
        above = budget.cost(self._rows(grid, np.minimum(channels + 1, self.channels)))
        costs = np.concatenate([below, above[channels < self.channels]])
        nearest = float(costs[np.argmin(np.abs(costs - budget.limit))])
        told = budget.words(nearest, nearer=1 if nearest > budget.limit else -1)
        return (
            f"no uniform plan meets the budget of {budget.words(budget.limit)}: the nearest that "
            f"can be met is {told}"
        )
