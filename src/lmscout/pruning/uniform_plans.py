"""Uniform plans of one budget: subsets of blocks to drop, and one width for the others.

Which blocks to drop: subsets of blocks, as rows of a boolean array.

The first block and the last are sensitive in nearly every model, so they are dropped
rarely where subsets are drawn, and never left out where all are listed.

Sizes of uniform plans: how many blocks are dropped, and one width for those that are kept.

A uniform plan can be saved as a plain model of its family.  Under a budget, the number of
dropped blocks and the groups leave one choice of channels: as many as the budget allows.

The uniform plans of one budget: each size with each choice of blocks to drop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedConfig

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import Budget
from lmscout.pruning.cutting import is_uniform
from lmscout.pruning.plan import Plan, Rows, Shape

Subsets = npt.NDArray[np.bool_]

_LISTED = 5_000  # subsets that are listed and put in random order, rather than drawn
_ENDS = 0.1  # weight of the first and the last block in draws; others have 1


def every_subset(depth: int, size: int) -> Subsets:
    """All subsets of so many blocks, [C(depth, size), depth]."""
    members = np.array(list(combinations(range(depth), size)), np.int64)
    return _of_members(members.reshape(comb(depth, size), size), depth)


def runs(depth: int, size: int) -> Subsets:
    """All subsets of adjacent blocks, [depth - size + 1, depth]; of no blocks there is one."""
    first = np.arange(depth - size + 1 if size else 1)[:, None]
    return _of_members(first + np.arange(size), depth)


def are_runs(subsets: Subsets) -> npt.NDArray[np.bool_]:
    """Whether the blocks of each subset [n, depth] are adjacent, [n]."""
    begins = subsets[:, 0] + (subsets[:, 1:] & ~subsets[:, :-1]).sum(axis=1)
    return np.asarray(begins <= 1)


def drawn_subsets(depth: int, size: int, count: int, rng: np.random.Generator) -> Subsets:
    """Distinct subsets in random order, those with the first or the last block late.

    Args:
        depth: number of blocks.
        size: of every subset.
        count: wanted.
        rng: draws them.

    Returns:
        [n, depth]; at most `count`, and fewer only where there are no more, but for a few
        that came twice.
    """
    if comb(depth, size) <= max(4 * count, _LISTED):
        return in_random_order(every_subset(depth, size), rng)[:count]
    # Of keys with Gumbel noise, the largest are a draw without replacement by weight.
    keys = _log_weights(depth) + rng.gumbel(size=(2 * count, depth))
    subsets = _of_members(np.argsort(-keys, axis=1)[:, :size], depth)
    _, first = np.unique(subsets, axis=0, return_index=True)
    return subsets[np.sort(first)][:count]


def in_random_order(subsets: Subsets, rng: np.random.Generator) -> Subsets:
    """The same subsets, those with the first or the last block late."""
    keys = subsets @ _log_weights(subsets.shape[1]) + rng.gumbel(size=len(subsets))
    return subsets[np.argsort(-keys, kind="stable")]


def swapped(subset: Subsets) -> Subsets:
    """All subsets that have another block in place of one of a subset's [depth]."""
    inside, outside = np.flatnonzero(subset), np.flatnonzero(~subset)
    others = np.tile(subset, (len(inside) * len(outside), 1))
    place = np.arange(len(others))
    others[place, np.repeat(inside, len(outside))] = False
    others[place, np.tile(outside, len(inside))] = True
    return others


def changed_by_one(subset: Subsets, present: bool) -> Subsets:
    """All subsets with one block more (`present`) or less than a subset [depth]."""
    blocks = np.flatnonzero(subset != present)
    others = np.tile(subset, (len(blocks), 1))
    others[np.arange(len(blocks)), blocks] = present
    return others


def _of_members(members: npt.NDArray[np.int64], depth: int) -> Subsets:
    subsets = np.zeros((len(members), depth), np.bool_)
    np.put_along_axis(subsets, members, True, axis=1)
    return subsets


def _log_weights(depth: int) -> npt.NDArray[np.float64]:
    weights = np.zeros(depth)
    weights[[0, -1]] = np.log(_ENDS)
    return weights


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
        update = budget.words(nearest, nearer=1 if nearest > budget.limit else -1)
        return (
            f"no uniform plan meets the budget of {budget.words(budget.limit)}: the nearest that "
            f"can be met is {update}"
        )


