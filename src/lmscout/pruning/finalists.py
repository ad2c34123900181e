"""Finalists: the best plans of every size, measured again on held-out text."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lmscout.progress import StageProgress
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.measuring import Fitted, pair_of
from lmscout.pruning.plan import Plan, as_rows
from lmscout.pruning.ranges import Target
from lmscout.pruning.results import Finalist
from lmscout.pruning.sampler import Proposal, order_for_prefix_sharing
from lmscout.pruning.search import search
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair, PairStudy

STUDY = "lmscout-finalists"
_MEASURED = 8  # best measured plans of a size
_PREDICTED = 4  # best predicted plans beyond them


def candidates_of(
    pair_study: PairStudy, fitted: Fitted, space: PlanSpace, target: Target, seed: int
) -> list[Plan]:
    """The best measured plans of a size, and the best predicted ones beyond them.

    With a proxy as objective, its best plan alone.
    """
    if fitted.objective is not None:
        found = search(space, fitted.objective.loss_increases, target, seed=seed, count=1)
        return [one.plan for one in found]
    best = [pair.plan for pair in space.best_pairs(pair_study.pairs(), target.budget, _MEASURED)]
    if fitted.predictor is None:
        return best
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
    with finals.locked():
        _measure_missing(calibrated, finals, plans, progress)
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


def _measure_missing(
    calibrated: Calibrated,
    finals: PairStudy,
    plans: Sequence[Plan],
    progress: StageProgress | None,
) -> None:
    missing = order_for_prefix_sharing([plan for plan in plans if finals.find(plan) is None])
    if not missing:
        return
    evaluator = calibrated.evaluator(calibrated.final)
    started = time.perf_counter()
    done = len(plans) - len(missing)
    for plan, measured in zip(missing, evaluator.measure(missing), strict=True):
        now = time.perf_counter()
        proposal = Proposal(plan, "finalist")
        finals.add(pair_of(proposal, measured, calibrated.shape, now - started))
        started = now
        done += 1
        if progress:
            progress(done, len(plans))


def _finalist(
    plan: Plan, predicted: float | None, pair: Pair | None, final: Pair | None
) -> Finalist:
    assert final is not None  # measured before
    chunks, tokens, total = [], 0, 0.0
    for so_far, loss_increase in final.trajectory:
        chunks.append((loss_increase * so_far - total) / (so_far - tokens))
        tokens, total = so_far, loss_increase * so_far
    measured = None if pair is None else pair.value
    return Finalist(plan, predicted, measured, final.value, tuple(chunks))
