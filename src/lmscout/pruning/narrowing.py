"""Narrowing the ranges of blocks by partial dependence of the predicted loss increase.

For each column, plans around the best are changed to keep more or fewer units there, at the same
size: the other columns share what it gains or loses.  Changes at one size are what pairs of one
size can teach, and what a search at that size can use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmscout.pruning.budgets import Budget
from lmscout.pruning.plan import Floats, Rows, Shape, as_rows, dense_row
from lmscout.pruning.predictor import Predictor
from lmscout.pruning.ranges import Ranges, Target, best_pairs, fit
from lmscout.pruning.study import Pair

INSENSITIVE, SENSITIVE = "insensitive", "sensitive"

_ELITE = 12  # best measured plans, around which the dependence is computed
_POINTS = 13  # numbers of units tried in a range
_LEAST_WIDTH = 0.3  # of a block's units: no range gets narrower
_MOST_AT_ONCE = 0.5  # of a range: no more is given up in one narrowing
_MARGIN = 3.0  # typical errors of the predictor by which a part of a range must be worse


@dataclass(frozen=True)
class NarrowingStep:
    """One narrowing of adjacent blocks, and its reason; numbers are means over the blocks.

    Attributes:
        kind: "attention" or "mlp".
        blocks: first and last block.
        verdict: "insensitive", where the range lost its upper end, or "sensitive", where
            it lost its lower.
        keeping: share of units to which `cost` refers.
        instead_of: share of units that it is compared to.
        cost: predicted change of the loss increase in nats/token, at the same size.
        left: the range after it, as shares of units.
        pairs: number of measured pairs that it follows from.
        size: position of its size among those of the run.
    """

    kind: str
    blocks: tuple[int, int]
    verdict: str
    keeping: float
    instead_of: float
    cost: float
    left: tuple[float, float] = (0.0, 1.0)
    pairs: int = 0
    size: int = 0

    @property
    def words(self) -> str:
        """One sentence."""
        first, last = self.blocks
        name = f"block {first}" if first == last else f"blocks {first}-{last}"
        change = f"{'costs' if self.cost >= 0 else 'saves'} {abs(self.cost):.3f} nats"
        return (
            f"{name} {self.kind} is {self.verdict}: keeping {self.keeping:.0%} instead of "
            f"{self.instead_of:.0%}, at the same size, {change}"
        )


class Dependence(NamedTuple):
    """By units [points] of one column, ascending: mean loss increase, [points], nats/token."""

    units: Rows
    loss_increase: Floats


def partial_dependence(
    predictor: Predictor, shape: Shape, ranges: Ranges, budget: Budget, around: Rows, measured: Rows
) -> tuple[Dependence, ...]:
    """Compute how the predicted loss increase depends on each column of a row, at one size.

    Plans `around` [n, 2L] are varied, a column between the units of `measured` plans [m, 2L].

    Returns:
        One per column, without numbers of units at which the others cannot meet the budget.
    """
    low, high = ranges.rows
    fewest = np.maximum(low, measured.min(axis=0))
    most = np.minimum(high, measured.max(axis=0))
    every = []
    for least, largest in zip(fewest, most, strict=True):
        points = np.unique(np.rint(np.linspace(least, largest, _POINTS)))
        every.append(points[(points >= least) & (points <= largest)].astype(np.int64))
    # All columns at once: plans [columns x around x points].
    counts = [len(around) * len(points) for points in every]
    wanted = np.concatenate([np.repeat(around, len(points), axis=0) for points in every])
    varied = np.repeat(np.arange(2 * shape.depth), counts)
    each = np.arange(len(wanted))
    wanted[each, varied] = np.concatenate([np.tile(points, len(around)) for points in every])
    lows, highs = np.tile(low, (len(wanted), 1)), np.tile(high, (len(wanted), 1))
    lows[each, varied] = highs[each, varied] = wanted[each, varied]
    rows = fit(wanted, (lows, highs), budget)
    ends = np.cumsum(counts)[:-1]
    columns = every, np.split(predictor.predict(rows), ends), np.split(budget.meets(rows), ends)
    curves = []
    for points, predicted, met in zip(*columns, strict=True):
        possible = met.reshape(len(around), -1).all(axis=0)
        means = predicted.reshape(len(around), -1).mean(axis=0)
        curves.append(Dependence(points[possible], means[possible]))
    return tuple(curves)


def narrow(
    ranges: Ranges, predictor: Predictor, pairs: Sequence[Pair], shape: Shape, budget: Budget
) -> tuple[Ranges, tuple[NarrowingStep, ...]]:
    """Narrow ranges by a predictor.

    An end of a range goes where the dependence there is above its minimum by more than
    three typical errors of the predictor.  What the best measured plans keep stays
    within, no range gets narrower than three tenths of a block's units, and none gives up
    more than half at once.

    Returns:
        The ranges, and a step for every run of adjacent blocks narrowed alike, costliest first.
    """
    best = best_pairs(pairs, Target(budget, ranges).holds, _ELITE)
    if not best:
        return ranges, ()
    around = as_rows([pair.plan for pair in best])
    tolerance = _MARGIN * predictor.error_near(best[0].value)
    measured = as_rows([pair.plan for pair in pairs])
    curves = partial_dependence(predictor, shape, ranges, budget, around, measured)
    low, high = ranges.rows
    new_low, new_high = low.copy(), high.copy()
    for column, (curve, units) in enumerate(zip(curves, dense_row(shape), strict=True)):
        if len(curve.units) < 2:
            continue
        good = curve.loss_increase <= curve.loss_increase.min() + tolerance
        # An end of the range that was not measured stays if the measured part ends well.
        least = low[column] if good[0] else curve.units[good].min()
        most = high[column] if good[-1] else curve.units[good].max()
        least, most = min(least, around[:, column].min()), max(most, around[:, column].max())
        new_low[column], new_high[column] = _bounded(
            (low[column], high[column]), (least, most), int(np.ceil(_LEAST_WIDTH * units))
        )
    narrowed = Ranges.of_rows(new_low, new_high)
    if not narrowed.can_meet(budget):
        return ranges, ()
    return narrowed, _steps(shape, ranges, narrowed, curves, tolerance)


def _bounded(old: tuple[int, int], wanted: tuple[int, int], least_width: int) -> tuple[int, int]:
    """A range within the old one, around the wanted one, as wide as it has to be."""
    old_width, wanted_width = old[1] - old[0], wanted[1] - wanted[0]
    half = int(np.ceil(_MOST_AT_ONCE * old_width))
    width = max(wanted_width, min(least_width, old_width), half)
    missing = width - wanted_width
    low = max(old[0], wanted[0] - missing // 2)
    high = min(old[1], low + width)
    return int(max(old[0], high - width)), int(high)


def _steps(
    shape: Shape, old: Ranges, new: Ranges, curves: Sequence[Dependence], tolerance: float
) -> tuple[NarrowingStep, ...]:
    """Narrowings of single columns, joined where adjacent blocks narrowed alike."""
    steps: list[NarrowingStep] = []
    lost_low, lost_high = np.abs(new.rows - old.rows)
    for column in np.flatnonzero(lost_low + lost_high).tolist():
        units, loss_increase = curves[column]
        verdict = INSENSITIVE if lost_high[column] >= lost_low[column] else SENSITIVE
        if verdict == INSENSITIVE:  # the fewest units that are no worse than all of them
            other = len(units) - 1
            place = int(np.flatnonzero(loss_increase <= loss_increase[other] + tolerance)[0])
        else:  # the most of the units given up, against the best
            other = int(np.argmin(loss_increase))
            place = max(int(np.searchsorted(units, new.rows[0, column])) - 1, 0)
        block = column % shape.depth
        dense = dense_row(shape)[column]
        step = NarrowingStep(
            "attention" if column < shape.depth else "mlp",
            (block, block),
            verdict,
            float(units[place] / dense),
            float(units[other] / dense),
            float(loss_increase[place] - loss_increase[other]),
            tuple((new.rows[:, column] / dense).tolist()),
        )
        if steps and _alike(steps[-1], step, tolerance):
            step = _joined(steps.pop(), step)
        steps.append(step)
    return tuple(sorted(steps, key=lambda one: -one.cost))


def _alike(before: NarrowingStep, step: NarrowingStep, tolerance: float) -> bool:
    same = (before.kind, before.verdict) == (step.kind, step.verdict)
    close = abs(before.cost - step.cost) <= max(tolerance, 0.5 * abs(before.cost))
    return same and close and before.blocks[1] == step.blocks[0] - 1


def _joined(run: NarrowingStep, step: NarrowingStep) -> NarrowingStep:
    """A run of blocks with one block more."""
    count = run.blocks[1] - run.blocks[0] + 1
    so_far, more = (
        np.array([one.keeping, one.instead_of, one.cost, *one.left]) for one in (run, step)
    )
    *means, low, high = ((so_far * count + more) / (count + 1)).tolist()
    blocks = run.blocks[0], step.blocks[1]
    keeping, instead_of, cost = means
    return NarrowingStep(run.kind, blocks, run.verdict, keeping, instead_of, cost, (low, high))
