"""Narrowing: where the predictor says that blocks need not be looked at any more.

For each block and kind, plans around the best are changed to keep more or fewer units
there, at the same size: what it gets the others give, and what it gives they share.  The
predicted rise over those changes, its partial dependence, says how far the range may
shrink.  Changes at one size are what pairs of one size can teach, and what a search at that
size can use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lmscout.pruning.budgets import Budget
from lmscout.pruning.plan import Floats, Rows, Shape, as_plans, as_rows, dense_row
from lmscout.pruning.ranges import Ranges, best_pairs, fit, meets
from lmscout.pruning.study import Pair

FREE, BEARING = "insensitive", "load-bearing"

_ELITE = 12  # best measured plans, around which the dependence is taken
_POINTS = 13  # numbers of units tried in a range
_LEAST_WIDTH = 0.3  # of a block's units: no range gets narrower
_MOST_AT_ONCE = 0.5  # of a range: no more is given up in one narrowing
_MARGIN = 3.0  # errors of the predictor by which a part of a range must be worse to go


class Fitted(Protocol):
    """What narrowing asks of a predictor."""

    def predict(self, rows: Rows) -> Floats:
        """Predicted rises, plans [n, 2L] to [n]."""

    def error_near(self, loss_increase: float) -> float:
        """Typical error in nats of a prediction about a rise."""

    def contributions(self, rows: Rows) -> Floats | None:
        """Mean size of what each column adds to predictions, or None."""


@dataclass(frozen=True)
class NarrowingStep:
    """One narrowing of adjacent blocks, and why.

    Attributes:
        kind: "attention" or "mlp".
        blocks: first and last block.
        verdict: "insensitive", where the range lost its upper end, or "sensitive", where
            it lost its lower.
        keeping: share of units, of which `cost` speaks.
        instead_of: share of units that it is compared to.
        cost: predicted change of the rise in nats a token, at the same size, mean over the
            blocks.
        contribution: mean size of what the blocks add to predictions, on the predictor's
            scale; None where it is not boosted trees.
    """

    kind: str
    blocks: tuple[int, int]
    verdict: str
    keeping: float
    instead_of: float
    cost: float
    contribution: float | None

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


@dataclass(frozen=True, eq=False)
class Dependence:
    """Predicted rise by what one block and kind keeps, at one size.

    Attributes:
        units: [points] ascending numbers of units kept.
        loss_increase: [points] mean over plans, in nats a token.
    """

    units: Rows
    loss_increase: Floats


def partial_dependence(
    predictor: Fitted, shape: Shape, ranges: Ranges, budget: Budget, around: Rows, measured: Rows
) -> tuple[Dependence, ...]:
    """How the predicted rise depends on each column of a row, at one size.

    Args:
        predictor: of rises.
        shape: of the dense model.
        ranges: within which columns are varied and the others make up.
        budget: that all plans meet.
        around: [n, 2L] plans to vary.
        measured: [m, 2L] all plans measured; a column is varied between the fewest and the
            most units that one of them keeps, for of what lies beyond nothing is known.

    Returns:
        One a column; numbers of units at which the others cannot meet the budget are left
        out.
    """
    low, high = as_rows([ranges.low, ranges.high])
    fewest = np.maximum(low, measured.min(axis=0))
    most = np.minimum(high, measured.max(axis=0))
    every = []
    for column in range(2 * shape.depth):
        points = np.unique(np.rint(np.linspace(fewest[column], most[column], _POINTS)))
        every.append(points[(points >= fewest[column]) & (points <= most[column])].astype(np.int64))
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
    curves = []
    for points, loss_increases, met in zip(
        every,
        np.split(predictor.predict(rows), ends),
        np.split(meets(rows, budget), ends),
        strict=True,
    ):
        loss_increase = loss_increases.reshape(len(around), len(points))
        possible = met.reshape(loss_increase.shape).all(axis=0)
        curves.append(Dependence(points[possible], loss_increase.mean(axis=0)[possible]))
    return tuple(curves)


def narrow(
    ranges: Ranges,
    predictor: Fitted,
    pairs: Sequence[Pair],
    shape: Shape,
    budget: Budget,
    *,
    margin: float = _MARGIN,
) -> tuple[Ranges, tuple[NarrowingStep, ...]]:
    """Shrink ranges by what the predictor learnt.

    An end of a range goes where the dependence there is above its minimum by more than
    `margin` typical errors of the predictor.  What the best measured plans keep stays
    within, no range gets narrower than three tenths of a block's units, and none gives up
    more than half at once.

    Args:
        ranges: so far.
        predictor: fitted on the pairs.
        pairs: measured; those that meet the budget and lie within ranges count as best.
        shape: of the dense model.
        budget: the size for which ranges are narrowed.
        margin: in typical errors.

    Returns:
        The ranges, and one `NarrowingStep` for every run of adjacent blocks that shrank alike,
        costliest first.
    """
    best = best_pairs(pairs, ranges, budget, _ELITE)
    if not best:
        return ranges, ()
    around = as_rows([pair.plan for pair in best])
    tolerance = margin * predictor.error_near(best[0].value)
    measured = as_rows([pair.plan for pair in pairs])
    curves = partial_dependence(predictor, shape, ranges, budget, around, measured)
    low, high = as_rows([ranges.low, ranges.high])
    new_low, new_high = low.copy(), high.copy()
    for column, (curve, units) in enumerate(zip(curves, dense_row(shape), strict=True)):
        if len(curve.units) < 2:
            continue
        good = curve.loss_increase <= curve.loss_increase.min() + tolerance
        # An end of the range that was not measured stays if the measuring ended well.
        least = low[column] if good[0] else curve.units[good].min()
        most = high[column] if good[-1] else curve.units[good].max()
        least, most = min(least, around[:, column].min()), max(most, around[:, column].max())
        new_low[column], new_high[column] = _bounded(
            (low[column], high[column]), (least, most), int(np.ceil(_LEAST_WIDTH * units))
        )
    narrowed = Ranges(*as_plans(np.stack([new_low, new_high])))
    if not narrowed.can_meet(budget):
        return ranges, ()
    contributions = predictor.contributions(around)
    return narrowed, _explained(
        shape, (low, high), (new_low, new_high), curves, tolerance, contributions
    )


def _bounded(old: tuple[int, int], wanted: tuple[int, int], least_width: int) -> tuple[int, int]:
    """A range within the old one, around the wanted one, as wide as it has to be."""
    width = max(
        wanted[1] - wanted[0],
        min(least_width, old[1] - old[0]),
        int(np.ceil(_MOST_AT_ONCE * (old[1] - old[0]))),
    )
    missing = width - (wanted[1] - wanted[0])
    low = max(old[0], wanted[0] - missing // 2)
    high = min(old[1], low + width)
    return int(max(old[0], high - width)), int(high)


def _explained(
    shape: Shape,
    old: tuple[Rows, Rows],
    new: tuple[Rows, Rows],
    curves: Sequence[Dependence],
    tolerance: float,
    contributions: Floats | None,
) -> tuple[NarrowingStep, ...]:
    """Shrinks of single columns, joined where adjacent blocks shrank alike."""
    narrowing_steps: list[NarrowingStep] = []
    units = dense_row(shape)
    for column, curve in enumerate(curves):
        lost_low, lost_high = new[0][column] - old[0][column], old[1][column] - new[1][column]
        if max(lost_low, lost_high) <= 0:
            continue
        verdict = FREE if lost_high >= lost_low else BEARING
        if verdict == FREE:
            # The fewest units that are no worse than all of them.
            other = len(curve.units) - 1
            place = int(
                np.flatnonzero(curve.loss_increase <= curve.loss_increase[other] + tolerance)[0]
            )
        else:
            # The most of what is given up, beside what does best.
            other = int(np.argmin(curve.loss_increase))
            place = max(int(np.searchsorted(curve.units, new[0][column])) - 1, 0)
        kind = "attention" if column < shape.depth else "mlp"
        block = column % shape.depth
        narrowing_step = NarrowingStep(
            kind,
            (block, block),
            verdict,
            float(curve.units[place] / units[column]),
            float(curve.units[other] / units[column]),
            float(curve.loss_increase[place] - curve.loss_increase[other]),
            None if contributions is None else float(contributions[column]),
        )
        before = narrowing_steps[-1] if narrowing_steps else None
        if (
            before is not None
            and (before.kind, before.verdict) == (kind, verdict)
            and before.blocks[1] == block - 1
            and abs(before.cost - narrowing_step.cost) <= max(tolerance, 0.5 * abs(before.cost))
        ):
            narrowing_steps[-1] = _joined(before, narrowing_step)
        else:
            narrowing_steps.append(narrowing_step)
    return tuple(sorted(narrowing_steps, key=lambda one: -one.cost))


def _joined(run: NarrowingStep, narrowing_step: NarrowingStep) -> NarrowingStep:
    """A run of blocks with one block more; numbers are means over blocks."""
    count = run.blocks[1] - run.blocks[0] + 1

    def mean(so_far: float, more: float) -> float:
        return (so_far * count + more) / (count + 1)

    return NarrowingStep(
        run.kind,
        (run.blocks[0], narrowing_step.blocks[1]),
        run.verdict,
        mean(run.keeping, narrowing_step.keeping),
        mean(run.instead_of, narrowing_step.instead_of),
        mean(run.cost, narrowing_step.cost),
        None
        if run.contribution is None or narrowing_step.contribution is None
        else mean(run.contribution, narrowing_step.contribution),
    )
