"""Fill a study step by step: propose, measure, learn, narrow, stop plans early.

The race that plans run with the best of their size: far behind, they are dropped early.

How steps of proposing are numbered in a study, whose pairs have rounds.

Without a tail a step is a round, and knows all rounds before it.  With one it is two: its body, and
its tail, whose pairs the next step does not know.  The first two steps then know nothing, and cover
the space as the first does without a tail, which is twice as large: from what is known when the
second is proposed, little would be learnt.

Every pair of a round is measured before a step that knows the round is proposed.  So the pairs
that a study holds tell which steps a run that was stopped had opened, and what these followed
from.

What is learnt from pairs, and which plans are measured next.

All of it follows from what is handed over, so that it can be done in another process while
devices measure, and again where a run was stopped.

Fill a study step by step: propose, measure, learn, narrow.

A CPU measures a step to its end before it proposes the next.  Devices would wait meanwhile.
So for them a step has a *tail*: the next one follows from all pairs but those of the tail, and is
proposed while they measure it.

Judges in a run: in the place of a predictor, and as what a predictor is told.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import joblib
import numpy as np
import torch

from lmscout.errors import LmscoutError
from lmscout.progress import StageProgress
from lmscout.pruning.background import Beside
from lmscout.pruning.budgets import Budget
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.devices import ParallelEvaluator, Workload, measured_here
from lmscout.pruning.evaluator import Evaluator
from lmscout.pruning.features import Column, ImportanceMass
from lmscout.pruning.narrowing import NarrowingStep, narrow
from lmscout.pruning.plan import Floats, Plan, Rows, Shape, as_rows
from lmscout.pruning.predictor import FEWEST_PAIRS, Predictor, check_enough, fit_predictor
from lmscout.pruning.proxy_objective import ProxyObjective, compute_objectives, parse_proxy
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.sampler import Proposal, propose
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair, PairStudy
from lmscout.pruning.study_writer import StudyWriter

_PROMISING = 12  # a plan that is not among so many of its size, as far as measured, is dropped
_ERRORS = 1.0  # standard errors of what a chunk predicts of the whole, as room for a plan


def limits(
    plans: Sequence[Plan], pairs: Sequence[Pair], space: PlanSpace, budgets: Sequence[Budget]
) -> list[tuple[float, ...]]:
    """For each plan the rises, chunk by chunk, above which it is dropped.

    Args:
        plans: to be measured.
        pairs: of which plans have to be among the best.
        space: in which plans lie.
        budgets: sizes that are sought; a plan races with pairs of the first that it meets.

    Returns:
        One a plan; empty where it meets none, or too few pairs do.
    """
    if not plans:
        return []
    rows = as_rows(plans)
    of_size = [space.meets(rows, budget) for budget in budgets]
    each = [_limits(pairs, space, budget) for budget in budgets]
    return [
        next((most for most, met in zip(each, of_size, strict=True) if met[place]), ())
        for place in range(len(plans))
    ]


def _limits(pairs: Sequence[Pair], space: PlanSpace, budget: Budget) -> tuple[float, ...]:
    """Rises, chunk by chunk, with which a plan is not among the best of its size so far.

    A plan is compared with others on the text that both have seen, as chunks differ more
    than good plans do.  The first chunks predict the whole only so well, as the whole pairs
    show, and near the end of a search all plans are alike: without room for that, chance would
    drop most of them.
    """
    best = space.best_pairs(pairs, budget, 2 * _PROMISING)
    if len(best) < 2 * _PROMISING:
        return ()
    trajectories = np.array(
        [[loss_increase for _, loss_increase in pair.trajectory] for pair in best]
    )
    places = np.sort(trajectories[:, :-1], axis=0)[_PROMISING - 1]
    errors = (trajectories[:, :-1] - trajectories[:, -1:]).std(axis=0, ddof=1)
    return tuple((places + _ERRORS * errors).tolist())


_NOTE = "tail"
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Rounds:
    """Rounds of a study.

    Attributes:
        tail: share of a step, from 0 to below 1.
    """

    tail: float

    @classmethod
    def of(cls, pair_study: PairStudy, tail: float) -> Rounds:
        """As a study was begun, so that it goes on to the same end; else as is asked.

        Raises:
            LmscoutError: the storage cannot be written, or what is noted there is no share.
        """
        noted = pair_study.note(_NOTE)
        if noted is None and tail and not len(pair_study):
            noted = pair_study.note(_NOTE, repr(tail))
        try:
            share = float(noted or 0.0)
        except ValueError:
            share = math.nan
        if not 0 <= share < 1:
            raise LmscoutError(
                f"study at {pair_study.url}: attribute lmscout.{_NOTE} was edited or is damaged "
                f"(got {noted!r}, expected a share from 0 to below 1); restore a copy, or use "
                "another folder or storage"
            )
        return cls(share)

    def first(self, step: int) -> int:
        """The round in which a step begins."""
        return 2 * step if self.tail else step

    def known(self, step: int) -> int:
        """The first round of which a step knows nothing."""
        if not self.tail:
            return step
        return 2 * step - 1 if step > 1 else 0

    def count(self, step: int, size: int) -> int:
        """How many plans a step proposes, where later ones propose `size`."""
        return 2 * size if step == 0 and not self.tail else size

    def open(self, latest: int) -> int:
        """The first round that may lack pairs in a study.

        Those that a step was proposed from are complete, whatever they were proposed for.

        Args:
            latest: the last round of which the study holds a pair; -1 where it holds none.
        """
        return self.known(max(0, latest // 2 if self.tail else latest))

    def dealt(self, step: int, items: Sequence[_Item]) -> list[tuple[int, list[_Item]]]:
        """What a step measures, round by round."""
        items = list(items)
        if not self.tail:
            return [(step, items)]
        cut = max(1, len(items) - round(self.tail * len(items)))
        return [(2 * step, items[:cut]), (2 * step + 1, items[cut:])]


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
        round: of the study, in which the step begins; 0 is the first.
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
        narrowing_steps: by which they were narrowed.
    """

    proposals: tuple[Proposal, ...]
    limits: tuple[tuple[float, ...], ...]
    ranges: tuple[Ranges, ...]
    narrowing_steps: tuple[NarrowingStep, ...]


