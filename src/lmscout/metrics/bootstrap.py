"""Bootstrap intervals of rank correlations, by matrix products instead of re-sorting.

A bootstrap sample of n architectures is a vector w of n multiplicities.  Both coefficients
are ratios of quadratic forms in w over matrices that depend on the data alone, so all
samples together are a few matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.metrics.correlation import kendall, order_of_scores, spearman

Array = npt.NDArray[np.float64]

SAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with its percentile bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How well scores rank architectures: Spearman's ρ and Kendall's τ-b with intervals."""

    spearman: Interval
    kendall: Interval


def multiplicities(n: int, seed: int, samples: int = SAMPLES) -> Array:
    """How often each of n architectures occurs in each bootstrap sample.

    Args:
        n: number of architectures.
        seed: of the draw; the same for every proxy, so that intervals are comparable.
        samples: number of bootstrap samples.

    Returns:
        [samples, n] float64, each row summing to n.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float64)


def agreement(
    scores: npt.ArrayLike,
    quality: npt.ArrayLike,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    level: float = LEVEL,
) -> Agreement:
    """Spearman's ρ and Kendall's τ-b with percentile bootstrap intervals over architectures.

    Args:
        scores: [n] one score an architecture.
        quality: [n] measured quality.
        seed: of the bootstrap draw.
        samples: number of bootstrap samples.
        level: coverage of the interval.

    Returns:
        Both coefficients; all NaN where the scores are not finite or constant.
    """
    x = np.asarray(scores, np.float64)
    y = np.asarray(quality, np.float64)
    undefined = Interval(np.nan, np.nan, np.nan)
    rho = spearman(x, y)
    if np.isnan(rho):
        return Agreement(undefined, undefined)
    weights = multiplicities(y.size, seed, samples)
    order = order_of_scores(x)
    return Agreement(
        _interval(rho, _spearman_samples(order, y, weights), level),
        _interval(kendall(x, y), _kendall_samples(order, y, weights), level),
    )


def spearman_difference(
    scores: npt.ArrayLike,
    others: npt.ArrayLike,
    quality: npt.ArrayLike,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    level: float = LEVEL,
) -> Interval:
    """By how much one ρ exceeds another on the same architectures.

    Both are computed on the same bootstrap samples, so that what they share cancels: the
    interval is much narrower than two intervals side by side suggest.

    Args:
        scores: [n] one score an architecture.
        others: [n] what they are compared with.
        quality: [n] measured quality.
        seed: of the bootstrap draw.
        samples: number of bootstrap samples.
        level: coverage of the interval.

    Returns:
        The difference of the two ρ; all NaN where one of them is not defined.
    """
    x, other, y = (np.asarray(one, np.float64) for one in (scores, others, quality))
    value = spearman(x, y) - spearman(other, y)
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan)
    weights = multiplicities(y.size, seed, samples)
    of_x, of_other = (_spearman_samples(order_of_scores(one), y, weights) for one in (x, other))
    drawn = of_x - of_other
    return _interval(value, drawn, level)


def _interval(value: float, samples: Array, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.nanquantile(samples, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _spearman_samples(x: Array, y: Array, weights: Array) -> Array:
    n = x.size
    deviations = []
    for values in (x, y):
        # Mid-rank of architecture i in a sample: those below it and half of those equal.
        below = (values[:, None] < values).astype(np.float64)
        below += 0.5 * np.equal(values[:, None], values)
        deviations.append(weights @ below - n / 2)
    a, b = deviations
    covariance = (weights * a * b).sum(axis=1)
    scale = (weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1)
    return _safe_ratio(covariance, np.sqrt(scale))


def _kendall_samples(x: Array, y: Array, weights: Array) -> Array:
    sign_x = np.sign(x[:, None] - x)
    sign_y = np.sign(y[:, None] - y)

    def form(matrix: Array) -> Array:
        value: Array = ((weights @ matrix) * weights).sum(axis=1)
        return value

    untied = form(np.abs(sign_x)) * form(np.abs(sign_y))
    return _safe_ratio(form(sign_x * sign_y), np.sqrt(untied))


def _safe_ratio(numerator: Array, denominator: Array) -> Array:
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
