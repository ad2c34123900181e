"""Ranges of units that each block may keep, and fitting plans into them and a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lmscout.pruning.budgets import Budget
from lmscout.pruning.plan import Floats, Plan, Rows, Shape, as_plans, as_rows, dense_row
from lmscout.pruning.study import Pair

_BISECTIONS = 26  # of the interval [-1, 1] of the common shift
_PLACES = 1 << _BISECTIONS  # grid points in that interval
_INTERPOLATED = {1: -3.0, 2: 3.0, 3: -3.0, 4: 3.0}  # iteration -> units from the interpolation
_ROUNDING = 1e-9  # of a cost: more than the error of float sums
_NEARLY = 0.999  # of a budget that need not be used up: what fitting aims at


@dataclass(frozen=True)
class Ranges:
    """How many units each block may keep: at least those of `low`, at most those of `high`."""

    low: Plan
    high: Plan

    @classmethod
    def above(cls, shape: Shape, least: float = 0.1) -> Ranges:
        """From a share of every block's units, rounded up, to all of them."""
        units = dense_row(shape)
        return cls.of_rows(np.ceil(least * units - 1e-9).astype(np.int64), units)

    @classmethod
    def of_rows(cls, low: Rows, high: Rows) -> Ranges:
        """From rows [2L]."""
        return cls(*as_plans(np.stack([low, high])))

    @cached_property
    def rows(self) -> Rows:
        """The fewest and the most units, [2, 2L]."""
        return as_rows([self.low, self.high])

    def protected(self, shape: Shape) -> Ranges:
        """The same, with the first and the last sixth of the blocks unpruned."""
        whole = np.tile(protected_blocks(shape.depth), 2)
        return Ranges.of_rows(*np.where(whole, dense_row(shape), self.rows))

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] lie within, [n]."""
        low, high = self.rows
        return np.asarray(((rows >= low) & (rows <= high)).all(axis=1))

    def can_meet(self, budget: Budget) -> bool:
        """Whether some plan within meets the budget."""
        least, most = budget.cost(self.rows)
        return bool(least <= budget.limit and most >= budget.least_use)

    def require(self, budget: Budget) -> None:
        """Raise LmscoutError, with the nearest that can be met, if no plan meets a budget."""
        if not self.can_meet(budget):
            least, most = budget.cost(self.rows)
            raise budget.nearest(float(least if least > budget.limit else most))


@dataclass(frozen=True, eq=False)
class Target:
    """A size for which plans are sought: they meet the budget, and lie within the ranges."""

    budget: Budget
    ranges: Ranges

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] lie within the ranges and meet the budget, [n]."""
        return self.ranges.holds(rows) & self.budget.meets(rows)


def protected_blocks(depth: int) -> tuple[bool, ...]:
    """Which blocks are among the first or the last sixth, rounded, one at least."""
    count = max(1, round(depth / 6))
    return tuple(block < count or block >= depth - count for block in range(depth))


def uniform(shape: Shape, ranges: Ranges, budget: Budget) -> Plan:
    """The plan that keeps the same share of every block, as far as ranges allow it."""
    units = dense_row(shape)
    low, high = ranges.rows
    below, above = 0.0, 1.0
    for _ in range(_BISECTIONS):
        share = (below + above) / 2
        rows = np.clip(np.rint(share * units), low, high).astype(np.int64)[None]
        enough = bool(budget.cost(rows)[0] <= budget.limit)
        below, above = (share, above) if enough else (below, share)
    return as_plans(fit((below * units)[None], ranges, budget))[0]


def fit(
    wanted: npt.NDArray[np.floating] | Rows, ranges: Ranges | tuple[Rows, Rows], budget: Budget
) -> Rows:
    """Plans near to fractional ones that lie within ranges and meet a budget.

    Groups are rounded with the error carried from block to block.  Channels then
    move towards their bounds by one common share of the distance, the largest within the budget,
    found by bisection; they are rounded at staggered thresholds, so that they step one at a time.
    Where channels alone cannot meet the budget, groups move first, in the same way.

    Args:
        wanted: [n, 2L] units.
        ranges: for all plans, or (low, high) rows, [2L] or [n, 2L], for each.
        budget: one that the ranges can meet.

    Returns:
        [n, 2L]; every row costs at most the limit.  Under a budget of parameters one channel
        more would exceed it, unless there is none, and such a plan is its own fit.
    """
    low, high = ranges.rows if isinstance(ranges, Ranges) else ranges
    low, high = np.broadcast_to(low, wanted.shape), np.broadcast_to(high, wanted.shape)
    depth = wanted.shape[1] // 2
    enough = _NEARLY * budget.limit if budget.slack is None else budget.least_use
    near = np.clip(np.asarray(wanted, np.float64), low, high)
    near[:, :depth] = _rounded(near[:, :depth], low[:, :depth], high[:, :depth])
    groups, channels = np.s_[:, :depth], np.s_[:, depth:]

    # Where channels at either end of their range cannot meet the budget, groups move.
    for extreme, upwards in ((low, False), (high, True)):
        ends = near.copy()
        ends[channels] = extreme[channels]
        costs = budget.cost(ends.astype(np.int64))
        stuck = costs < enough if upwards else costs > budget.limit
        if stuck.any():
            moved = _shifted(ends[stuck], low[stuck], high[stuck], groups, budget)
            if upwards:  # add the step that passes the limit, if channels can make up for it
                raised = _raised_groups(moved, high[stuck], depth, budget, enough)
                least = np.where(np.arange(2 * depth) < depth, raised, low[stuck])
                moved = np.where((budget.cost(least) <= budget.limit)[:, None], raised, moved)
            near[stuck, :depth] = moved[groups]
    return _filled(_shifted(near, low, high, channels, budget), high, budget)


