"""Finalists: the best plans of a size, measured again on held-out text, the best ones refit.

The smallest size whose loss increase meets a bound, and the front of size and quality, are found
by the best plans of several sizes, with the weights that would be saved.  Held-out windows are a
sample, so not their mean counts but its upper limit, see `upper_limit`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain

import numpy as np
from scipy.stats import t as student

from lmscout.errors import LmscoutError
from lmscout.progress import StageProgress
from lmscout.pruning.budgets import Budget
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.evaluator import Measurement
from lmscout.pruning.measuring import Fitted, pair_of
from lmscout.pruning.plan import Plan, as_rows
from lmscout.pruning.ranges import Target
from lmscout.pruning.results import Finalist, FrontPoint, QualityBound, TestedSize
from lmscout.pruning.sampler import Proposal, order_for_prefix_sharing
from lmscout.pruning.search import allocate, search
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair, PairStudy

STUDY = "lmscout-finalists"
REFIT_STUDY = "lmscout-refit"
_MEASURED = 8  # best measured plans of a size
_PREDICTED = 4  # best predicted plans beyond them
MOST_REFIT = 3  # best finalists of a size, which are measured with refit weights as well

CONFIDENCE = 0.9
STEP = 0.005  # between sizes
SPREAD = (0.95, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35)  # sizes of pairs, where none is given
FRONT = tuple(round(0.95 - 0.05 * number, 2) for number in range(14))  # to 0.3
NEARBY = (1.0, 0.97, 0.94)  # of a size that meets a bound: sizes of the pairs that follow
COARSE, FINE = 0.05, 0.015  # share of a size by which one that fails is smaller, at most

TESTS = 5  # of sizes by a bisection, typically
_SIZES = tuple(round(1 - STEP * number, 3) for number in range(1, round(1 / STEP)))
_HOPELESS = 1.1  # of a bound: above it no other finalist of a size is refit
_LEAST = 1e-6  # nats/token, the least argument of a logarithm
_EXPONENTS = (0.7, 3.0)  # of measured loss increases by estimated ones


def upper_limit(trajectory: Sequence[tuple[int, float]]) -> float:
    """Upper limit of the loss increase on another text, from the chunks of a measured one.

    If windows are draws from one distribution, the mean loss increase on as many further windows
    is below the limit with probability `CONFIDENCE`: a one-sided prediction interval by Student's
    t, exact if the means of chunks are normal.  On a longer text it is so more often.

    Args:
        trajectory: after each chunk, the tokens so far and the loss increase on them, nats/token.

    Returns:
        Nats/token; infinite for a single chunk, or if a loss increase is not finite.
    """
    tokens, means = np.array(trajectory, np.float64).T
    counts = np.diff(tokens, prepend=0.0)
    chunks = np.diff(means * tokens, prepend=0.0) / counts
    freedom = len(chunks) - 1
    if not freedom or not np.isfinite(chunks).all():
        return math.inf
    mean = float(means[-1])
    # Variance of the mean of all tokens, and again of that of as many others.
    variance = 2 * float(counts @ (chunks - mean) ** 2) / freedom / float(tokens[-1])
    return mean + float(student.ppf(CONFIDENCE, freedom)) * math.sqrt(variance)


def feasible(
    space: PlanSpace, budget_at: Callable[[float], Budget], sizes: Sequence[float]
) -> list[float]:
    """Those of some sizes that a plan of the space has."""
    found = []
    for keep in sizes:
        with suppress(LmscoutError):
            space.require(budget_at(keep))
            found.append(keep)
    return found


@dataclass(frozen=True, eq=False)
class Contest:
    """What finds and measures the best plans of any size."""

    calibrated: Calibrated
    pairs: PairStudy
    finals: PairStudy
    refits: PairStudy
    fitted: Fitted
    space: PlanSpace
    budget_at: Callable[[float], Budget]
    refit: bool  # whether finalists are refit
    seed: int

    def feasible(self, sizes: Sequence[float]) -> list[float]:
        """Those of some sizes that a plan has."""
        return feasible(self.space, self.budget_at, sizes)

    def candidates(self, target: Target) -> list[Plan]:
        """The best measured plans of a size, and the best predicted ones beyond them.

        With a proxy as objective, its best plan alone; without pairs, the allocation.
        """
        fitted, seed = self.fitted, self.seed
        if fitted.objective is not None:
            predict = fitted.objective.loss_increases
            return [one.plan for one in search(self.space, predict, target, seed=seed, count=1)]
        found = self.space.best_pairs(self.pairs.pairs(), target.budget, _MEASURED)
        best = [pair.plan for pair in found]
        if fitted.predictor is None:
            return best or [allocate(self.space, target, self.calibrated.mass)]
        count, predict = _MEASURED + _PREDICTED, fitted.predictor.cautious
        predicted = search(self.space, predict, target, seed=seed, count=count, initial=best)
        unmeasured = [one.plan for one in predicted if self.pairs.find(one.plan) is None]
        return [*best, *unmeasured[:_PREDICTED]]

    def measured(
        self, candidates: Sequence[Sequence[Plan]], progress: StageProgress | None = None
    ) -> list[list[Finalist]]:
        """Measure candidates of every size on text that no pair has used.

        Returns:
            Finalists of every size, best first.  With a proxy as objective nothing is measured.
        """
        if self.fitted.objective is not None:
            return [[Finalist(one, None, None, None, ()) for one in plans] for plans in candidates]

        def measure(missing: Sequence[Plan]) -> Iterable[Measurement]:
            return self.calibrated.evaluator(self.calibrated.final).measure(missing)

        plans = order_for_prefix_sharing(list(dict.fromkeys(chain(*candidates))))
        self._measure_missing(self.finals, plans, "finalist", measure, progress)
        contests = []
        for some in candidates:
            predicted: list[float | None] = [None] * len(some)
            if self.fitted.predictor is not None:
                predicted = self.fitted.predictor.predict(as_rows(some)).tolist()
            contest = []
            for plan, loss_increase in zip(some, predicted, strict=True):
                pair, final = self.pairs.find(plan), _found(self.finals, plan)
                measured = None if pair is None else pair.value
                chunks = _by_chunk(final)
                contest.append(Finalist(plan, loss_increase, measured, final.value, chunks))
            contests.append(sorted(contest, key=lambda one: one.held_out or 0.0))
        return contests

    def with_refits(
        self,
        contests: Sequence[Sequence[Finalist]],
        progress: StageProgress | None = None,
        *,
        count: int = MOST_REFIT,
        also: Sequence[Plan] = (),
    ) -> list[list[Finalist]]:
        """Measure the best finalists of every size with refit weights, so many of each.

        Those of the plans in `also` are refit as well.

        Returns:
            Finalists of every size, best first: the refit ones before the others.
        """
        chosen = [
            [*contest[:count], *(one for one in contest[count:] if one.plan in also)]
            for contest in contests
        ]
        best = dict.fromkeys(one.plan for some in chosen for one in some)

        def measure(missing: Sequence[Plan]) -> Iterable[Measurement]:
            for plan in missing:
                model = self.calibrated.subnetwork(plan, "refit")
                yield self.calibrated.measured_held_out(model)

        self._measure_missing(self.refits, list(best), "refit", measure, progress)
        results = []
        for contest, some in zip(contests, chosen, strict=True):
            refit = []
            for one in some:
                pair = _found(self.refits, one.plan)
                refit.append(replace(one, refit=pair.value, chunks=_by_chunk(pair)))
            refit.sort(key=lambda one: one.refit or 0.0)
            results.append([*refit, *(one for one in contest if one not in some)])
        return results

    def _measure_missing(
        self,
        study: PairStudy,
        plans: Sequence[Plan],
        origin: str,
        measure: Callable[[Sequence[Plan]], Iterable[Measurement]],
        progress: StageProgress | None,
    ) -> None:
        """Measure the plans that a study does not hold, in order, in turns with other runs."""
        with study.locked():
            missing = [plan for plan in plans if study.find(plan) is None]
            if not missing:
                return
            started, done = time.perf_counter(), len(plans) - len(missing)
            for plan, measurement in zip(missing, measure(missing), strict=True):
                now = time.perf_counter()
                proposal, shape = Proposal(plan, origin), self.calibrated.shape
                study.add(pair_of(proposal, measurement, shape, now - started))
                started = now
                done += 1
                if progress:
                    progress(done, len(plans))

    def best_of(self, keep: float, limit: float | None = None) -> list[Finalist]:
        """Measured plans of a size, best first; with estimates its allocation among them.

        Finalists are refit one after the other until one meets the limit, three at most; without
        a limit the best one alone.
        """
        plans = self.candidates(self._target(keep))
        if not plans or self.calibrated.mass.in_nats:
            plans = list(dict.fromkeys([*plans, self.allocation(keep)]))
        (contest,) = self.measured([plans])
        if not self.refit:
            return contest
        for count in range(1, 1 + (1 if limit is None else MOST_REFIT)):
            (found,) = self.with_refits([contest], count=count)
            if limit is None or not limit < self.upper(found[0]) <= _HOPELESS * limit:
                break
        return found

    def estimate(self, keep: float) -> float:
        """Of the allocation of a size; only the order and the ratio of two estimates count."""
        rows = as_rows([self.allocation(keep)])
        if self.fitted.predictor is not None:
            return float(self.fitted.predictor.predict(rows)[0])
        return float(self.calibrated.mass.estimate(rows)[0])

    def upper(self, finalist: Finalist) -> float:
        """Upper limit of a finalist's loss increase, nats/token."""
        study = self.refits if self.refit else self.finals
        return upper_limit(_found(study, finalist.plan).trajectory)

    def _target(self, keep: float) -> Target:
        return Target(self.budget_at(keep), self.space.ranges)

    def allocation(self, keep: float) -> Plan:
        """The plan of a size without pairs."""
        return allocate(self.space, self._target(keep), self.calibrated.mass)


