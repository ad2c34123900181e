"""Finalists: the best plans of every size, measured again on held-out text, the best ones refit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lmscout.progress import StageProgress
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.evaluator import Measurement
from lmscout.pruning.features import ImportanceMass
from lmscout.pruning.measuring import Fitted, pair_of
from lmscout.pruning.plan import Plan, Shape, as_rows
from lmscout.pruning.ranges import Target
from lmscout.pruning.results import Finalist
from lmscout.pruning.sampler import Proposal, order_for_prefix_sharing
from lmscout.pruning.search import allocate, search
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair, PairStudy

STUDY = "lmscout-finalists"
REFIT_STUDY = "lmscout-refit"
_MEASURED = 8  # best measured plans of a size
_PREDICTED = 4  # best predicted plans beyond them
MOST_REFIT = 3  # best finalists of a size, which are measured with refit weights as well


def candidates_of(
    pair_study: PairStudy,
    fitted: Fitted,
    space: PlanSpace,
    target: Target,
    mass: ImportanceMass,
    seed: int,
) -> list[Plan]:
    """The best measured plans of a size, and the best predicted ones beyond them.

    With a proxy as objective, its best plan alone; without pairs, the allocation by `mass`.
    """
    if fitted.objective is not None:
        found = search(space, fitted.objective.loss_increases, target, seed=seed, count=1)
        return [one.plan for one in found]
    best = [pair.plan for pair in space.best_pairs(pair_study.pairs(), target.budget, _MEASURED)]
    if fitted.predictor is None:
        return best or [allocate(space, target, mass)]
    found = search(
        space,
        fitted.predictor.cautious,
        target,
        seed=seed,
        count=_MEASURED + _PREDICTED,
        initial=best,
    )
    unmeasured = [one.plan for one in found if pair_study.find(one.plan) is None]
    return [*best, *unmeasured[:_PREDICTED]]


def measure_finalists(
    calibrated: Calibrated,
    pair_study: PairStudy,
    finals: PairStudy,
    fitted: Fitted,
    candidates: Sequence[Sequence[Plan]],
    progress: StageProgress | None = None,
) -> list[list[Finalist]]:
    """Measure candidates on text that no pair has used.

    Args:
        calibrated: the dense model and the text.
        pair_study: study of the pairs.
        finals: study of the finalists; its plans are not measured again.
        fitted: what was fitted to the pairs.
        candidates: plans of every size.
        progress: called with the number of measured plans, and of all.

    Returns:
        Finalists of every size, best first.  With a proxy as objective nothing is measured.
    """
    if fitted.objective is not None:
        return [[Finalist(plan, None, None, None, ()) for plan in plans] for plans in candidates]
    plans = list(dict.fromkeys(plan for some in candidates for plan in some))

    def measure(missing: Sequence[Plan]) -> Iterable[Measurement]:
        return calibrated.evaluator(calibrated.final).measure(missing)

    plans = order_for_prefix_sharing(plans)
    _measure_missing(finals, plans, "finalist", measure, calibrated.shape, progress)
    contests = []
    for some in candidates:
        predicted: list[float | None] = [None] * len(some)
        if fitted.predictor is not None:
            predicted = fitted.predictor.predict(as_rows(some)).tolist()
        contest = [
            _finalist(plan, loss_increase, pair_study.find(plan), finals.find(plan))
            for plan, loss_increase in zip(some, predicted, strict=True)
        ]
        contests.append(sorted(contest, key=lambda one: one.held_out or 0.0))
    return contests


def refit_finalists(
    calibrated: Calibrated,
    refits: PairStudy,
    contests: Sequence[Sequence[Finalist]],
    progress: StageProgress | None = None,
    *,
    count: int = MOST_REFIT,
) -> list[list[Finalist]]:
    """Measure the best finalists of every size with refit weights, and sort them by it.

    Args:
        calibrated: the dense model and the text.
        refits: study of refit finalists; its plans are not measured again.
        contests: finalists of every size, best first.
        progress: called with the number of refit plans, and of all.
        count: of finalists of a size that are refit.

    Returns:
        Finalists of every size, best first: the refit ones before the others.
    """
    best = [contest[:count] for contest in contests]
    plans = list(dict.fromkeys(one.plan for some in best for one in some))

    def measure(missing: Sequence[Plan]) -> Iterable[Measurement]:
        for plan in missing:
            yield calibrated.measured_held_out(calibrated.subnetwork(plan, "refit"))

    _measure_missing(refits, plans, "refit", measure, calibrated.shape, progress)
    results = []
    for contest in contests:
        some = []
        for one in contest[:count]:
            pair = refits.find(one.plan)
            assert pair is not None
            some.append(replace(one, refit=pair.value, chunks=_by_chunk(pair)))
        some.sort(key=lambda one: one.refit or 0.0)
        results.append([*some, *contest[count:]])
    return results


def _measure_missing(
    study: PairStudy,
    plans: Sequence[Plan],
    origin: str,
    measure: Callable[[Sequence[Plan]], Iterable[Measurement]],
    shape: Shape,
    progress: StageProgress | None,
) -> None:
    """Measure the plans that a study does not hold, in their order, in turns with other runs."""
    with study.locked():
        missing = [plan for plan in plans if study.find(plan) is None]
        if not missing:
            return
        started = time.perf_counter()
        done = len(plans) - len(missing)
        for plan, measured in zip(missing, measure(missing), strict=True):
            now = time.perf_counter()
            study.add(pair_of(Proposal(plan, origin), measured, shape, now - started))
            started = now
            done += 1
            if progress:
                progress(done, len(plans))


def _finalist(
    plan: Plan, predicted: float | None, pair: Pair | None, final: Pair | None
) -> Finalist:
    assert final is not None  # measured before
    measured = None if pair is None else pair.value
    return Finalist(plan, predicted, measured, final.value, _by_chunk(final))


def _by_chunk(pair: Pair) -> tuple[float, ...]:
    """The loss increase on each chunk alone."""
    chunks, tokens, total = [], 0, 0.0
    for so_far, loss_increase in pair.trajectory:
        chunks.append((loss_increase * so_far - total) / (so_far - tokens))
        tokens, total = so_far, loss_increase * so_far
    return tuple(chunks)
