"""Fill a ledger round by round: propose, measure, learn, narrow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmscout.errors import LmscoutError
from lmscout.pruning.judging.judge import Judge
from lmscout.pruning.learning.features import Column, ImportanceMass
from lmscout.pruning.learning.narrowing import Shrink, narrow
from lmscout.pruning.learning.predictor import FEWEST_PAIRS, Predictor, fit_predictor
from lmscout.pruning.ledger import Ledger, Pair
from lmscout.pruning.ledger_writer import LedgerWriter
from lmscout.pruning.searching.covering import Proposal, Target
from lmscout.pruning.searching.space import PlanSpace
from lmscout.pruning.subnetworks.plan import Shape
from lmscout.pruning.subnetworks.plan_arrays import as_rows
from lmscout.pruning.subnetworks.subnetwork import Evaluator
from lmscout.stages import StageProgress

ROUND_SIZE = 20  # small, as every round learns from those before it; the first has twice as many
_ROUNDS = 15  # more would cost more than they teach, where pairs are many
_HOPEFUL = 12  # a plan that is not among so many of its size, as far as measured, is dropped
_ERRORS = 1.0  # standard errors of what a portion foretells of the whole, as room for a plan


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
    extra: Sequence[Column] = (),
    progress: StageProgress | None = None,
) -> Learnt:
    """Measure proposed plans until a ledger holds so many pairs.

    What is proposed in a round, and what of it is dropped early, follows from the seed and the
    pairs of earlier rounds, so that a run that was stopped anywhere goes on to the same end,
    and several devices may share a round.  A round of which the ledger has a later one is not
    opened again, whatever it was proposed for: so sizes can be added to a ledger without
    measuring anew.

    Args:
        ledger: where pairs are kept; those that it holds are not measured again.
        evaluator: measures plans.
        mass: importance of what a plan cuts.
        space: proposes plans.
        targets: sizes that the ledger is to serve; each gets an equal part of every round.
        pairs: how many the ledger is to hold in the end.
        seed: of proposals and predictors.
        round_size: how many plans a round proposes; the first proposes twice as many.  20 by
            default, and more where pairs are many.
        extra: columns that the predictor is told beside its own.
        progress: called with pairs held and wanted.

    Raises:
        LmscoutError: the pairs are too few for a predictor, the loss of a plan is not finite,
            or the ledger cannot be written.
    """
    if pairs < FEWEST_PAIRS:
        raise LmscoutError(
            f"{pairs} pairs are too few for a predictor: measure at least {FEWEST_PAIRS}"
        )
    shape = evaluator.shape
    size = round_size or max(ROUND_SIZE, pairs // _ROUNDS)
    targets = list(targets)
    shrinks: list[Shrink] = []
    number = 0
    if progress:
        progress(len(ledger), pairs)
    with LedgerWriter(ledger) as writer:
        while True:
            earlier = ledger.pairs(before_round=number)
            last = len(earlier) >= pairs
            predictor = None
            if len(earlier) >= FEWEST_PAIRS:
                repeats = 3 if last else 1
                predictor = fit_predictor(
                    earlier, shape, mass, seed=seed, repeats=repeats, extra=extra
                )
                if space.narrows:
                    targets, new = _narrowed(targets, predictor, earlier, shape)
                    shrinks.extend(new)
            if last and predictor is not None:
                return Learnt(predictor, tuple(targets), tuple(shrinks))
            if len(ledger.pairs(before_round=number + 1)) == len(ledger) < pairs:
                proposals = space.propose(
                    targets,
                    count=min(size * (1 if earlier else 2), pairs - len(earlier)),
                    seed=seed,
                    round_=number,
                    pairs=earlier,
                    predictor=predictor,
                )
                if not proposals:  # every plan has been measured
                    return Learnt(predictor, tuple(targets), tuple(shrinks))
                _measure(
                    ledger, writer, evaluator, space, targets, proposals, number, pairs, progress
                )
            number += 1


def _narrowed(
    targets: Sequence[Target], predictor: Predictor, pairs: Sequence[Pair], shape: Shape
) -> tuple[list[Target], list[Shrink]]:
    narrower: list[Target] = []
    shrinks: list[Shrink] = []
    for target in targets:
        ranges, new = narrow(target.ranges, predictor, pairs, shape, target.budget)
        narrower.append(Target(target.budget, ranges))
        shrinks.extend(new)
    return narrower, shrinks


def _measure(
    ledger: Ledger,
    writer: LedgerWriter,
    evaluator: Evaluator,
    space: PlanSpace,
    targets: Sequence[Target],
    proposals: Sequence[Proposal],
    number: int,
    wanted: int,
    progress: StageProgress | None,
) -> None:
    """Measure what a round proposed and the ledger does not hold."""
    todo = [one for one in proposals if ledger.find(one.plan) is None][: wanted - len(ledger)]
    if not todo:
        return

    # Limits follow from earlier rounds alone: so plans of a round may be measured in any order.
    earlier = ledger.pairs(before_round=number)
    limits = []
    for row in as_rows([one.plan for one in todo]):
        of_size = [target for target in targets if space.meets(row[None], target.budget)[0]]
        # Round 0 covers the space: what is bad there teaches as much as what is good.
        racing = number > 0 and of_size
        limits.append(_limits(earlier, space, of_size[0]) if racing else ())
    started = time.perf_counter()
    measurements = evaluator.measure([one.plan for one in todo], limits)
    for proposal, measured in zip(todo, measurements, strict=True):
        now = time.perf_counter()
        writer.add(
            Pair(
                proposal.plan,
                measured.rise,
                measured.tokens,
                partial=not measured.complete,
                round=number,
                kept=evaluator.shape.kept_share(proposal.plan),
                seconds=now - started,
                origin=proposal.origin,
                course=measured.course,
            )
        )
        if progress:
            progress(len(ledger), wanted)
        started = now
    writer.settle()
    if progress:
        progress(len(ledger), wanted)


def _limits(pairs: Sequence[Pair], space: PlanSpace, target: Target) -> tuple[float, ...]:
    """Rises, portion by portion, with which a plan is not among the best of its size so far.

    A plan is compared with others on the text that both have seen, as portions differ more
    than good plans do.  The first portions foretell the whole only so well, as the whole pairs
    show, and near the end of a search all plans are alike: without room for that, chance would
    drop most of them.
    """
    best = space.best_pairs(pairs, target.budget, 2 * _HOPEFUL)
    if len(best) < 2 * _HOPEFUL:
        return ()
    courses = np.array([[rise for _, rise in pair.course] for pair in best])
    places = np.sort(courses[:, :-1], axis=0)[_HOPEFUL - 1]
    errors = (courses[:, :-1] - courses[:, -1:]).std(axis=0, ddof=1)
    return tuple((places + _ERRORS * errors).tolist())
