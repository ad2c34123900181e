"""Size by quality: the smallest size whose loss increase meets a bound, and the front of both.

Sizes are multiples of `STEP`.  A size is tested by its best plan, with the weights that would be
saved, on the held-out windows of calibration text.  Those are a sample, so not their mean counts
but its upper limit, see `upper_limit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from lmscout.errors import LmscoutError
from lmscout.progress import StageProgress
from lmscout.pruning.budgets import Budget
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.finalists import (
    MOST_REFIT,
    candidates_of,
    measure_finalists,
    refit_finalists,
)
from lmscout.pruning.measuring import Fitted
from lmscout.pruning.plan import Plan, as_rows
from lmscout.pruning.ranges import Target
from lmscout.pruning.results import Finalist, FrontPoint, QualityBound, TestedSize
from lmscout.pruning.search import allocate
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import PairStudy

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


def upper_limit(trajectory: Sequence[tuple[int, float]], confidence: float = CONFIDENCE) -> float:
    """Upper limit of the loss increase on another text, from the chunks of a measured one.

    If windows are draws from one distribution, the mean loss increase on as many further windows
    is below the limit with this probability: a one-sided prediction interval by Student's t, exact
    if the means of chunks are normal.  On a longer text it is so more often.

    Args:
        trajectory: after each chunk, the tokens so far and the loss increase on them, nats/token.
        confidence: the probability.

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
    return mean + float(student.ppf(confidence, freedom)) * math.sqrt(variance)


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
    """What finds and measures the best plan of any size."""

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

    def candidates(self, keep: float) -> list[Plan]:
        """The best plans of a size; with an estimate of the loss increase, its allocation too."""
        target = self._target(keep)
        mass = self.calibrated.mass
        plans = candidates_of(self.pairs, self.fitted, self.space, target, mass, self.seed)
        if not plans or mass.in_nats:
            plans = list(dict.fromkeys([*plans, self._allocation(keep)]))
        return plans

    def estimate(self, keep: float) -> float:
        """Of the allocation of a size; only the order and the ratio of two estimates count."""
        rows = as_rows([self._allocation(keep)])
        if self.fitted.predictor is not None:
            return float(self.fitted.predictor.predict(rows)[0])
        return float(self.calibrated.mass.estimate(rows)[0])

    def _target(self, keep: float) -> Target:
        return Target(self.budget_at(keep), self.space.ranges)

    def _allocation(self, keep: float) -> Plan:
        return allocate(self.space, self._target(keep), self.calibrated.mass)

    def finalists(self, plans: Sequence[Plan], limit: float | None = None) -> list[Finalist]:
        """Measured plans of a size, best first.

        Finalists are refit one after the other until one meets the limit, three at most; without
        a limit the best one alone.
        """
        (contest,) = measure_finalists(
            self.calibrated, self.pairs, self.finals, self.fitted, [plans]
        )
        if not self.refit:
            return contest
        for count in range(1, 1 + (1 if limit is None else MOST_REFIT)):
            (found,) = refit_finalists(self.calibrated, self.refits, [contest], count=count)
            if limit is None or not limit < self.upper(found[0]) <= _HOPELESS * limit:
                break
        return found

    def upper(self, finalist: Finalist) -> float:
        """Upper limit of a finalist's loss increase, nats/token."""
        pair = (self.refits if self.refit else self.finals).find(finalist.plan)
        assert pair is not None
        return upper_limit(pair.trajectory)


@dataclass(frozen=True)
class Smallest:
    """The smallest size that meets a bound."""

    keep: float
    finalists: tuple[Finalist, ...]  # best first
    bound: QualityBound


def smallest(
    contest: Contest,
    limit: float,
    *,
    tolerance: float = FINE,
    progress: StageProgress | None = None,
) -> Smallest:
    """Find the smallest size whose best plan meets a bound, by bisection.

    Each test interpolates within the bracket of the last size that met the bound and the last one
    that did not: upper limits are taken as a power of the estimates of `Contest.estimate`, by the
    two tested sizes that are nearest to the bound.

    Args:
        contest: measures plans.
        limit: upper limit of the loss increase, nats/token.
        tolerance: the search ends when a size that fails is smaller by at most this share.
        progress: called with the number of sizes tested, and of those that bisection would take.

    Raises:
        LmscoutError: no size meets the bound; the message names the least limit that one meets.
    """
    sizes = contest.feasible(_SIZES)
    estimates: dict[int, float] = {}
    found: dict[int, list[Finalist]] = {}
    tested: dict[int, TestedSize] = {}

    def estimate(place: int) -> float:
        if place not in estimates:
            estimates[place] = max(contest.estimate(sizes[place]), _LEAST)
        return estimates[place]

    passed, failed = -1, len(sizes)  # places; sizes fall
    most = math.ceil(math.log2(len(sizes) + 1))
    while failed - passed > 1:
        known = passed in tested and failed in tested
        if known and sizes[failed] >= (1 - tolerance) * sizes[passed]:
            break
        place = (passed + failed) // 2
        if len(tested) % 4 != 3:  # every fourth test bisects, whatever the estimates are
            place = _interpolated(estimate, tested, (passed, failed), limit)
        found[place] = contest.finalists(contest.candidates(sizes[place]), limit)
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
    bound = QualityBound(limit, CONFIDENCE, tested[passed].keep, every)
    return Smallest(sizes[passed], tuple(found[passed]), bound)


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
        first = contest.finalists(contest.candidates(keep))[0]
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
