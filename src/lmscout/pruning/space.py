"""Spaces of plans: blocks of any width, of widths in steps, or uniform.

A uniform plan drops whole blocks and has one width for all others, so it can be saved as a plain
model of its family.  Under a budget, the number of dropped blocks and of groups leaves one choice
of channels: as many as the budget allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import Budget
from lmscout.pruning.plan import Plan, Rows, Shape, dense_row, unit_parameters
from lmscout.pruning.ranges import Ranges, Target, best_pairs
from lmscout.pruning.study import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

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
    """Some distinct subsets, [<= count, depth], those with the first or the last block late."""
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
    others = np.tile(subset, (len(inside), len(outside), 1))
    np.put_along_axis(others, inside[:, None, None], False, axis=2)
    np.put_along_axis(others, outside[None, :, None], True, axis=2)
    return others.reshape(-1, len(subset))


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
    """The sizes that plain models of a family may have."""

    depth: int  # blocks of the dense model
    dropped: tuple[int, ...]  # numbers of blocks that may be dropped, ascending from 0
    groups: tuple[int, ...]  # numbers of groups that kept blocks may have, ascending
    channels: int  # of a dense block

    @classmethod
    def of(cls, shape: Shape, config: PreTrainedConfig) -> UniformChoices:
        """The sizes that transformers accepts of a family; LmscoutError if there are none."""
        from lmscout.pruning.cutting import is_uniform

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

        Blocks cost the same.  Sizes whose blocks have all their channels count where they use the
        budget up, to its slack or to a channel per block; if a budget has no slack, where neither
        a block more nor more groups fit.  LmscoutError names the nearest budget if there are none.
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
        sizes = np.column_stack([grid[chosen], channels[chosen]])
        return tuple(UniformSize(*size) for size in sizes.tolist())


@dataclass(frozen=True)
class UniformPlans:
    """The uniform plans of one budget: each of its sizes with each choice of blocks to drop."""

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
        """Distinct plans of one size, [m, 2L] that drop a run and [n, 2L] others, `count` at most.

        They are in random order; the first block and the last are rarely dropped.
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
            size = self._nearest(len(plan.dropped), max(plan.attention))
            if len(widths) == 1 and size is not None:
                subset = np.isin(np.arange(self.depth), plan.dropped)
                rows.append(self._rows(subset[None], size))
        return np.concatenate(rows)

    def _nearest(self, dropped: int, groups: int) -> UniformSize | None:
        """The size of so many dropped blocks whose groups are nearest."""
        sizes = [one for one in self.sizes if one.dropped == dropped]
        return min(sizes, key=lambda one: abs(one.groups - groups), default=None)

    def _rows(self, subsets: Subsets, size: UniformSize) -> Rows:
        return np.concatenate([~subsets * size.groups, ~subsets * size.channels], axis=1)


