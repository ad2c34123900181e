"""Uniform plans: whole blocks dropped, and one width for all others.

A uniform plan can be saved as a plain model of its family.  Under a budget, the number of
dropped blocks and of groups leaves one choice of channels: as many as the budget allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedConfig

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import Budget
from lmscout.pruning.cutting import is_uniform
from lmscout.pruning.plan import Plan, Rows, Shape

Subsets = npt.NDArray[np.bool_]

_LISTED = 5_000  # subsets that are listed and shuffled, rather than drawn
_ENDS = 0.1  # weight of the first and the last block in draws: both are sensitive; others have 1
_MOST_DROPPED = 2  # one block in so many


def every_subset(depth: int, size: int) -> Subsets:
    """All subsets of so many blocks, [C(depth, size), depth]."""
    members = np.array(list(combinations(range(depth), size)), np.int64)
    return _of_members(members.reshape(comb(depth, size), size), depth)


def runs(depth: int, size: int) -> Subsets:
    """All subsets of adjacent blocks, [depth - size + 1, depth]; one of no blocks."""
    first = np.arange(depth - size + 1 if size else 1)[:, None]
    return _of_members(first + np.arange(size), depth)


def are_runs(subsets: Subsets) -> npt.NDArray[np.bool_]:
    """Whether the blocks of each subset [n, depth] are adjacent, [n]."""
    starts = subsets[:, 0] + (subsets[:, 1:] & ~subsets[:, :-1]).sum(axis=1)
    return np.asarray(starts <= 1)


def drawn_subsets(depth: int, size: int, count: int, rng: np.random.Generator) -> Subsets:
    """Distinct subsets in random order, those with the first or the last block late.

    Returns:
        [n, depth]; at most `count`, and few less unless there are no more.
    """
    if comb(depth, size) <= max(4 * count, _LISTED):
        return in_random_order(every_subset(depth, size), rng)[:count]
    # The largest of keys with Gumbel noise are a draw without replacement by weight.
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
    each = np.arange(len(others))
    others[each, np.repeat(inside, len(outside))] = False
    others[each, np.tile(outside, len(inside))] = True
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


class UniformSize(NamedTuple):
    """Number of dropped blocks, and the groups and channels of every other block."""

    dropped: int
    groups: int
    channels: int


@dataclass(frozen=True)
class UniformChoices:
    """The sizes that plain models of a family may have.

    Attributes:
        depth: blocks of the dense model.
        dropped: numbers of blocks that may be dropped, ascending from 0.
        groups: numbers of groups that kept blocks may have, ascending.
        channels: of a dense block.
    """

    depth: int
    dropped: tuple[int, ...]
    groups: tuple[int, ...]
    channels: int

    @classmethod
    def of(cls, shape: Shape, config: PreTrainedConfig) -> UniformChoices:
        """The sizes that transformers accepts of a model's family.

        Args:
            shape: of the dense model.
            config: the dense model's.

        Raises:
            LmscoutError: blocks differ in size, or there is no plain form at all.
        """
        kinds = (shape.groups, shape.channels, shape.group_parameters, shape.channel_parameters)
        if any(len(set(kind)) > 1 for kind in kinds):
            raise LmscoutError(
                "the blocks of this model have different sizes, so that no plain model of its "
                "family is a part of it: save it with shape any"
            )
        depth, channels = shape.depth, shape.channels[0]

        def plan(groups: int, blocks: int) -> Plan:
            gone = (0,) * (depth - blocks)
            return Plan((groups,) * blocks + gone, (channels,) * blocks + gone)

        allowed = range(1, shape.groups[0] + 1)
        groups = tuple(number for number in allowed if is_uniform(plan(number, depth), config))
        if not groups:
            raise LmscoutError(
                f"{config.model_type} has no plain form of this model: save it with shape any"
            )
        most = depth // _MOST_DROPPED
        if most and not is_uniform(plan(groups[-1], depth - 1), config):
            most = 0
        return cls(depth, tuple(range(most + 1)), groups, channels)

    def sizes(self, budget: Budget) -> tuple[UniformSize, ...]:
        """Maximal sizes: one more channel in every kept block would exceed the budget.

        Sizes whose blocks have
        all their channels count where they use the budget up, to its slack or to a channel per
        block; if a budget has no slack, where neither a block more nor more groups fit.

        Args:
            budget: one whose cost is the same for all blocks.

        Raises:
            LmscoutError: there is none; it names the nearest budget that can be met.
        """
        dropped, groups = np.meshgrid(self.dropped, self.groups, indexing="ij")
        grid = np.stack([dropped.ravel(), groups.ravel()], axis=1)

        def cost(channels: Rows) -> npt.NDArray[np.float64]:
            """Of each size; which blocks it drops does not matter."""
            kept = np.arange(self.depth) >= grid[:, :1]
            return budget.cost(
                np.concatenate([kept * grid[:, 1:], kept * channels[:, None]], axis=1)
            )

        channels, high = np.zeros(len(grid), np.int64), np.full(len(grid), self.channels)
        while (channels < high).any():
            middle = (channels + high + 1) // 2
            fits = cost(middle) <= budget.limit
            channels, high = np.where(fits, middle, channels), np.where(fits, high, middle - 1)
        full, costs = channels == self.channels, cost(channels)
        if budget.slack is None:
            table = np.pad(full.reshape(dropped.shape), ((1, 0), (0, 1)))
            used_up = ~(full & (table[:-1, :-1] | table[1:, 1:]).ravel())
        else:
            step = costs - cost(np.maximum(channels - 1, 0))
            used_up = ~full | (budget.limit - costs <= np.maximum(budget.slack, step))
        chosen = (channels > 0) & used_up
        if not chosen.any():
            above = cost(np.minimum(channels + 1, self.channels))
            found = np.concatenate([costs[channels > 0], above[~full]])
            nearest = float(found[np.argmin(np.abs(found - budget.limit))])
            raise budget.nearest(nearest, "uniform plan")
        return tuple(
            UniformSize(*size)
            for size in np.column_stack([grid[chosen], channels[chosen]]).tolist()
        )


@dataclass(frozen=True)
class UniformPlans:
    """The uniform plans of one budget: each size with each choice of blocks to drop.

    Attributes:
        depth: blocks of the dense model.
        sizes: that meet the budget.
    """

    depth: int
    sizes: tuple[UniformSize, ...]

    @property
    def count(self) -> int:
        """Number of plans."""
        return sum(comb(self.depth, one.dropped) for one in self.sizes)

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] are of the set, [n]."""
        groups, channels = rows[:, : self.depth], rows[:, self.depth :]
        width = np.stack([groups.max(axis=1), channels.max(axis=1)], axis=1)
        kept = (groups > 0) | (channels > 0)
        even = (groups == kept * width[:, :1]).all(axis=1)
        even &= (channels == kept * width[:, 1:]).all(axis=1)
        dropped = self.depth - kept.sum(axis=1)
        sizes = np.column_stack([dropped, width])
        return np.asarray(even & (sizes[:, None] == np.array(self.sizes)).all(axis=2).any(axis=1))

    def every(self) -> Rows:
        """All plans, [count, 2L]."""
        return np.concatenate(
            [self._rows(every_subset(self.depth, one.dropped), one) for one in self.sizes]
        )

    def drawn(self, count: int, rng: np.random.Generator) -> Rows:
        """About so many distinct plans, as many of each size, [n, 2L]."""
        each = -(-count // len(self.sizes))
        return np.concatenate([np.concatenate(self.of_size(one, each, rng)) for one in self.sizes])

    def of_size(self, size: UniformSize, count: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """Distinct plans of one size, in random order: those that drop a run, and others.

        The first block and the last are rarely dropped.

        Returns:
            [m, 2L] and [n, 2L]; all plans of the size if there are no more than `count`.
        """
        adjacent = in_random_order(runs(self.depth, size.dropped), rng)
        others = drawn_subsets(self.depth, size.dropped, count, rng)
        return self._rows(adjacent, size), self._rows(others[~are_runs(others)], size)

    def neighbours(self, rows: Rows) -> Rows:
        """All plans one step away from given ones of the set, [n, 2L], distinct, sorted.

        A step drops one block in place of another, or one more or one less, or changes the
        number of groups; where the number of dropped blocks changes, groups change as little
        as that allows.
        """
        steps = [rows[:0]]
        for row in rows:
            subset = row[: self.depth] == 0
            gone, groups = int(subset.sum()), int(row[: self.depth].max())
            for size in self.sizes:
                if size.dropped == gone:
                    others = swapped(subset) if size.groups == groups else subset[None]
                    steps.append(self._rows(others, size))
                elif abs(size.dropped - gone) == 1 and size == self._nearest(size.dropped, groups):
                    others = changed_by_one(subset, size.dropped > gone)
                    steps.append(self._rows(others, size))
        return np.unique(np.concatenate(steps), axis=0)

    def projected(self, plans: Iterable[Plan]) -> Rows:
        """Uniform plans of any size as plans of the set that drop the same blocks, [n, 2L].

        Groups change as little as that allows; a plan is left out if it is not uniform, or if
        no size of the set drops as many blocks.
        """
        rows = [np.zeros((0, 2 * self.depth), np.int64)]
        for plan in plans:
            widths = {(plan.attention[block], plan.mlp[block]) for block in plan.kept}
            if len(widths) == 1:
                ((groups, _),) = widths
                size = self._nearest(len(plan.dropped), groups)
                if size is not None:
                    subset = np.isin(np.arange(self.depth), plan.dropped)
                    rows.append(self._rows(subset[None], size))
        return np.concatenate(rows)

    def _nearest(self, dropped: int, groups: int) -> UniformSize | None:
        """The size of so many dropped blocks whose groups are nearest."""
        sizes = [one for one in self.sizes if one.dropped == dropped]
        return min(sizes, key=lambda one: abs(one.groups - groups), default=None)

    def _rows(self, subsets: Subsets, size: UniformSize) -> Rows:
        return np.concatenate([~subsets * size.groups, ~subsets * size.channels], axis=1)
