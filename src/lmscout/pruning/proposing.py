"""What is learnt from pairs, and which plans are measured next.

All of it follows from what is handed over, so that it can be done in another process while
devices measure, and again where a run was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import joblib

from lmscout.pruning.learning.features import Column, ImportanceMass
from lmscout.pruning.learning.narrowing import Shrink, narrow
from lmscout.pruning.learning.predictor import FEWEST_PAIRS, Predictor, fit_predictor
from lmscout.pruning.ledger import Pair
from lmscout.pruning.processes import Beside
from lmscout.pruning.race import limits
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.covering import Proposal, Target
from lmscout.pruning.searching.proposals import Calls
from lmscout.pruning.searching.ranges import Ranges
from lmscout.pruning.searching.space import PlanSpace
from lmscout.pruning.subnetworks.plan import Plan, Shape

_DOING = "proposes plans"
_MANY_CORES = 4  # with fewer there is none for a second search beside what measures
_SECOND: list[Beside] = []  # in a process that proposes, its own second; it ends with the process


@dataclass(frozen=True)
class Terms:
    """What holds for all steps of a run.

    Attributes:
        shape: of the dense model.
        mass: importance of what a plan cuts.
        space: of plans.
        budgets: the sizes that are sought.
        seed: of proposals and predictors.
        extra: columns that predictors are told beside their own.
    """

    shape: Shape
    mass: ImportanceMass
    space: PlanSpace
    budgets: tuple[Budget, ...]
    seed: int
    extra: tuple[Column, ...] = ()


@dataclass(frozen=True)
class Question:
    """What is known before a step.

    Attributes:
        pairs: from which the step follows.
        ranges: of every size, as narrowed so far.
        round: of the ledger, in which the step begins; 0 is the first.
        count: of plans wanted; 0 to learn and propose nothing.
        waiting: plans that are measured but of which this step is to know no more, or that are
            being measured: not proposed again.
    """

    pairs: tuple[Pair, ...]
    ranges: tuple[Ranges, ...]
    round: int
    count: int
    waiting: tuple[Plan, ...] = ()


@dataclass(frozen=True)
class Step:
    """What follows from it.

    Attributes:
        proposals: plans to be measured, in order.
        limits: of each, in the race with the best of its size.
        ranges: of every size.
        shrinks: by which they were narrowed.
    """

    proposals: tuple[Proposal, ...]
    limits: tuple[tuple[float, ...], ...]
    ranges: tuple[Ranges, ...]
    shrinks: tuple[Shrink, ...]


def learn(
    terms: Terms, pairs: Sequence[Pair], ranges: Sequence[Ranges], *, repeats: int
) -> tuple[Predictor | None, tuple[Ranges, ...], tuple[Shrink, ...]]:
    """Fit a predictor, and narrow the ranges by it.

    Args:
        terms: of the run.
        pairs: measured; where they are too few nothing is learnt.
        ranges: so far.
        repeats: of cross-validation.
    """
    if len(pairs) < FEWEST_PAIRS:
        return None, tuple(ranges), ()
    predictor = fit_predictor(
        pairs, terms.shape, terms.mass, seed=terms.seed, repeats=repeats, extra=terms.extra
    )
    if not terms.space.narrows:
        return predictor, tuple(ranges), ()
    narrower: list[Ranges] = []
    shrinks: list[Shrink] = []
    for budget, one in zip(terms.budgets, ranges, strict=True):
        narrowed, new = narrow(one, predictor, pairs, terms.shape, budget)
        narrower.append(narrowed)
        shrinks.extend(new)
    return predictor, tuple(narrower), tuple(shrinks)


def next_step(terms: Terms, question: Question, beside: Calls | None = None) -> Step:
    """Learn, narrow, search, and say what is measured next.

    Args:
        terms: of the run.
        question: what is known.
        beside: does one of two searches while the other is done here.
    """
    predictor, ranges, shrinks = learn(terms, question.pairs, question.ranges, repeats=1)
    if not question.count:
        return Step((), (), ranges, shrinks)
    proposals = terms.space.propose(
        [Target(*both) for both in zip(terms.budgets, ranges, strict=True)],
        count=question.count,
        seed=terms.seed,
        round_=question.round,
        pairs=question.pairs,
        predictor=predictor,
        waiting=question.waiting,
        beside=beside,
    )
    # Round 0 covers the space: what is bad there teaches as much as what is good.  Later limits
    # follow from what the step follows from: so its plans may be measured in any order.
    racing = question.pairs if question.round else ()
    plans = [one.plan for one in proposals]
    most = limits(plans, racing, terms.space, terms.budgets)
    return Step(tuple(proposals), tuple(most), ranges, shrinks)


class Asks(Protocol):
    """What is asked for the next step."""

    def __call__(self, question: Question) -> Future[Step]:
        """The step, once it is there."""


@contextmanager
def asked_here(terms: Terms) -> Iterator[Asks]:
    """Steps that are there when the question has been asked."""
    yield lambda question: _there(next_step(terms, question))


@contextmanager
def asked_ahead(terms: Terms) -> Iterator[Asks]:
    """Steps that come about while something else is done, in a process of its own.

    Columns that a predictor is told may read the model, and cannot leave; with such, steps come
    about in a thread, and hold up those that launch work.
    """
    with ExitStack() as stack:
        calls: Calls
        work: Callable[[Terms, Question], Step]
        if terms.extra:
            calls, work = stack.enter_context(ThreadPoolExecutor(1)), next_step
        else:
            calls, work = stack.enter_context(Beside(_DOING)), _next_step_there
            calls.submit(_second)  # what it imports takes seconds, and nobody waits for it yet

        def ask(question: Question) -> Future[Step]:
            if len(question.pairs) < FEWEST_PAIRS:  # without a predictor there is little to do
                return _there(next_step(terms, question))
            return calls.submit(partial(work, terms, question))

        yield ask


def _there(step: Step) -> Future[Step]:
    future: Future[Step] = Future()
    future.set_result(step)
    return future


def _next_step_there(terms: Terms, question: Question) -> Step:
    """What the process does."""
    _second()
    return next_step(terms, question, *_SECOND)


def _second() -> None:
    """Begin the process of this one that does one of two searches, where there are cores for it."""
    if not _SECOND and joblib.cpu_count() >= _MANY_CORES:
        _SECOND.append(Beside(_DOING))
        _SECOND[0].submit(_second_is_there)


def _second_is_there() -> None:
    """Called, so that it has been imported."""
