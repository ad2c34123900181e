"""Fill a ledger step by step: propose, measure, learn, narrow.

A processor measures a step to its end before it proposes the next.  Devices would wait meanwhile.
So for them a step has a *tail*: the next one follows from all pairs but those of the tail, and is
proposed while they measure it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from lmscout.pruning.judging.judge import Judge
from lmscout.pruning.learning.features import Column, ImportanceMass
from lmscout.pruning.learning.narrowing import Shrink
from lmscout.pruning.learning.predictor import Predictor, check_enough
from lmscout.pruning.ledger import Ledger, Pair
from lmscout.pruning.ledger_writer import LedgerWriter
from lmscout.pruning.proposing import Asks, Question, Terms, asked_ahead, asked_here, learn
from lmscout.pruning.rounds import Rounds
from lmscout.pruning.searching.covering import Proposal, Target
from lmscout.pruning.searching.ranges import Ranges
from lmscout.pruning.searching.space import PlanSpace
from lmscout.pruning.subnetworks.parallel import ParallelEvaluator
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.subnetwork import Evaluator
from lmscout.pruning.subnetworks.workload import Workload, measured_here
from lmscout.stages import StageProgress

STEP_SIZE = 20  # small, as every step learns from those before it; the first has twice as many
_STEPS = 15  # more would cost more than they teach, where pairs are many
_SHORT_STEPS = 20  # with a tail: what is proposed is based on as new pairs as without
_TAIL = 0.75  # so long that two GPUs measure it while a step is proposed


@dataclass(frozen=True)
class Learnt:
    """What a ledger has taught.

    Attributes:
        predictor: fitted on every pair; None where there are too few plans to learn from, all
            of them measured.
        targets: the sizes searched for, with their ranges as narrowed.
        shrinks: every narrowing, in words and numbers.
        judge: what stands in for a predictor where nothing is measured.
    """

    predictor: Predictor | None
    targets: tuple[Target, ...]
    shrinks: tuple[Shrink, ...]
    judge: Judge | None = None


def tail_on(device: torch.device) -> float:
    """The tail of steps that a kind of device measures.

    It depends on nothing else, so that what is found does not depend on how many there are.
    """
    return _TAIL if device.type == "cuda" else 0.0


def measure_rounds(
    ledger: Ledger,
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
) -> Learnt:
    """Measure proposed plans until a ledger holds so many pairs.

    What a step proposes, and what of it is dropped early, follows from the seed and the pairs of
    earlier rounds, so that a run that was stopped anywhere goes on to the same end, and several
    devices may share the work.  What a later step was proposed from is not measured again,
    whatever it was proposed for: so sizes can be added to a ledger without measuring anew.

    Of several processes that would measure for one study one does at a time; the others wait, and
    go on with its pairs.

    Args:
        ledger: where pairs are kept; those that it holds are not measured again.  It goes on as
            it was begun, with a tail or without.
        evaluator: measures plans.
        mass: importance of what a plan cuts.
        space: proposes plans.
        targets: sizes that the ledger is to serve; each gets an equal part of every step.
        pairs: how many the ledger is to hold in the end.
        seed: of proposals and predictors.
        round_size: how many plans a step proposes; the first proposes twice as many.  20 by
            default, and more where pairs are many.
        tail: share of a step that is measured while the next one is proposed in another
            process; `tail_on` says which is right for a device.
        extra: columns that the predictor is told beside its own.
        progress: called with pairs held and wanted.

    Raises:
        LmscoutError: the pairs are too few for a predictor, the loss of a plan is not finite,
            the ledger cannot be written, or the process that proposes has ended.
    """
    check_enough(pairs)
    with ledger.alone(progress and (lambda there: progress(min(there, pairs), pairs))):
        return _measure_alone(
            ledger,
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
    ledger: Ledger,
    evaluator: Evaluator,
    terms: Terms,
    ranges: tuple[Ranges, ...],
    pairs: int,
    round_size: int | None,
    tail: float,
    progress: StageProgress | None,
) -> Learnt:
    rounds = Rounds.of(ledger, tail)
    if progress:
        progress(len(ledger), pairs)
    with (
        LedgerWriter(ledger) as writer,
        (asked_ahead if rounds.tail else asked_here)(terms) as ask,
        _workload(evaluator, by_itself=rounds.tail > 0) as work,
    ):
        run = _Run(ledger, evaluator.shape, writer, work, ask, rounds, pairs, progress)
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
    """Plans under way, and the ledger that their pairs go into."""

    def __init__(
        self,
        ledger: Ledger,
        shape: Shape,
        writer: LedgerWriter,
        work: Workload,
        ask: Asks,
        rounds: Rounds,
        wanted: int,
        progress: StageProgress | None,
    ) -> None:
        self._ledger, self._writer, self._work = ledger, writer, work
        self._ask, self._rounds = ask, rounds
        self._wanted, self._progress = wanted, progress
        self._shape = shape
        self._added = 0
        self._under_way: dict[int, tuple[Proposal, int]] = {}  # with its round, by its place

    def to_the_end(self, terms: Terms, ranges: tuple[Ranges, ...], size: int) -> Learnt:
        """Step by step, from the first on, until there are as many pairs as are wanted."""
        shrinks: list[Shrink] = []
        repeats = 3
        for step in itertools.count():
            first, known = self._rounds.first(step), self._rounds.known(step)
            planned = len(self._ledger.pairs(before_round=first)) + len(self._under_way)
            if planned >= self._wanted:
                break
            self._measure_until(partial(self._complete, before=known))
            pairs = self._ledger.pairs(before_round=known)
            count = min(self._rounds.count(step, size), self._wanted - planned)
            room = self._wanted - len(self._ledger) - len(self._under_way)
            wanted = count if room > 0 and self._rounds.first(step + 1) > self._open() else 0
            coming = self._ask(Question(pairs, ranges, first, wanted, self._waiting(known, first)))
            coming.add_done_callback(lambda _: self._work.wake())
            self._measure_until(coming.done)
            found = coming.result()
            if wanted and not found.proposals:  # every plan has been measured, or soon will be
                repeats = 1
                break
            ranges, shrinks = found.ranges, [*shrinks, *found.shrinks]
            for round_, some in self._rounds.dealt(
                step, list(zip(found.proposals, found.limits, strict=True))
            ):
                self._add(round_, some)
        self._measure_until(self._complete)
        pairs = self._ledger.pairs(before_round=first)
        predictor, ranges, new = learn(terms, pairs, ranges, repeats=repeats)
        targets = tuple(Target(*both) for both in zip(terms.budgets, ranges, strict=True))
        return Learnt(predictor, targets, (*shrinks, *new))

    def _open(self) -> int:
        """The first round to which plans may be added."""
        latest = max((pair.round for pair in self._ledger.pairs()), default=-1)
        return self._rounds.open(latest)

    def _complete(self, before: float = math.inf) -> bool:
        """Whether nothing of earlier rounds is under way."""
        return all(round_ >= before for _, round_ in self._under_way.values())

    def _waiting(self, known: int, first: int) -> tuple[Plan, ...]:
        """Plans of earlier steps that a step is to know nothing of but that they are taken."""
        measured = self._ledger.pairs(before_round=first)
        return (
            *(pair.plan for pair in measured if pair.round >= known),
            *(proposal.plan for proposal, _ in self._under_way.values()),
        )

    def _add(self, round_: int, some: Sequence[tuple[Proposal, tuple[float, ...]]]) -> None:
        """Have plans measured that the ledger does not hold, as many as are wanted at most."""
        if round_ < self._open():
            return
        room = self._wanted - len(self._ledger) - len(self._under_way)
        todo = [one for one in some if self._ledger.find(one[0].plan) is None][:room]
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
                    measured.rise,
                    measured.tokens,
                    partial=not measured.complete,
                    round=round_,
                    kept=self._shape.kept_share(proposal.plan),
                    seconds=done.seconds,
                    origin=proposal.origin,
                    course=measured.course,
                )
            )
            self._tell()
        self._writer.settle()
        self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(len(self._ledger), self._wanted)