def _found(study: PairStudy, plan: Plan) -> Pair:
    pair = study.find(plan)
    assert pair is not None  # measured before
    return pair


def _by_chunk(pair: Pair) -> tuple[float, ...]:
    """The loss increase on each chunk alone."""
    chunks, tokens, total = [], 0, 0.0
    for so_far, loss_increase in pair.trajectory:
        chunks.append((loss_increase * so_far - total) / (so_far - tokens))
        tokens, total = so_far, loss_increase * so_far
    return tuple(chunks)


def smallest(
    contest: Contest,
    limit: float,
    *,
    tolerance: float = FINE,
    progress: StageProgress | None = None,
) -> tuple[list[Finalist], QualityBound]:
    """Find the smallest size whose best plan meets a bound, by bisection.

    Each test interpolates within the bracket of the last size that met the bound and the last one
    that did not: upper limits are taken as a power of the estimates of `Contest.estimate`, by the
    two tested sizes that are nearest to the bound.

    Args:
        contest: measures plans.
        limit: upper limit of the loss increase, nats/token.
        tolerance: the search ends when a size that fails is smaller by at most this share.
        progress: called with the number of sizes tested, and of those that bisection would take.

    Returns:
        The finalists of that size, best first, and all sizes that were tested.

    Raises:
        LmscoutError: no size meets the bound; the message names the least limit that one meets.
    """
    sizes = contest.feasible(_SIZES)
    found: dict[int, list[Finalist]] = {}
    tested: dict[int, TestedSize] = {}

    @cache
    def estimate(place: int) -> float:
        return max(contest.estimate(sizes[place]), _LEAST)

    passed, failed = -1, len(sizes)  # places; sizes fall
    most = math.ceil(math.log2(len(sizes) + 1))
    while failed - passed > 1:
        known = passed in tested and failed in tested
        if known and sizes[failed] >= (1 - tolerance) * sizes[passed]:
            break
        place = (passed + failed) // 2
        if len(tested) % 4 != 3:  # every fourth test bisects, whatever the estimates are
            place = _interpolated(estimate, tested, (passed, failed), limit)
        found[place] = contest.best_of(sizes[place], limit)
        first = found[place][0]
        upper, increase = contest.upper(first), first.loss_increase
        assert increase is not None
        tested[place] = TestedSize(sizes[place], increase, upper, upper <= limit)
        passed, failed = (place, failed) if upper <= limit else (passed, place)
        if progress:
            progress(len(tested), max(most, len(tested)))
    if passed not in tested:
        raise _unmet(limit, list(tested.values()))
    every = tuple(sorted(tested.values(), key=lambda one: -one.keep))
    return found[passed], QualityBound(limit, CONFIDENCE, sizes[passed], every)