@dataclass(frozen=True)
class PlanSpace:
    """The plans that are proposed and searched.

    Blocks that vary change in *steps* of one group, or of all of a block, and of `multiple`
    channels; the last step of a width is smaller if the width is no multiple.  A matrix product
    whose inner size is no multiple of eight numbers takes three times as long on a GPU with
    tensor cores.
    """

    shape: Shape  # of the dense model
    multiple: int = 1  # channels per step of an MLP width
    uniform: UniformChoices | None = None  # of plans whose blocks are alike; None if blocks vary
    whole_attention: bool = False  # whether a block keeps all of its groups, or none

    @cached_property
    def ranges(self) -> Ranges:
        """What blocks that vary may keep: a tenth of their units on.

        With whole attention anything, but for the first block, which keeps its attention.
        """
        if not self.whole_attention:
            return Ranges.above(self.shape)
        dense = dense_row(self.shape)
        return Ranges.of_rows(dense * (np.arange(len(dense)) == 0), dense)

    @property
    def narrows(self) -> bool:
        """Whether blocks vary by themselves, so that each has a range."""
        return self.uniform is None

    @property
    def name(self) -> str:
        """The kind of plans, for records."""
        if self.whole_attention:
            return "whole attention"
        return "uniform" if self.uniform else f"widths in steps of {self.multiple}"

    @cached_property
    def steps(self) -> Shape:
        """The dense model as if a step was a unit."""
        steps, each = self.to_steps(dense_row(self.shape)), self.each
        parameters = each * unit_parameters(self.shape)
        halves = (
            tuple(half.tolist()) for both in (steps, parameters) for half in np.split(both, 2)
        )
        return Shape(*halves)

    def to_units(self, rows: Rows) -> Rows:
        """Rows [n, 2L] of steps, in units."""
        units: Rows = np.minimum(rows * self.each, dense_row(self.shape))
        return units

    def to_steps(self, rows: Rows) -> Rows:
        """Rows [n, 2L] of units, in steps, rounded up."""
        steps: Rows = -(-rows // self.each)
        return steps

    def in_steps(self, target: Target) -> Target:
        """A target for rows of steps."""
        if (self.each == 1).all():
            return target
        ranges = Ranges.of_rows(*self.to_steps(target.ranges.rows))
        return Target(self._budget_in_steps(target.budget), ranges)

    def plans(self, budget: Budget) -> UniformPlans:
        """The plans of a uniform space that meet a budget; LmscoutError if there are none."""
        assert self.uniform is not None
        return UniformPlans(self.shape.depth, self.uniform.sizes(budget))

    def require(self, budget: Budget, ranges: Ranges | None = None) -> None:
        """Raise LmscoutError, with the nearest that can be met, if no plan meets a budget.

        Blocks that vary lie within ranges, by default those of the space.
        """
        if self.uniform is not None:
            self.uniform.sizes(budget)
        else:
            target = self.in_steps(Target(budget, ranges or self.ranges))
            target.ranges.require(target.budget)

    def meets(self, rows: Rows, budget: Budget) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] are of this space and use a budget up, [n].

        `Budget.meets` is stricter in small models, where a step is more than its slack.
        """
        if self.uniform is not None:
            return self.plans(budget).holds(rows)
        if (self.each == 1).all():
            return budget.meets(rows)
        steps = self.to_steps(rows)
        on_grid = (self.to_units(steps) == rows).all(axis=1)
        return np.asarray(on_grid & self._budget_in_steps(budget).meets(steps))

    def best_pairs(
        self, pairs: Sequence[Pair], budget: Budget, count: int, ranges: Ranges | None = None
    ) -> list[Pair]:
        """The best complete pairs whose plans are of this space and meet a budget, best first.

        Blocks that vary lie within ranges, by default those of the space.
        """
        within = self.in_steps(Target(budget, ranges or self.ranges)).ranges

        def holds(rows: Rows) -> npt.NDArray[np.bool_]:
            met = self.meets(rows, budget)
            return met if self.uniform else met & within.holds(self.to_steps(rows))

        return best_pairs(pairs, holds, count)

    @cached_property
    def each(self) -> Rows:
        """Units per step, [2L]."""
        groups = self.shape.groups if self.whole_attention else (1,) * self.shape.depth
        return np.array([*groups, *[self.multiple] * self.shape.depth], np.int64)

    def _budget_in_steps(self, budget: Budget) -> Budget:
        """The budget of rows in steps: smaller tables of the same costs."""
        columns = zip(dense_row(self.steps), self.each, dense_row(self.shape), strict=True)
        counts = [np.minimum(np.arange(steps + 1) * each, most) for steps, each, most in columns]
        return budget.in_steps(counts)


def space_of(kind: str, shape: Shape, model: PreTrainedModel, multiple: int = 1) -> PlanSpace:
    """The space of a ``--shape``; LmscoutError if the model has no form of this kind."""
    if kind == "deci":
        from lmscout.evaluation.modeling_lmscout import WIDTH_STEP
        from lmscout.pruning.cutting import deci_config

        deci_config(model.config, shape.dense)
        return PlanSpace(shape, WIDTH_STEP, whole_attention=True)
    if kind == "uniform":
        return PlanSpace(shape, uniform=UniformChoices.of(shape, model.config))
    return PlanSpace(shape, multiple)


def fast_multiple(model: PreTrainedModel) -> int:
    """The channel multiple with which a model runs fast: tensor cores take rows of 16 bytes."""
    experts = getattr(model.config, "num_experts", None)  # which are counted in place of channels
    return 16 // model.dtype.itemsize if model.device.type == "cuda" and not experts else 1