def _rounded(wanted: Floats, low: Rows, high: Rows) -> Floats:
    """Whole groups, the rounding error of a block carried to the next."""
    whole = np.empty_like(wanted)
    carried = np.zeros(len(wanted))
    for block in range(wanted.shape[1]):
        due = wanted[:, block] + carried
        whole[:, block] = np.minimum(np.maximum(np.rint(due), low[:, block]), high[:, block])
        carried = np.minimum(np.maximum(due - whole[:, block], -1.0), 1.0)
    return whole


def _shifted(
    near: Floats, low: Rows, high: Rows, columns: tuple[slice, slice], budget: Budget
) -> Rows:
    """Move columns by the largest common share of their room that the budget allows."""
    start = near[columns]
    down, up = start - low[columns], high[columns] - start
    count = start.shape[1]
    threshold = (np.arange(count) + 0.5) / count
    whole, least, most = near.astype(np.int64), low[columns], high[columns]

    def moved(some: Rows, place: Rows) -> Rows:
        """Some plans, moved by a share that is a place among `_PLACES` from -1 to 1."""
        share = (place * (2.0 / _PLACES) - 1.0)[:, None]
        step = share * np.where(share > 0, up[some], down[some])
        rows: Rows = whole[some]
        rows[columns] = np.minimum(
            np.maximum(np.floor(start[some] + step + threshold + 1e-9), least[some]), most[some]
        )
        return rows

    # The last place that the budget allows is known once one unit lies between the bounds.
    some = np.arange(len(near))
    below, above = np.zeros(len(near), np.int64), np.full(len(near), _PLACES)
    under, over = moved(some, below), moved(some, above)
    under_cost, over_cost = budget.cost(under), budget.cost(over)
    ends = over_cost <= budget.limit
    under[ends], below[ends] = over[ends], _PLACES
    for trial in range(_BISECTIONS + 3):
        between = (over[some] - under[some]).sum(axis=1)
        open_ = (between > 1) & (above[some] - below[some] > 1)
        some, between = some[open_], between[open_]
        if not len(some):
            break
        first, width = below[some], above[some] - below[some]
        middle = first + width // 2
        if trial in _INTERPOLATED:  # costs per unit are similar, so interpolation comes close
            part = (budget.limit - under_cost[some]) / (over_cost[some] - under_cost[some])
            guess = first + np.rint(width * (part + _INTERPOLATED[trial] / between)).astype(int)
            middle = np.clip(guess, first + 1, above[some] - 1)
        rows = moved(some, middle)
        costs = budget.cost(rows)
        fits = costs <= budget.limit
        lower, upper = some[fits], some[~fits]
        below[lower], under[lower], under_cost[lower] = middle[fits], rows[fits], costs[fits]
        above[upper], over[upper], over_cost[upper] = middle[~fits], rows[~fits], costs[~fits]
    return under


def _raised_groups(rows: Rows, high: Rows, depth: int, budget: Budget, enough: float) -> Rows:
    """Groups added in the first blocks that have room, until a plan costs enough."""
    raised = rows.copy()
    for block in range(depth):
        for _ in range(int((high - raised)[:, block].max(initial=0))):
            short = (budget.cost(raised) < enough) & (raised < high)[:, block]
            if not short.any():
                break
            raised[short, block] += 1
    return raised


def _filled(rows: Rows, high: Rows, budget: Budget) -> Rows:
    """Single channels added where channels that step together left room for them."""
    filled = rows.copy()
    depth = rows.shape[1] // 2
    costs = budget.cost(rows)
    room = (budget.limit - costs + _ROUNDING * np.abs(costs))[:, None]
    may = (rows < high)[:, depth:] & (budget.least_steps[depth:] <= room)
    for column in np.flatnonzero(may.any(axis=0)):
        some = np.flatnonzero(may[:, column])
        more = filled[some]
        more[:, depth + column] += 1
        fits = budget.cost(more) <= budget.limit
        filled[some[fits]] = more[fits]
    return filled


def best_pairs(
    pairs: Sequence[Pair], holds: Callable[[Rows], npt.NDArray[np.bool_]], count: int
) -> list[Pair]:
    """The best complete pairs of a set of plans, best first; equal ones by their plans.

    `holds` says which plans [n, 2L] are of the set, [n], such as `Target.holds`.
    """
    complete = [pair for pair in pairs if not pair.partial]
    if not complete:
        return []
    chosen = holds(as_rows([pair.plan for pair in complete]))
    found = [complete[place] for place in np.flatnonzero(chosen)]
    return sorted(found, key=lambda one: (one.value, one.plan.attention, one.plan.mlp))[:count]