class UniformPlans:
    """A finite set of plans, too large to list where many blocks may be dropped of many."""

    def __init__(self, depth: int, sizes: Sequence[UniformSize]) -> None:
        """Make the set.

        Args:
            depth: blocks of the dense model.
            sizes: that meet the budget; one for each number of dropped blocks and of groups.
        """
        self.sizes = tuple(sizes)
        self._depth = depth
        self._channels = {(one.dropped, one.groups): one.channels for one in sizes}

    @property
    def count(self) -> int:
        """How many plans there are."""
        return sum(comb(self._depth, one.dropped) for one in self.sizes)

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] are of the set, [n]."""
        groups, channels = rows[:, : self._depth], rows[:, self._depth :]
        width = np.stack([groups.max(axis=1), channels.max(axis=1)], axis=1)
        kept = (groups > 0) | (channels > 0)
        even = (groups == kept * width[:, :1]).all(axis=1)
        even &= (channels == kept * width[:, 1:]).all(axis=1)
        dropped = self._depth - kept.sum(axis=1)
        known = [
            self._channels.get((gone, number)) == most
            for gone, (number, most) in zip(dropped.tolist(), width.tolist(), strict=True)
        ]
        return np.asarray(even & np.array(known, np.bool_))

    def every(self) -> Rows:
        """All plans, [count, 2L]."""
        return np.concatenate(
            [self._rows(every_subset(self._depth, one.dropped), one) for one in self.sizes]
        )

    def drawn(self, count: int, rng: np.random.Generator) -> Rows:
        """About so many distinct plans, as many of each size, [n, 2L].

        Dropped are runs of adjacent blocks, and blocks drawn at random.
        """
        each = -(-count // len(self.sizes))
        return np.concatenate([np.concatenate(self.of_size(one, each, rng)) for one in self.sizes])

    def of_size(self, size: UniformSize, count: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """Distinct plans of one size, in random order: those that drop a run, and others.

        The first block and the last are rarely dropped.

        Returns:
            [m, 2L] and [n, 2L]; all plans of the size where there are no more than `count`.
        """
        adjacent = in_random_order(runs(self._depth, size.dropped), rng)
        others = drawn_subsets(self._depth, size.dropped, count, rng)
        others = others[~are_runs(others)]
        return self._rows(adjacent, size), self._rows(others, size)

    def near(self, rows: Rows) -> Rows:
        """All plans a step away from given ones of the set.

        A step drops one block in place of another, or one more or one less, or changes the
        number of groups; where the number of dropped blocks changes, groups change as little
        as that allows.

        Returns:
            [n, 2L], distinct, sorted.
        """
        steps = [rows[:0]]
        for row in rows:
            subset = row[: self._depth] == 0
            gone, groups = int(subset.sum()), int(row[: self._depth].max())
            for size in self.sizes:
                if size.dropped == gone:
                    others = swapped(subset) if size.groups == groups else subset[None]
                    steps.append(self._rows(others, size))
            for change, present in ((-1, False), (1, True)):
                nearest = self._nearest(gone + change, groups)
                if nearest is not None:
                    steps.append(self._rows(changed_by_one(subset, present), nearest))
        return np.unique(np.concatenate(steps), axis=0)

    def moved(self, plans: Iterable[Plan]) -> Rows:
        """Uniform plans of any size as plans of the set that drop the same blocks.

        Groups change as little as that allows; a plan is left out where it is not uniform or
        no size of the set drops as many blocks.
        """
        rows = [np.zeros((0, 2 * self._depth), np.int64)]
        for plan in plans:
            dropped = plan.dropped
            kept = plan.kept
            widths = {(plan.attention[block], plan.mlp[block]) for block in kept}
            size = (
                self._nearest(len(dropped), plan.attention[kept[0]]) if len(widths) == 1 else None
            )
            if size is not None:
                subset = np.isin(np.arange(self._depth), dropped)
                rows.append(self._rows(subset[None], size))
        return np.concatenate(rows)

    def _nearest(self, dropped: int, groups: int) -> UniformSize | None:
        """The size of so many dropped blocks whose groups are nearest."""
        sizes = [one for one in self.sizes if one.dropped == dropped]
        return min(sizes, key=lambda one: abs(one.groups - groups), default=None)

    def _rows(self, subsets: Subsets, size: UniformSize) -> Rows:
        return np.concatenate([~subsets * size.groups, ~subsets * size.channels], axis=1)
