"""Propose the plans of the next step: fit a predictor, narrow the ranges, search.

A step follows from what is known before it alone, so another process can propose it while
devices measure, and a continued run proposes the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker

import joblib
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.backend import resource_tracker as loky_tracker

from lmscout.children import end_with_parent, signals_held
from lmscout.pruning.budgets import Budget
from lmscout.pruning.features import Column, ImportanceMass
from lmscout.pruning.narrowing import NarrowingStep, narrow
from lmscout.pruning.plan import Plan, Shape, as_rows
from lmscout.pruning.predictor import FEWEST_PAIRS, Predictor, fit_predictor
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.sampler import Proposal, propose
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair

_BEST = 12  # rank among pairs of its size, on the same tokens, below which a plan is stopped
_ERRORS = 1.0  # margin, in standard errors of the loss increase after a chunk
_MANY_CORES = 4  # from which two searches run at once


@dataclass(frozen=True)
class Known:
    """What is known before a step.

    Attributes:
        pairs: pairs that the step follows from.
        ranges: ranges of every size, as narrowed so far.
        round: round of the study in which the step starts, from 0.
        count: number of plans wanted; 0 to narrow only.
        pending: plans that are not to be proposed again: being measured, or measured later.
    """

    pairs: tuple[Pair, ...]
    ranges: tuple[Ranges, ...]
    round: int
    count: int
    pending: tuple[Plan, ...] = ()


@dataclass(frozen=True)
class Step:
    """A proposed step.

    Attributes:
        proposals: plans to be measured, in order.
        limits: early-stopping limits of each.
        ranges: ranges of every size.
        narrowing_steps: how they were narrowed.
    """

    proposals: tuple[Proposal, ...]
    limits: tuple[tuple[float, ...], ...]
    ranges: tuple[Ranges, ...]
    narrowing_steps: tuple[NarrowingStep, ...]


@dataclass(frozen=True)
class Proposer:
    """Proposes the steps of a run.

    Attributes:
        shape: units of the dense model.
        mass: importance of removed units.
        space: space of the plans.
        budgets: sizes that the study is to serve.
        seed: seed of proposals and predictors.
        extra: additional features of the predictor.
    """

    shape: Shape
    mass: ImportanceMass
    space: PlanSpace
    budgets: tuple[Budget, ...]
    seed: int
    extra: tuple[Column, ...] = ()

    def fit(
        self, pairs: Sequence[Pair], ranges: Sequence[Ranges], *, repeats: int
    ) -> tuple[Predictor | None, tuple[Ranges, ...], tuple[NarrowingStep, ...]]:
        """Fit a predictor, and narrow the ranges by it.

        Args:
            pairs: measured pairs; with too few there is no predictor.
            ranges: ranges so far.
            repeats: repeats of cross-validation.
        """
        if len(pairs) < FEWEST_PAIRS:
            return None, tuple(ranges), ()
        predictor = fit_predictor(
            pairs, self.shape, self.mass, seed=self.seed, repeats=repeats, extra=self.extra
        )
        if not self.space.narrows:
            return predictor, tuple(ranges), ()
        narrowed = [
            narrow(one, predictor, pairs, self.shape, budget)
            for budget, one in zip(self.budgets, ranges, strict=True)
        ]
        steps = tuple(step for _, steps in narrowed for step in steps)
        return predictor, tuple(one for one, _ in narrowed), steps

    def propose(self, known: Known, second: Executor | None = None) -> Step:
        """Fit, narrow and search.

        Args:
            known: what is known.
            second: runs one of two searches at the same time.
        """
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
        # Round 0 covers the space, and bad plans are as informative as good ones.
        compared = known.pairs if known.round else ()
        plans = [one.plan for one in proposed]
        limits = stopping_limits(plans, compared, self.space, self.budgets)
        return Step(tuple(proposed), tuple(limits), ranges, narrowing_steps)


def stopping_limits(
    plans: Sequence[Plan], pairs: Sequence[Pair], space: PlanSpace, budgets: Sequence[Budget]
) -> list[tuple[float, ...]]:
    """Early-stopping limits: loss increases by chunk above which a plan is stopped.

    Args:
        plans: plans to be measured.
        pairs: pairs that plans are compared with.
        space: space of the plans.
        budgets: sizes; a plan is compared with pairs of the first that it meets.

    Returns:
        For each plan; empty if it meets no budget, or too few pairs do.
    """
    if not plans:
        return []
    rows = as_rows(plans)
    of_size = [space.meets(rows, budget) for budget in budgets]
    limits = [_limits(pairs, space, budget) for budget in budgets]
    return [
        next((one for one, met in zip(limits, of_size, strict=True) if met[number]), ())
        for number in range(len(plans))
    ]


def _limits(pairs: Sequence[Pair], space: PlanSpace, budget: Budget) -> tuple[float, ...]:
    """Limits of one size, chunk by chunk.

    Plans are compared on the same text, as chunks differ more than good plans do.  The first
    chunks predict the whole with an error, which the limits allow for: near the end of a search
    plans differ by less.
    """
    best = space.best_pairs(pairs, budget, 2 * _BEST)
    if len(best) < 2 * _BEST:
        return ()
    values = np.array([[value for _, value in pair.trajectory] for pair in best])
    worst = np.sort(values[:, :-1], axis=0)[_BEST - 1]
    errors = (values[:, :-1] - values[:, -1:]).std(axis=0, ddof=1)
    return tuple((worst + _ERRORS * errors).tolist())


Propose = Callable[[Known], "Future[Step]"]


@contextmanager
def proposals(proposer: Proposer, *, ahead: bool) -> Iterator[Propose]:
    """Propose steps within a ``with`` block, here or ahead in a process that ends with it.

    Additional features may need the model, which stays in this process; with such, a thread
    proposes.  Without a predictor a proposal takes no time, and is made here.
    """

    def propose_here(known: Known) -> Future[Step]:
        future: Future[Step] = Future()
        future.set_result(proposer.propose(known))
        return future

    if not ahead:
        yield propose_here
        return
    with ThreadPoolExecutor(1) if proposer.extra else _process() as executor:
        task = proposer.propose if proposer.extra else partial(_propose_by_two, proposer)

        def propose(known: Known) -> Future[Step]:
            if len(known.pairs) < FEWEST_PAIRS:
                return propose_here(known)
            with signals_held():
                return executor.submit(task, known)

        yield propose


@contextmanager
def _process() -> Iterator[Executor]:
    """One process, which ends with this one as well; loky's does not import ``__main__``."""
    for tracker in (resource_tracker, loky_tracker):
        tracker.ensure_running()  # unblocks signals when it starts a process
    executor = ProcessPoolExecutor(1, initializer=end_with_parent, initargs=(os.getpid(),))
    idle = False
    try:
        with signals_held():
            executor.submit(_start)
        yield executor
        idle = bool(wait([executor.submit(_stop)], timeout=5.0).done)
    finally:
        executor.shutdown(kill_workers=not idle)


_SECOND: list[Executor] = []  # in a proposing process: another, for one of two searches


def _start() -> None:
    """Import this module and start the second process, before the first step."""
    if joblib.cpu_count() >= _MANY_CORES:
        second = ProcessPoolExecutor(1, initializer=end_with_parent, initargs=(os.getpid(),))
        second.submit(_import)
        _SECOND.append(second)


def _import() -> None:
    """Import this module, which takes seconds, before the first search."""


def _stop() -> None:
    """Stop the second process, which leaves semaphores behind if it is killed."""
    while _SECOND:
        _SECOND.pop().shutdown()


def _propose_by_two(proposer: Proposer, known: Known) -> Step:
    return proposer.propose(known, *_SECOND)