def _interpolated(
    estimate: Callable[[int], float],
    tested: dict[int, TestedSize],
    bracket: tuple[int, int],
    limit: float,
) -> int:
    """The place in a bracket, its ends excluded, that is expected to meet a limit last."""
    points = [
        (math.log(estimate(place)), math.log(max(one.upper, _LEAST)))
        for place, one in tested.items()
        if math.isfinite(one.upper)
    ]
    points.sort(key=lambda one: abs(one[1] - math.log(limit)))
    exponent, (x, y) = 1.0, points[0] if points else (0.0, 0.0)
    if len(points) > 1 and points[1][0] != x:
        exponent = float(np.clip((points[1][1] - y) / (points[1][0] - x), *_EXPONENTS))
    wanted = x + (math.log(limit) - y) / exponent
    low, high = bracket[0] + 1, bracket[1] - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = math.log(estimate(middle)) <= wanted
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _unmet(limit: float, tested: Sequence[TestedSize]) -> LmscoutError:
    if not tested:
        return LmscoutError("max_increase: no plan of this space has a size to be tested")
    best = min(tested, key=lambda one: one.upper)
    if not math.isfinite(best.upper):
        return LmscoutError(
            "max_increase: the held-out windows are too few for an upper limit: give a longer "
            "calibration text"
        )
    digits = 3 - math.floor(math.log10(max(abs(best.upper), _LEAST)))
    nearest = math.ceil(best.upper * 10**digits) / 10**digits
    return LmscoutError(
        f"no plan meets a loss increase of {limit:.4g} nats/token with {CONFIDENCE:.0%} "
        f"confidence: the nearest that can be had is {nearest:g} (perplexity "
        f"{math.expm1(nearest):+.2%}), at keep {best.keep:g}"
    )


def front(contest: Contest, progress: StageProgress | None = None) -> tuple[FrontPoint, ...]:
    """Measure the best plan of every size of `FRONT` that a plan has, largest first."""
    sizes = contest.feasible(FRONT)
    points = []
    for number, keep in enumerate(sizes):
        first = contest.best_of(keep)[0]
        assert first.loss_increase is not None
        budget = contest.budget_at(keep)
        shape = contest.space.shape
        cost, dense = budget.cost(as_rows([first.plan, shape.dense]))
        point = FrontPoint(
            keep,
            first.plan,
            shape.kept_share(first.plan),
            float(cost / dense),
            first.loss_increase,
            contest.upper(first),
        )
        points.append(point)
        if progress:
            progress(number + 1, len(sizes))
    return tuple(points)
