"""Propose the plans of the next step: fit a predictor, narrow the ranges, search.

A step follows from what is known alone: another process can propose it while devices measure.
Such a process imports neither PyTorch nor transformers, which would take most of its start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import Any

import joblib
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.backend import resource_tracker as loky_tracker

from lmscout.children import begin_worker, signals_held
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
_MANY_CORES = 4  # from which two searches run at once


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
    for tracker in (resource_tracker, loky_tracker):
        tracker.ensure_running()  # unblocks signals when it starts a process
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
