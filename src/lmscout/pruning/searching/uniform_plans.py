"""The uniform plans of one budget: each size with each choice of blocks to drop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb

import numpy as np
import numpy.typing as npt

from lmscout.pruning.searching.block_subsets import (
    Subsets,
    are_runs,
    changed_by_one,
    drawn_subsets,
    every_subset,
    in_random_order,
    runs,
    swapped,
)
from lmscout.pruning.searching.uniform_sizes import UniformSize
from lmscout.pruning.subnetworks.plan import Plan
from lmscout.pruning.subnetworks.plan_arrays import Rows


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
