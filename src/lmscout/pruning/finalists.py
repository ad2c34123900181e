"""The last few plans of every size, measured once more on text that chose none of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lmscout.progress import StageProgress
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.measuring import Fitted
from lmscout.pruning.plan import Plan, as_rows
from lmscout.pruning.ranges import Target
from lmscout.pruning.results import Finalist
from lmscout.pruning.sampler import order_for_prefix_sharing
from lmscout.pruning.search import search
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair, PairStudy

STUDY = "lmscout-finalists"
_MEASURED = 8  # the best measured plans of a size, and
_PREDICTED = 4  # the best that a search predicts beyond them


def candidates_of(
    pair_study: PairStudy, fitted: Fitted, space: PlanSpace, target: Target, seed: int
) -> list[Plan]:
    """The best measured plans of a size, and the best predicted beyond them.

    Where a proxy objectives, its best plan alone: it has won.
    """
    if fitted.objective is not None:
        judged = search(space, fitted.objective.loss_increases, target, seed=seed, count=1)
        return [one.plan for one in judged]
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
    fresh = [one.plan for one in found if pair_study.find(one.plan) is None]
    return [*best, *fresh[:_PREDICTED]]


def measure_finalists(
    calibrated: Calibrated,
    pair_study: PairStudy,
    finals: PairStudy,
    fitted: Fitted,
    candidates: Sequence[Sequence[Plan]],
    progress: StageProgress | None = None,
) -> list[list[Finalist]]:
    """Measure candidates on the text that no pair has seen.

    Args:
        calibrated: the dense model and the text.
        pair_study: of the pairs.
        finals: of the finalists; what it holds is not measured again.
        fitted: from the pairs.
        candidates: plans, for every size.
        progress: called with plans measured and in all.

    Returns:
        For every size its finalists, best first.  Where a proxy objectives, nothing is measured.
    """
    if fitted.objective is not None:
        return [[Finalist(plan, None, None, None, ()) for plan in plans] for plans in candidates]
    everything = list(dict.fromkeys(plan for plans in candidates for plan in plans))
    with finals.alone():  # what another process measured is not measured again
        _measure_missing(calibrated, finals, everything, progress)
    contests = []
    for plans in candidates:
        predicted: list[float | None] = [None] * len(plans)
        if fitted.predictor is not None:
            predicted = fitted.predictor.predict(as_rows(plans)).tolist()
        contest = [
            _finalist(plan, loss_increase, pair_study.find(plan), finals.find(plan))
            for plan, loss_increase in zip(plans, predicted, strict=True)
        ]
        contests.append(sorted(contest, key=lambda one: one.held_out or 0.0))
    return contests


def _measure_missing(
    calibrated: Calibrated,
    finals: PairStudy,
    everything: Sequence[Plan],
    progress: StageProgress | None,
) -> None:
    """Measure those plans that are not among the finalists' pairs."""
    todo = order_for_prefix_sharing([plan for plan in everything if finals.find(plan) is None])
    done = len(everything) - len(todo)
    if todo:
        evaluator = calibrated.evaluator(calibrated.final)
        started = time.perf_counter()
        for plan, measured in zip(todo, evaluator.measure(todo), strict=True):
            now = time.perf_counter()
            finals.add(
                Pair(
                    plan,
                    measured.loss_increase,
                    measured.tokens,
                    kept=calibrated.shape.kept_share(plan),
                    seconds=now - started,
                    origin="finalist",
                    trajectory=measured.trajectory,
                )
            )
            started = now
            done += 1
            if progress:
                progress(done, len(everything))


def _finalist(
    plan: Plan, predicted: float | None, pair: Pair | None, final: Pair | None
) -> Finalist:
    assert final is not None  # measured just now, or before
    chunks, tokens, total = [], 0, 0.0
    for so_far, loss_increase in final.trajectory:
        chunks.append((loss_increase * so_far - total) / (so_far - tokens))
        tokens, total = so_far, loss_increase * so_far
    measured = None if pair is None else pair.value
    return Finalist(plan, predicted, measured, final.value, tuple(chunks))
