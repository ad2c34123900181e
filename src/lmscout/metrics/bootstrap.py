"""Bootstrap intervals of rank correlations, by matrix products instead of sorting again.

A bootstrap sample of n architectures is a vector w of n multiplicities.  Both coefficients are
ratios of quadratic forms in w over matrices that depend on the data alone, so all samples together
are a few matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.metrics.correlation import kendall, order_of_scores, spearman

Array = npt.NDArray[np.float64]

SAMPLES = 1000
_TAIL = (1 - 0.95) / 2  # beyond either end of an interval


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % percentile bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How well scores rank architectures: Spearman's ρ and Kendall's τ-b with intervals."""

    spearman: Interval
    kendall: Interval


def multiplicities(n: int, seed: int, samples: int = SAMPLES) -> Array:
    """How often each of n architectures occurs in each bootstrap sample: [samples, n] float64.

    One seed for all proxies makes their intervals comparable.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float64)


def agreement(
    scores: npt.ArrayLike, quality: npt.ArrayLike, *, seed: int = 0, samples: int = SAMPLES
) -> Agreement:
    """Spearman's ρ and Kendall's τ-b of scores [n] and quality [n] with bootstrap intervals.

    All values are NaN if the scores are not finite or constant.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    rho = spearman(x, y)
    if np.isnan(rho):
        return Agreement(_interval(np.nan), _interval(np.nan))
    weights = multiplicities(y.size, seed, samples)
    order = order_of_scores(x)
    return Agreement(
        _interval(rho, _spearman_samples(order, y, weights)),
        _interval(kendall(x, y), _kendall_samples(order, y, weights)),
    )


def spearman_difference(
    scores: npt.ArrayLike,
    others: npt.ArrayLike,
    quality: npt.ArrayLike,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
) -> Interval:
    """ρ of scores [n] with quality [n], less that of other scores [n]; NaN if not defined.

    Both are computed on the same bootstrap samples: common variation cancels, and the interval is
    much narrower than two separate intervals suggest.
    """
    x, other, y = (np.asarray(one, np.float64) for one in (scores, others, quality))
    value = spearman(x, y) - spearman(other, y)
    if np.isnan(value):
        return _interval(np.nan)
    weights = multiplicities(y.size, seed, samples)
    of_x, of_other = (_spearman_samples(order_of_scores(one), y, weights) for one in (x, other))
    return _interval(value, of_x - of_other)


def _interval(value: float, samples: Array | None = None) -> Interval:
    if samples is None:
        return Interval(value, np.nan, np.nan)
    low, high = np.nanquantile(samples, [_TAIL, 1 - _TAIL])
    return Interval(value, float(low), float(high))


def _spearman_samples(x: Array, y: Array, weights: Array) -> Array:
    deviations = []
    for values in (x, y):
        # Mid-rank of architecture i in a sample: those below it and half of those equal.
        below = (values[:, None] < values).astype(np.float64)
        below += 0.5 * np.equal(values[:, None], values)
        deviations.append(weights @ below - x.size / 2)
    a, b = deviations
    covariance = (weights * a * b).sum(axis=1)
    scale = (weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1)
    return _ratio(covariance, np.sqrt(scale))


def _kendall_samples(x: Array, y: Array, weights: Array) -> Array:
    sign_x, sign_y = (np.sign(one[:, None] - one) for one in (x, y))

    def form(matrix: Array) -> Array:
        value: Array = ((weights @ matrix) * weights).sum(axis=1)
        return value

    untied = form(np.abs(sign_x)) * form(np.abs(sign_y))
    return _ratio(form(sign_x * sign_y), np.sqrt(untied))


def _ratio(numerator: Array, denominator: Array) -> Array:
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
