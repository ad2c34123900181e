"""Propose the plans of the next step: fit a predictor, narrow the ranges, search.

Ranges of blocks are narrowed by partial dependence of the predicted loss increase.  For each
column, plans around the best are changed to keep more or fewer units there, at the same size: the
other columns share what it gains or loses.  Changes at one size are what pairs of one size can
teach, and what a search at that size can use.

A step follows from what is known alone: another process can propose it while devices measure.
Such a process imports neither PyTorch nor transformers, which would take most of its start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import joblib
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor

from lmscout.children import begin_worker, signals_held, start_trackers
from lmscout.pruning.budgets import Budget
from lmscout.pruning.features import Column, ImportanceMass
from lmscout.pruning.plan import Floats, Plan, Rows, Shape, as_rows, dense_row
from lmscout.pruning.predictor import FEWEST_PAIRS, Predictor, fit_predictor
from lmscout.pruning.ranges import Ranges, Target, best_pairs, fit
from lmscout.pruning.sampler import Proposal, propose
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair

INSENSITIVE, SENSITIVE = "insensitive", "sensitive"

_ELITE = 12  # best measured plans, around which the dependence is computed
_POINTS = 13  # numbers of units tried in a range
_LEAST_WIDTH = 0.3  # of a block's units: no range gets narrower
_MOST_AT_ONCE = 0.5  # of a range: no more is given up in one narrowing
_MARGIN = 3.0  # typical errors of the predictor by which a part of a range must be worse

_BEST = 12  # rank among pairs of its size, on the same tokens, below which a plan is stopped
_MANY_CORES = 4  # from which two searches run at once


@dataclass(frozen=True)
class NarrowingStep:
    """One narrowing of adjacent blocks, and its reason; numbers are means over the blocks."""

    kind: str  # "attention" or "mlp"
    blocks: tuple[int, int]  # first and last block
    # "insensitive", where the range lost its upper end, or "sensitive", where it lost its lower.
    verdict: str
    keeping: float  # share of units to which `cost` refers
    instead_of: float  # share of units that it is compared to
    cost: float  # predicted change of the loss increase in nats/token, at the same size
    left: tuple[float, float] = (0.0, 1.0)  # the range after it, as shares of units
    pairs: int = 0  # number of measured pairs that it follows from
    size: int = 0  # position of its size among those of the run

    @property
    def words(self) -> str:
        """One sentence."""
        first, last = self.blocks
        name = f"block {first}" if first == last else f"blocks {first}-{last}"
        after = f"after {self.pairs} pairs, " if self.pairs else ""
        change = f"{'costs' if self.cost >= 0 else 'saves'} {abs(self.cost):.3f} nats"
        return (
            f"{after}{name} {self.kind} is {self.verdict}: keeping {self.keeping:.0%} instead of "
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


@dataclass(frozen=True)
class Known:
    """What is known before a step."""

    pairs: tuple[Pair, ...]  # that the step follows from
    ranges: tuple[Ranges, ...]  # of every size, as narrowed so far
    round: int  # of the study, in which the step starts; from 0
    count: int  # of plans wanted; 0 to narrow only
    pending: tuple[Plan, ...] = ()  # not to be proposed again: measured now or later


@dataclass(frozen=True)
class Step:
    """A proposed step."""

    proposals: tuple[Proposal, ...]  # to be measured, in order
    limits: tuple[tuple[float, ...], ...]  # of early stopping, of each proposal
    ranges: tuple[Ranges, ...]  # of every size
    narrowing_steps: tuple[NarrowingStep, ...]  # of the ranges


@dataclass(frozen=True)
class Proposer:
    """Proposes the steps of a run; `extra` are additional features of its predictors."""

    shape: Shape
    mass: ImportanceMass
    space: PlanSpace
    budgets: tuple[Budget, ...]
    seed: int
    extra: tuple[Column, ...] = ()

    def fit(
        self, pairs: Sequence[Pair], ranges: Sequence[Ranges], *, repeats: int
    ) -> tuple[Predictor | None, tuple[Ranges, ...], tuple[NarrowingStep, ...]]:
        """Fit a predictor, if pairs suffice, and narrow the ranges by it."""
        if len(pairs) < FEWEST_PAIRS:
            return None, tuple(ranges), ()
        predictor = fit_predictor(
            pairs, self.shape, self.mass, seed=self.seed, repeats=repeats, extra=self.extra
        )
        if not self.space.narrows:
            return predictor, tuple(ranges), ()
        sizes = zip(self.budgets, ranges, strict=True)
        narrowed = [narrow(one, predictor, pairs, self.shape, budget) for budget, one in sizes]
        steps = tuple(
            replace(step, pairs=len(pairs), size=size)
            for size, (_, steps) in enumerate(narrowed)
            for step in steps
        )
        return predictor, tuple(one for one, _ in narrowed), steps

    def propose(self, known: Known, second: Executor | None = None) -> Step:
        """Fit, narrow and search; `second` runs one of two searches at the same time."""
        predictor, ranges, narrowing_steps = self.fit(known.pairs, known.ranges, repeats=1)
        if not known.count:
            return Step((), (), ranges, narrowing_steps)
        proposed = propose(
            self.space,
            [Target(*both) for both in zip(self.budgets, ranges, strict=True)],
            count=known.count,
            seed=self.seed,
            round_=known.round,
            pairs=known.pairs,
            predictor=predictor,
            waiting=known.pending,
            mass=self.mass,
            executor=second,
        )
        compared = known.pairs if known.round else ()  # in round 0 bad plans inform as well
        limits = stopping_limits([one.plan for one in proposed], compared, self.space, self.budgets)
        return Step(tuple(proposed), tuple(limits), ranges, narrowing_steps)


def stopping_limits(
    plans: Sequence[Plan], pairs: Sequence[Pair], space: PlanSpace, budgets: Sequence[Budget]
) -> list[tuple[float, ...]]:
    """Early-stopping limits of plans: loss increases by chunk above which each is stopped.

    A plan is compared with pairs of the first size that it meets; its limits are empty if it
    meets none, or too few pairs do.
    """
    limits: list[tuple[float, ...]] = [()] * len(plans)
    for budget in reversed(budgets) if plans else ():
        of_size = _limits(pairs, space, budget)
        for number in np.flatnonzero(space.meets(as_rows(plans), budget)):
            limits[number] = of_size
    return limits


def _limits(pairs: Sequence[Pair], space: PlanSpace, budget: Budget) -> tuple[float, ...]:
    """Limits of one size, chunk by chunk, with a standard error of predicting the whole by them.

    Plans are compared on the same text, as chunks differ more than good plans do.
    """
    best = space.best_pairs(pairs, budget, 2 * _BEST)
    if len(best) < 2 * _BEST:
        return ()
    values = np.array([[value for _, value in pair.trajectory] for pair in best])
    worst = np.sort(values[:, :-1], axis=0)[_BEST - 1]
    errors = (values[:, :-1] - values[:, -1:]).std(axis=0, ddof=1)
    return tuple((worst + errors).tolist())


Propose = Callable[[Known], "Future[Step]"]


@contextmanager
def proposals(proposer: Proposer, *, ahead: bool) -> Iterator[Propose]:
    """Propose steps within a ``with`` block, here or ahead in a process that ends with it.

    Additional features may need the model, which stays in this process; with such, a thread
    proposes.  Without a predictor a proposal takes no time, and is made here.
    """
    pool: AbstractContextManager[Executor | None] = nullcontext()
    if ahead:
        pool = ThreadPoolExecutor(1) if proposer.extra else _process()
    with pool as executor:

        def propose(known: Known) -> Future[Step]:
            if executor is None or len(known.pairs) < FEWEST_PAIRS:
                future: Future[Step] = Future()
                future.set_result(proposer.propose(known))
                return future
            with signals_held():
                return executor.submit(_propose, proposer, known)

        yield propose


@contextmanager
def _process() -> Iterator[Executor]:
    """One process, which ends with this one as well; loky's does not import ``__main__``."""
    start_trackers()
    executor, idle = _executor(), False
    try:
        with signals_held():
            executor.submit(_start)
        yield executor
        idle = bool(wait([executor.submit(_stop)], timeout=5.0).done)
    finally:
        executor.shutdown(kill_workers=not idle)


def _executor() -> Any:
    return ProcessPoolExecutor(1, initializer=begin_worker, initargs=(os.getpid(), __name__))


_SECOND: list[Any] = []  # in a proposing process: another, for one of two searches


def _start() -> None:
    """Import this module and start the second process, before the first step."""
    if joblib.cpu_count() >= _MANY_CORES:
        _SECOND.append(_executor())
        _SECOND[0].submit(_stop)  # imports this module there, which takes seconds


def _stop() -> None:
    """Stop the second process, which leaves semaphores behind if it is killed."""
    while _SECOND:
        _SECOND.pop().shutdown()


def _propose(proposer: Proposer, known: Known) -> Step:
    return proposer.propose(known, *_SECOND)
