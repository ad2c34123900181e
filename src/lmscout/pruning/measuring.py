"""Fill a study with pairs step by step: propose, measure, fit, narrow.

On a CPU a step follows from all pairs.  On GPUs a step has a *tail*: the next step follows from
all pairs but those of the tail and is proposed while they are measured, so no device waits.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from lmscout.errors import LmscoutError
from lmscout.progress import StageProgress
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.devices import MeasurementQueue, ParallelEvaluator, SerialQueue
from lmscout.pruning.evaluator import Evaluator, Measurement
from lmscout.pruning.features import Column, ImportanceMass
from lmscout.pruning.plan import Floats, Plan, Rows, Shape
from lmscout.pruning.predictor import Predictor
from lmscout.pruning.proposer import (
    Known,
    NarrowingStep,
    Propose,
    Proposer,
    Step,
    proposals,
)
from lmscout.pruning.proxy_objective import ProxyObjective, compute_objectives, parse_proxy
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.sampler import Proposal
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair, PairStudy, StudyWriter

STEP_SIZE = 20  # plans of a step, at least; the first has twice as many
_STEPS = 15  # more would cost more time than they save pairs
_STEPS_WITH_TAIL = 20  # more steps, as each lacks the tail of the one before
_TAIL = 0.75  # so long that two GPUs measure it while a step is proposed
_TAIL_NOTE = "tail"
_POLL = 0.3  # seconds between two looks at what other processes have measured
_FIRST = 0.4  # share of the pairs before their sizes follow from a bound

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Fitted:
    """What was fitted to the pairs of a study."""

    # Fitted on every pair; None if all plans were measured or none, or with an objective.
    predictor: Predictor | None
    targets: tuple[Target, ...]  # the sizes searched for, with their narrowed ranges
    narrowing_steps: tuple[NarrowingStep, ...]  # how they were narrowed
    # Proxy that replaces the predictor; nothing is measured then.
    objective: ProxyObjective | None = None


def tail_on(device: torch.device) -> float:
    """The tail of steps on a kind of device; the number of devices has no influence."""
    return _TAIL if device.type == "cuda" else 0.0


def first_steps(pairs: int) -> tuple[int, int]:
    """Plans of a step, and pairs of whole steps that are two fifths of all, or all if few.

    For a run whose sizes change after its first steps: where they end does not depend on what a
    stopped run had measured.
    """
    size = max(STEP_SIZE, pairs // _STEPS)
    return size, min(pairs, size * max(2, round(_FIRST * pairs / size)))


@dataclass(frozen=True)
class Rounds:
    """How steps are numbered as rounds of a study.

    Without a tail a step is a round and follows from all rounds before it.  With one it is two
    rounds, its body and its tail, and follows from all rounds before it but the latest tail; the
    first two steps follow from nothing and cover the space, as the first one, twice as large,
    does without a tail.

    All pairs of a round are measured before a step that follows from it is proposed.  So the
    pairs of a study show which steps a stopped run had proposed, and from what.
    """

    tail: float  # share of a step, from 0 to below 1

    @classmethod
    def of(cls, pair_study: PairStudy, tail: float) -> Rounds:
        """The tail with which a study was started, or this one for a new study.

        Raises:
            LmscoutError: the storage cannot be written, or the recorded tail is no share.
        """
        recorded = pair_study.note(_TAIL_NOTE)
        if recorded is None and tail and not len(pair_study):
            recorded = pair_study.note(_TAIL_NOTE, repr(tail))
        try:
            share = float(recorded or 0.0)
        except ValueError:
            share = math.nan
        if not 0 <= share < 1:
            raise LmscoutError(
                f"study at {pair_study.url}: attribute lmscout.{_TAIL_NOTE} was edited or is "
                f"damaged (got {recorded!r}, expected a share from 0 to below 1); restore a copy, "
                "or use another folder or storage"
            )
        return cls(share)

    def first(self, step: int) -> int:
        """The first round of a step."""
        return 2 * step if self.tail else step

    def known(self, step: int) -> int:
        """The number of rounds that a step follows from."""
        if not self.tail:
            return step
        return 2 * step - 1 if step > 1 else 0

    def count(self, step: int, size: int) -> int:
        """The number of plans of a step, if later ones have `size`."""
        return 2 * size if step == 0 and not self.tail else size

    def first_open(self, pair_study: PairStudy) -> int:
        """The first round that may lack pairs: no step has followed from it."""
        latest = max((pair.round for pair in pair_study.pairs()), default=0)
        return self.known(latest // 2 if self.tail else latest)

    def split(self, step: int, items: Sequence[_Item]) -> list[tuple[int, Sequence[_Item]]]:
        """The items of a step, by round."""
        if not self.tail:
            return [(step, items)]
        body = max(1, len(items) - round(self.tail * len(items)))
        return [(2 * step, items[:body]), (2 * step + 1, items[body:])]


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
    group: str = "",
    progress: StageProgress | None = None,
) -> Fitted:
    """Measure proposed plans until a study holds a number of pairs.

    The plans of a step and their early-stopping limits follow from the seed and the pairs of
    earlier rounds.  So a stopped run continues to the same end, on any number of devices.  Pairs
    that a later step followed from are not measured again, so sizes can be added to a study.

    Of several processes on one study, one measures at a time; the others wait and continue with
    its pairs.  Those of one group measure together: each claims plans of the step, and waits for
    the pairs of the others before the next step, which is the same for all.

    Each target has an equal share of every step.  A step has `round_size` plans, by default 20 or
    more if `pairs` is large; the first has twice as many.  A study continues with the `tail` that
    it was started with, see `tail_on`; `group` is that of `PairStudy.locked`, `extra` are
    additional features of the predictor.  `progress` is called with the number of pairs, and the
    number wanted.

    Raises:
        LmscoutError: the loss of a plan is not finite, the study cannot be written, or the process
            that proposes has ended.
    """
    budgets = tuple(target.budget for target in targets)
    proposer = Proposer(evaluator.shape, mass, space, budgets, seed, tuple(extra))

    def waiting(found: int) -> None:
        if progress:
            progress(min(found, pairs), pairs)

    with pair_study.locked(waiting if progress else None, group=group):
        rounds = Rounds.of(pair_study, tail)
        several = evaluator if isinstance(evaluator, ParallelEvaluator) else None
        if rounds.tail and several is None:
            several = ParallelEvaluator([evaluator])
        steps = _STEPS_WITH_TAIL if rounds.tail else _STEPS
        size = round_size or max(STEP_SIZE, pairs // steps)
        if progress:
            progress(len(pair_study), pairs)
        with (
            StudyWriter(pair_study) as writer,
            proposals(proposer, ahead=rounds.tail > 0) as propose,
            closing(
                several.queue() if several and rounds.tail else SerialQueue(evaluator)
            ) as queue,
        ):
            at_once = several.devices if several else 1
            run = _Run(
                *(pair_study, evaluator.shape, writer, queue, propose, rounds, pairs, at_once),
                progress,
            )
            return run.finish(proposer, tuple(target.ranges for target in targets), size)


@dataclass
class _Run:
    """Plans in a queue, and the study of their pairs."""

    pair_study: PairStudy
    shape: Shape
    writer: StudyWriter
    queue: MeasurementQueue
    propose: Propose
    rounds: Rounds
    wanted: int
    devices: int  # plans that are measured at once
    progress: StageProgress | None

    def __post_init__(self) -> None:
        self._added = 0
        # Proposed plans without a pair, in order, with their early-stopping limits and round.
        self._open: dict[Plan, tuple[Proposal, tuple[float, ...], int]] = {}
        self._queued: dict[int, Plan] = {}  # those that are measured here, by task number

    def finish(self, proposer: Proposer, ranges: tuple[Ranges, ...], size: int) -> Fitted:
        """Step by step, from the first one, until the study has the wanted number of pairs."""
        narrowing_steps: list[NarrowingStep] = []
        repeats = 3
        for step in itertools.count():
            first, known = self.rounds.first(step), self.rounds.known(step)
            planned = len(self.pair_study.pairs(before_round=first)) + len(self._open)
            if planned >= self.wanted:
                break
            self._measure_until(partial(self._complete, known))
            count = min(self.rounds.count(step, size), self.wanted - planned)
            if not self._room or self.rounds.first(step + 1) <= self._first_open:
                count = 0
            pairs = self.pair_study.pairs(before_round=known)
            proposed = self._proposed(Known(pairs, ranges, first, count, self._pending(step)))
            if count and not proposed.proposals:  # every plan is measured or queued
                repeats = 1
                break
            ranges = proposed.ranges
            narrowing_steps += proposed.narrowing_steps
            tasks = list(zip(proposed.proposals, proposed.limits, strict=True))
            for round_, some in self.rounds.split(step, tasks):
                self._add(round_, some)
        self._measure_until(self._complete)
        pairs = self.pair_study.pairs(before_round=first)
        predictor, ranges, last_steps = proposer.fit(pairs, ranges, repeats=repeats)
        targets = tuple(Target(*both) for both in zip(proposer.budgets, ranges, strict=True))
        return Fitted(predictor, targets, (*narrowing_steps, *last_steps))

    @property
    def _room(self) -> int:
        """Number of plans that may be added."""
        return max(0, self.wanted - len(self.pair_study) - len(self._open))

    @property
    def _first_open(self) -> int:
        return self.rounds.first_open(self.pair_study)

    def _complete(self, before: float = math.inf) -> bool:
        """Whether all plans of earlier rounds have a pair."""
        return all(round_ >= before for *_, round_ in self._open.values())

    def _pending(self, step: int) -> tuple[Plan, ...]:
        """Plans of earlier steps whose pairs a step does not follow from."""
        measured = self.pair_study.pairs(before_round=self.rounds.first(step))
        known = self.rounds.known(step)
        return (
            *(pair.plan for pair in measured if pair.round >= known),
            *self._open,
        )

    def _proposed(self, known: Known) -> Step:
        """Measure until a step is proposed."""
        try:
            future = self.propose(known)
            future.add_done_callback(lambda _: self.queue.wake())
            self._measure_until(future.done)
            return future.result()
        except BrokenExecutor as error:
            raise LmscoutError(
                "the process that proposes plans has ended, perhaps because memory ran out: run "
                "the same command again; it continues where this one stopped"
            ) from error

    def _add(self, round_: int, tasks: Sequence[tuple[Proposal, tuple[float, ...]]]) -> None:
        """Add plans that the study does not hold, as many as are wanted."""
        if round_ < self._first_open:
            return
        new = [one for one in tasks if self.pair_study.find(one[0].plan) is None][: self._room]
        self._open |= {one[0].plan: (*one, round_) for one in new}
        self._claim()

    def _claim(self) -> None:
        """Queue plans that no other process has: a part of them, if others measure as well.

        Parts are smaller towards the end of a step, so that all end together.
        """
        others = self.pair_study.others
        mine = set(self._queued.values())
        left = [plan for plan in self._open if plan not in mine]
        most = max(self.devices, math.ceil(len(left) / (2 * others + 2))) if others else len(left)
        claimed = self.pair_study.claim(left, most)
        for plan in left:
            if self.pair_study.find(plan) is not None:  # by another process, meanwhile
                del self._open[plan]
        for plan in claimed:
            self._queued[self._added] = plan
            self._added += 1
        self.queue.add([(plan, self._open[plan][1]) for plan in claimed])

    def _measure_until(self, ready: Callable[[], bool]) -> None:
        """Write results until a condition holds."""
        while not ready():
            if len(self._queued) < min(self.devices, len(self._open)):
                self._claim()
                if not self._queued:  # others measure what is left
                    self._report()
                    time.sleep(_POLL if self._open else 0.0)
                    continue
            if (done := self.queue.take()) is None:
                continue
            plan = self._queued.pop(done.number)
            proposal, _, round_ = self._open.pop(plan)
            self.writer.add(pair_of(proposal, done.measurement, self.shape, done.seconds, round_))
            self._report()
        self.writer.flush()
        self._report()

    def _report(self) -> None:
        if self.progress:
            self.progress(len(self.pair_study), self.wanted)


def pair_of(
    proposal: Proposal, measurement: Measurement, shape: Shape, seconds: float, round_: int = 0
) -> Pair:
    """The pair of a proposed plan and its measurement."""
    return Pair(
        proposal.plan,
        measurement.loss_increase,
        measurement.tokens,
        partial=not measurement.complete,
        round=round_,
        kept=shape.kept_share(proposal.plan),
        seconds=seconds,
        origin=proposal.origin,
        trajectory=measurement.trajectory,
    )


def fitted_to_proxy(text: str, calibrated: Calibrated, targets: Sequence[Target]) -> Fitted:
    """A proxy, as ``proxy:NAME``, in place of a predictor; nothing is measured or narrowed.

    Raises:
        LmscoutError: the proxy cannot score subnetworks, or its sign cannot be determined.
    """
    (objective,) = proxy_objectives([text], calibrated)
    return Fitted(None, tuple(targets), (), objective)


def proxy_columns(texts: Sequence[str], calibrated: Calibrated) -> list[Column]:
    """Scores of proxies as features of a predictor; 0 for a plan without a score.

    Raises:
        LmscoutError: a proxy cannot score subnetworks.
    """

    def finite(objective: ProxyObjective, rows: Rows) -> Floats:
        return np.nan_to_num(objective.scores(rows), nan=0.0, posinf=0.0, neginf=0.0)

    return [
        Column(f"proxy.{one.name}", partial(finite, one))
        for one in proxy_objectives(texts, calibrated)
    ]


def proxy_objectives(texts: Sequence[str], calibrated: Calibrated) -> list[ProxyObjective]:
    """Objectives by proxies, computed in one pass over the text of pairs."""
    if not texts:
        return []
    return compute_objectives(
        [parse_proxy(text) for text in texts],
        calibrated.model,
        calibrated.family,
        calibrated.shape,
        calibrated.measured,
    )