def learn(
    terms: Terms, pairs: Sequence[Pair], ranges: Sequence[Ranges], *, repeats: int
) -> tuple[Predictor | None, tuple[Ranges, ...], tuple[NarrowingStep, ...]]:
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
    narrowing_steps: list[NarrowingStep] = []
    for budget, one in zip(terms.budgets, ranges, strict=True):
        narrowed, new = narrow(one, predictor, pairs, terms.shape, budget)
        narrower.append(narrowed)
        narrowing_steps.extend(new)
    return predictor, tuple(narrower), tuple(narrowing_steps)


def next_step(terms: Terms, question: Question, executor: Executor | None = None) -> Step:
    """Learn, narrow, search, and say what is measured next.

    Args:
        terms: of the run.
        question: what is known.
        executor: runs one of two searches while the other runs here.
    """
    predictor, ranges, narrowing_steps = learn(terms, question.pairs, question.ranges, repeats=1)
    if not question.count:
        return Step((), (), ranges, narrowing_steps)
    proposals = propose(
        terms.space,
        [Target(*both) for both in zip(terms.budgets, ranges, strict=True)],
        count=question.count,
        seed=terms.seed,
        round_=question.round,
        pairs=question.pairs,
        predictor=predictor,
        waiting=question.waiting,
        executor=executor,
    )
    # Round 0 covers the space: what is bad there teaches as much as what is good.  Later limits
    # follow from what the step follows from: so its plans may be measured in any order.
    racing = question.pairs if question.round else ()
    plans = [one.plan for one in proposals]
    most = limits(plans, racing, terms.space, terms.budgets)
    return Step(tuple(proposals), tuple(most), ranges, narrowing_steps)


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
        calls: Executor
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


STEP_SIZE = 20  # small, as every step learns from those before it; the first has twice as many
_STEPS = 15  # more would cost more than they teach, where pairs are many
_SHORT_STEPS = 20  # with a tail: what is proposed is based on as new pairs as without
_TAIL = 0.75  # so long that two GPUs measure it while a step is proposed


@dataclass(frozen=True)
class Fitted:
    """What a study has taught.

    Attributes:
        predictor: fitted on every pair; None where there are too few plans to learn from, all
            of them measured.
        targets: the sizes searched for, with their ranges as narrowed.
        narrowing_steps: every narrowing, in words and numbers.
        objective: what stands in for a predictor where nothing is measured.
    """

    predictor: Predictor | None
    targets: tuple[Target, ...]
    narrowing_steps: tuple[NarrowingStep, ...]
    objective: ProxyObjective | None = None


def tail_on(device: torch.device) -> float:
    """The tail of steps that a kind of device measures.

    It depends on nothing else, so that what is found does not depend on how many there are.
    """
    return _TAIL if device.type == "cuda" else 0.0


