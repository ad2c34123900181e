"""Rank correlations of many score vectors with one quality vector, and Pearson's r of logarithms.

Sorting is the cost of a rank correlation, and NumPy sorts 64-bit integers three times as fast as it
argsorts floats.  Each score becomes an integer of the same order whose lowest 12 bits carry the
doubled rank of the quality, so one sort orders both.  Scores count as tied if they agree to 40
significant bits (1e-12 relative): smaller differences are rounding noise of float32 statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

Array = npt.NDArray[np.float64]
Keys = npt.NDArray[np.uint64]

_LINEAR_ROUNDING = 1e-12  # relative difference below which two scores are the same
_RANK_BITS = 12  # of a float64's 52 mantissa bits: 40 stay for the score
_RANK_MASK = np.uint64((1 << _RANK_BITS) - 1)
_SIGN = np.uint64(1 << 63)
_ROUNDING = np.uint64(1 << (_RANK_BITS - 1))
_LONGEST = (1 << _RANK_BITS) // 2 - 1  # architectures whose doubled ranks fit into the low bits


def log_pearson(scores: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Pearson's r of the logarithms of two vectors.

    A rank correlation weighs a difference below training noise as much as a large one; a linear
    one does not.  Logarithms, since quality follows size by power laws (Kaplan et al., arXiv
    2001.08361).  A vector of both signs, or with a zero, counts as it is: see `logarithm`.

    Returns:
        The coefficient of scores [n] and quality [n]; NaN if a score is not finite or either vector
        is constant.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    if not np.isfinite(x).all():
        return math.nan
    x, y = _deviations(logarithm(x)), _deviations(logarithm(y))
    square = float((x @ x) * (y @ y))
    return float(np.clip(x @ y / math.sqrt(square), -1, 1)) if square > 0 else math.nan


def logarithm(values: Array) -> Array:
    """Logarithms of values [n] of one sign, in the same order; other values unchanged.

    Negative values, such as negated perplexities, become -ln(-x).
    """
    if values.min() > 0:
        return np.log(values)
    return -np.log(-values) if values.max() < 0 else values


def _deviations(values: Array) -> Array:
    """Deviations from the mean, scaled so that they can be squared; 0 for a constant."""
    largest = np.abs(values).max()
    if largest == 0:
        return values
    scaled = values / largest
    return scaled - scaled.mean() if np.ptp(scaled) > _LINEAR_ROUNDING else np.zeros_like(values)


def spearman_many(scores: npt.ArrayLike, quality: npt.ArrayLike) -> Array:
    """Spearman's ρ of every row of scores with one quality vector.

    Pearson's correlation of mid-ranks (Spearman 1904; ties share their mean rank).

    Args:
        scores: [n_rows, n] one row per proxy, one column per architecture.
        quality: [n] measured quality.

    Returns:
        [n_rows] float64; NaN if a row is constant or not finite, or if the quality is constant.

    Raises:
        ValueError: the shapes disagree, or the quality is not finite.
    """
    return _correlate(scores, quality, _spearman_of_keys, scipy.stats.spearmanr)


def kendall_many(scores: npt.ArrayLike, quality: npt.ArrayLike) -> Array:
    """Kendall's τ-b of every row of scores with one quality vector.

    τ-b = (C - D) / sqrt((n0 - n1) (n0 - n2)), with C concordant and D discordant pairs, n0
    all pairs, n1 and n2 the pairs tied in either vector (Kendall 1945).  Arguments, result and
    errors are those of `spearman_many`.
    """
    return _correlate(scores, quality, _kendall_of_keys, scipy.stats.kendalltau)


def spearman(scores: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Spearman's ρ of one score vector; see `spearman_many`."""
    return float(spearman_many(np.asarray(scores, np.float64)[None], quality)[0])


