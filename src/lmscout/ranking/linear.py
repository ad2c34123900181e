"""Linear correlation of the logarithms of scores and quality.

Ranks say which of two architectures is better and not by how much.  Two that differ by less than
training again would change them weigh in a rank correlation as much as two that are far apart, so
on few architectures the best of many rank correlations is the luckiest.  Differences of quality
are less easily met by chance.  Logarithms, since quality follows size by power laws (Kaplan et
al., arXiv 2001.08361) and scores span many orders of magnitude.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_ROUNDING = 1e-12  # relative difference below which two scores are the same


def log_pearson(scores: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Pearson's r of the logarithms of two vectors.

    A vector of both signs, or with a zero, counts as it is: see `logarithm`.

    Args:
        scores: [n] one score an architecture.
        quality: [n] measured quality.

    Returns:
        The coefficient; NaN where a score is not finite, or either vector is constant.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    if not np.isfinite(x).all():
        return math.nan
    x, y = _deviations(logarithm(x)), _deviations(logarithm(y))
    square = float((x @ x) * (y @ y))
    return float(np.clip(x @ y / math.sqrt(square), -1, 1)) if square > 0 else math.nan


def logarithm(values: Array) -> Array:
    """Logarithms of values [n] of one sign; of others the values themselves.

    What is negative throughout, as a negated perplexity is, counts by the logarithm of its size,
    turned round so that it rises where the values do.
    """
    if values.min() > 0:
        return np.log(values)
    return -np.log(-values) if values.max() < 0 else values


def _deviations(values: Array) -> Array:
    """From the mean, as shares of the largest value, which can be squared; 0 of a constant."""
    largest = np.abs(values).max()
    if largest == 0:
        return values
    shares = values / largest
    return shares - shares.mean() if np.ptp(shares) > _ROUNDING else np.zeros_like(values)