def measure_rounds(
    pair_study: PairStudy,
    evaluator: Evaluator,
    mass: ImportanceMass,
    space: PlanSpace,
    targets: Sequence[Target],
    *,
    pairs: int,
    seed: int,
    round_size: int | None = None,
    tail: float = 0.0,
    extra: Sequence[Column] = (),
    progress: StageProgress | None = None,
) -> Fitted:
    """Measure proposed plans until a study holds so many pairs.

    What a step proposes, and what of it is dropped early, follows from the seed and the pairs of
    earlier rounds, so that a run that was stopped anywhere goes on to the same end, and several
    devices may share the work.  What a later step was proposed from is not measured again,
    whatever it was proposed for: so sizes can be added to a study without measuring anew.

    Of several processes that would measure for one study one does at a time; the others wait, and
    go on with its pairs.

    Args:
        pair_study: where pairs are kept; those that it holds are not measured again.  It goes on as
            it was begun, with a tail or without.
        evaluator: measures plans.
        mass: importance of what a plan cuts.
        space: proposes plans.
        targets: sizes that the study is to serve; each gets an equal part of every step.
        pairs: how many the study is to hold in the end.
        seed: of proposals and predictors.
        round_size: how many plans a step proposes; the first proposes twice as many.  20 by
            default, and more where pairs are many.
        tail: share of a step that is measured while the next one is proposed in another
            process; `tail_on` says which is right for a device.
        extra: columns that the predictor is told beside its own.
        progress: called with pairs held and wanted.

    Raises:
        LmscoutError: the pairs are too few for a predictor, the loss of a plan is not finite,
            the study cannot be written, or the process that proposes has ended.
    """
    check_enough(pairs)
    with pair_study.alone(progress and (lambda there: progress(min(there, pairs), pairs))):
        return _measure_alone(
            pair_study,
            evaluator,
            Terms(
                evaluator.shape,
                mass,
                space,
                tuple(target.budget for target in targets),
                seed,
                tuple(extra),
            ),
            tuple(target.ranges for target in targets),
            pairs,
            round_size,
            tail,
            progress,
        )