def kendall(scores: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Kendall's τ-b of one score vector; see `kendall_many`."""
    return float(kendall_many(np.asarray(scores, np.float64)[None], quality)[0])


def midranks(values: npt.ArrayLike) -> Array:
    """Ranks of finite values [n] from 0, ties sharing their mean rank: [n] float64."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - 1 - (count - 1) / 2)[place]


def order_of_scores(scores: npt.ArrayLike) -> Array:
    """Ranks of finite scores [n] from 0 without gaps, equal if scores count as tied."""
    keys = _score_keys(np.asarray(scores, np.float64))
    return np.unique(keys, return_inverse=True)[1].astype(np.float64)


def fisher_z(correlation: float) -> float:
    """Fisher's transformation of a correlation.

    Its standard error for n pairs is about 1 / sqrt(n - 3), whatever the correlation.  The
    correlation is clipped to ±0.999999.
    """
    return math.atanh(max(-0.999999, min(correlation, 0.999999)))


def _correlate(
    scores: npt.ArrayLike,
    quality: npt.ArrayLike,
    of_keys: Callable[[Keys, Array], Array],
    of_long_row: Callable[..., Any],
) -> Array:
    rows, target = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    if rows.ndim != 2 or target.ndim != 1 or rows.shape[1] != target.size:
        raise ValueError(f"scores {rows.shape} do not fit quality {target.shape}")
    if not np.isfinite(target).all():
        raise ValueError("the quality holds a NaN or an infinity")
    result = np.full(len(rows), np.nan)
    if target.size < 2 or np.ptp(target) == 0:
        return result
    ranks = midranks(target)
    finite = np.isfinite(rows).all(axis=1)
    if target.size > _LONGEST:
        for place in np.flatnonzero(finite):
            order = order_of_scores(rows[place])
            if order.any():  # else constant
                result[place] = of_long_row(order, ranks).statistic
    elif finite.any():
        keys = _score_keys(rows if finite.all() else rows[finite])
        keys |= (2 * ranks).astype(np.uint64)
        keys.sort(axis=1)
        result[finite] = of_keys(keys, ranks)
    return result


def _score_keys(scores: Array) -> Keys:
    """Integers of the scores' order, equal for tied scores, with zeros in the low bits."""
    keys: Keys = (scores + 0.0).view(np.uint64)  # + 0.0 makes -0.0 and 0.0 the same number
    # IEEE doubles order like their bits once negative ones are inverted and positive ones
    # get the top bit.
    negative = (keys.view(np.int64) >> 63).view(np.uint64)
    keys ^= negative | _SIGN
    keys += _ROUNDING
    keys &= ~_RANK_MASK
    return keys


def _tied_with_next(keys: Keys) -> npt.NDArray[np.bool_]:
    scores = keys & ~_RANK_MASK
    tied: npt.NDArray[np.bool_] = np.equal(scores[:, 1:], scores[:, :-1])
    return tied


def _tie_groups(tied: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """First and last position of the tie group of every sorted position: [n_rows, n] each."""
    n_rows, width = tied.shape[0], tied.shape[1] + 1
    position = np.arange(width)
    first = np.zeros((n_rows, width), np.int64)
    first[:, 1:] = np.where(tied, 0, position[1:])
    last = np.full((n_rows, width), width - 1)
    last[:, :-1] = np.where(tied, width - 1, position[:-1])
    np.maximum.accumulate(first, axis=1, out=first)
    backwards = last[:, ::-1]
    np.minimum.accumulate(backwards, axis=1, out=backwards)
    return first.astype(np.float64), last.astype(np.float64)


def _spearman_of_keys(keys: Keys, ranks: Array) -> Array:
    n = ranks.size
    centred = ranks - (n - 1) / 2
    position = np.arange(n) - (n - 1) / 2
    quality_rank = (keys & _RANK_MASK).astype(np.float64) * 0.5
    covariance = quality_rank @ position
    variance = np.full(len(keys), position @ position)
    tied = _tied_with_next(keys)
    with_ties = np.flatnonzero(tied.any(axis=1))
    if with_ties.size:
        first, last = _tie_groups(tied[with_ties])
        mean_position = (first + last) / 2 - (n - 1) / 2
        covariance[with_ties] = np.einsum("ij,ij->i", quality_rank[with_ties], mean_position)
        variance[with_ties] = np.einsum("ij,ij->i", mean_position, mean_position)
    return _clipped_ratio(covariance, np.sqrt(variance * (centred @ centred)))


def _kendall_of_keys(keys: Keys, ranks: Array) -> Array:
    n = ranks.size
    quality_rank = (keys & _RANK_MASK).astype(np.int16)
    # Equal scores are sorted by quality, so only strictly discordant pairs are inverted.
    discordant = np.zeros(len(keys))
    for gap in range(1, n):
        discordant += np.count_nonzero(quality_rank[:, gap:] < quality_rank[:, :-gap], axis=1)
    pairs = n * (n - 1) / 2
    _, counts = np.unique(ranks, return_counts=True)
    tied_quality = float((counts * (counts - 1)).sum() / 2)
    tied_scores = _tied_pairs(_tied_with_next(keys))
    tied_both = _tied_pairs(np.equal(keys[:, 1:], keys[:, :-1]))
    difference = pairs - tied_scores - tied_quality + tied_both - 2 * discordant
    return _clipped_ratio(difference, np.sqrt((pairs - tied_scores) * (pairs - tied_quality)))


def _tied_pairs(tied: npt.NDArray[np.bool_]) -> Array:
    """Number of pairs within tie groups, from whether each position ties with the next."""
    pairs = np.zeros(len(tied))
    some = np.flatnonzero(tied.any(axis=1))
    if some.size:
        first, _ = _tie_groups(tied[some])
        pairs[some] = (np.arange(first.shape[1]) - first).sum(axis=1)
    return pairs


def _clipped_ratio(numerator: Array, denominator: Array) -> Array:
    result = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return np.clip(result, -1.0, 1.0, out=result)