def _measure_alone(
    pair_study: PairStudy,
    evaluator: Evaluator,
    terms: Terms,
    ranges: tuple[Ranges, ...],
    pairs: int,
    round_size: int | None,
    tail: float,
    progress: StageProgress | None,
) -> Fitted:
    rounds = Rounds.of(pair_study, tail)
    if progress:
        progress(len(pair_study), pairs)
    with (
        StudyWriter(pair_study) as writer,
        (asked_ahead if rounds.tail else asked_here)(terms) as ask,
        _workload(evaluator, by_itself=rounds.tail > 0) as work,
    ):
        run = _Run(pair_study, evaluator.shape, writer, work, ask, rounds, pairs, progress)
        size = round_size or max(STEP_SIZE, pairs // (_SHORT_STEPS if rounds.tail else _STEPS))
        return run.to_the_end(terms, ranges, size)


@contextmanager
def _workload(evaluator: Evaluator, by_itself: bool) -> Iterator[Workload]:
    if not by_itself:
        with measured_here(evaluator) as work:
            yield work
    elif isinstance(evaluator, ParallelEvaluator):
        with evaluator.workload() as work:
            yield work
    else:
        with closing(ParallelEvaluator([evaluator])) as parallel, parallel.workload() as work:
            yield work


class _Run:
    """Plans under way, and the study that their pairs go into."""

    def __init__(
        self,
        pair_study: PairStudy,
        shape: Shape,
        writer: StudyWriter,
        work: Workload,
        ask: Asks,
        rounds: Rounds,
        wanted: int,
        progress: StageProgress | None,
    ) -> None:
        self._pair_study, self._writer, self._work = pair_study, writer, work
        self._ask, self._rounds = ask, rounds
        self._wanted, self._progress = wanted, progress
        self._shape = shape
        self._added = 0
        self._under_way: dict[int, tuple[Proposal, int]] = {}  # with its round, by its place

    def to_the_end(self, terms: Terms, ranges: tuple[Ranges, ...], size: int) -> Fitted:
        """Step by step, from the first on, until there are as many pairs as are wanted."""
        narrowing_steps: list[NarrowingStep] = []
        repeats = 3
        for step in itertools.count():
            first, known = self._rounds.first(step), self._rounds.known(step)
            planned = len(self._pair_study.pairs(before_round=first)) + len(self._under_way)
            if planned >= self._wanted:
                break
            self._measure_until(partial(self._complete, before=known))
            pairs = self._pair_study.pairs(before_round=known)
            count = min(self._rounds.count(step, size), self._wanted - planned)
            room = self._wanted - len(self._pair_study) - len(self._under_way)
            wanted = count if room > 0 and self._rounds.first(step + 1) > self._open() else 0
            coming = self._ask(Question(pairs, ranges, first, wanted, self._waiting(known, first)))
            coming.add_done_callback(lambda _: self._work.wake())
            self._measure_until(coming.done)
            found = coming.result()
            if wanted and not found.proposals:  # every plan has been measured, or soon will be
                repeats = 1
                break
            ranges, narrowing_steps = found.ranges, [*narrowing_steps, *found.narrowing_steps]
            for round_, some in self._rounds.dealt(
                step, list(zip(found.proposals, found.limits, strict=True))
            ):
                self._add(round_, some)
        self._measure_until(self._complete)
        pairs = self._pair_study.pairs(before_round=first)
        predictor, ranges, new = learn(terms, pairs, ranges, repeats=repeats)
        targets = tuple(Target(*both) for both in zip(terms.budgets, ranges, strict=True))
        return Fitted(predictor, targets, (*narrowing_steps, *new))

    def _open(self) -> int:
        """The first round to which plans may be added."""
        latest = max((pair.round for pair in self._pair_study.pairs()), default=-1)
        return self._rounds.open(latest)

    def _complete(self, before: float = math.inf) -> bool:
        """Whether nothing of earlier rounds is under way."""
        return all(round_ >= before for _, round_ in self._under_way.values())

    def _waiting(self, known: int, first: int) -> tuple[Plan, ...]:
        """Plans of earlier steps that a step is to know nothing of but that they are taken."""
        measured = self._pair_study.pairs(before_round=first)
        return (
            *(pair.plan for pair in measured if pair.round >= known),
            *(proposal.plan for proposal, _ in self._under_way.values()),
        )

    def _add(self, round_: int, some: Sequence[tuple[Proposal, tuple[float, ...]]]) -> None:
        """Have plans measured that the study does not hold, as many as are wanted at most."""
        if round_ < self._open():
            return
        room = self._wanted - len(self._pair_study) - len(self._under_way)
        todo = [one for one in some if self._pair_study.find(one[0].plan) is None][:room]
        for proposal, _ in todo:
            self._under_way[self._added] = proposal, round_
            self._added += 1
        self._work.add([(proposal.plan, most) for proposal, most in todo])

    def _measure_until(self, ready: Callable[[], bool]) -> None:
        """Write what was measured, as it comes, until something is so."""
        while not ready():
            done = self._work.take()
            if done is None:
                continue
            proposal, round_ = self._under_way.pop(done.place)
            measured = done.measured
            self._writer.add(
                Pair(
                    proposal.plan,
                    measured.loss_increase,
                    measured.tokens,
                    partial=not measured.complete,
                    round=round_,
                    kept=self._shape.kept_share(proposal.plan),
                    seconds=done.seconds,
                    origin=proposal.origin,
                    trajectory=measured.trajectory,
                )
            )
            self._tell()
        self._writer.settle()
        self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(len(self._pair_study), self._wanted)


def judged(text: str, calibrated: Calibrated, targets: Sequence[Target]) -> Fitted:
    """What there is to search with where a proxy objectives and nothing is measured.

    Args:
        text: "proxy:" and the proxy.
        calibrated: the dense model and its text.
        targets: the sizes, with their ranges as they are: nothing narrows them.

    Raises:
        LmscoutError: the proxy cannot judge, or its better side cannot be told.
    """
    (objective,) = calibrated_objectives([text], calibrated)
    return Fitted(None, tuple(targets), (), objective)


def proxy_columns(texts: Sequence[str], calibrated: Calibrated) -> list[Column]:
    """Scores of proxies as columns for a predictor; a plan without a score has 0.

    Raises:
        LmscoutError: a proxy cannot judge.
    """
    objectives = calibrated_objectives(texts, calibrated)
    return [Column(f"proxy.{one.name}", partial(_finite, one)) for one in objectives]


def calibrated_objectives(texts: Sequence[str], calibrated: Calibrated) -> list[ProxyObjective]:
    """Judges by proxies, of which all read the model in one pass of the text of pairs."""
    if not texts:
        return []
    return compute_objectives(
        [parse_proxy(text) for text in texts],
        calibrated.model,
        calibrated.family,
        calibrated.shape,
        calibrated.measured,
    )


def _finite(objective: ProxyObjective, rows: Rows) -> Floats:
    scores = objective.scores(rows)
    return np.where(np.isfinite(scores), scores, 0.0)
