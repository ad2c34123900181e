"""Rank correlations of many score vectors at once, and Pearson's r of logarithms.

Linear correlation of the logarithms of scores and quality.

Ranks say which of two architectures is better and not by how much.  Two that differ by less than
training again would change them weigh in a rank correlation as much as two that are far apart, so
on few architectures the best of many rank correlations is the luckiest.  Differences of quality
are less easily met by chance.  Logarithms, since quality follows size by power laws (Kaplan et
al., arXiv 2001.08361) and scores span many orders of magnitude.

Rank correlation of many score vectors with one quality vector, all at once.

Both coefficients need the order of every row of scores.  Sorting is the cost, and NumPy
sorts 64-bit integers about three times as fast as it argsorts floats, so each score is
mapped to an integer of the same order whose lowest bits carry the quality's rank: one sort
brings both orders together and nothing has to be gathered afterwards.

The bits come from the score's own mantissa: scores count as tied when they agree to 40
significant bits (1e-12 relative).  Differences below that are rounding noise of the
statistics, which are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

Array = npt.NDArray[np.float64]

_LINEAR_ROUNDING = 1e-12  # relative difference below which two scores are the same


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
    return shares - shares.mean() if np.ptp(shares) > _LINEAR_ROUNDING else np.zeros_like(values)


_PAYLOAD_BITS = 12  # of a float64's 52 mantissa bits: 40 stay for the score
_PAYLOAD = np.uint64((1 << _PAYLOAD_BITS) - 1)
_SIGN = np.uint64(1 << 63)
_ROUNDING = np.uint64(1 << (_PAYLOAD_BITS - 1))
_LONGEST = (1 << _PAYLOAD_BITS) // 2 - 1  # a doubled mid-rank has to fit into the payload


def spearman_many(scores: npt.ArrayLike, quality: npt.ArrayLike) -> Array:
    """Spearman's ρ of every row of scores with one quality vector.

    Pearson's correlation of mid-ranks (Spearman 1904; ties share their mean rank).

    Args:
        scores: [n_rows, n] one row a proxy, one column an architecture.
        quality: [n] measured quality.

    Returns:
        [n_rows] float64; NaN where a row holds a NaN or an infinity, or is constant, or
        where the quality is constant.

    Raises:
        ValueError: the shapes disagree, or the quality is not finite.
    """
    return _row_by_row(scores, quality, _spearman_from_keys, scipy.stats.spearmanr)


def kendall_many(scores: npt.ArrayLike, quality: npt.ArrayLike) -> Array:
    """Kendall's τ-b of every row of scores with one quality vector.

    τ-b = (C - D) / sqrt((n0 - n1) (n0 - n2)), with C concordant and D discordant pairs, n0
    all pairs, n1 and n2 the pairs tied in either vector (Kendall 1945).

    Args:
        scores: [n_rows, n] one row a proxy, one column an architecture.
        quality: [n] measured quality.

    Returns:
        [n_rows] float64; NaN as for `spearman_many`.

    Raises:
        ValueError: the shapes disagree, or the quality is not finite.
    """
    return _row_by_row(scores, quality, _kendall_from_keys, scipy.stats.kendalltau)


def spearman(scores: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Spearman's ρ of one score vector; see `spearman_many`."""
    return float(spearman_many(np.asarray(scores, np.float64)[None], quality)[0])


def kendall(scores: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Kendall's τ-b of one score vector; see `kendall_many`."""
    return float(kendall_many(np.asarray(scores, np.float64)[None], quality)[0])


def midranks(values: npt.ArrayLike) -> Array:
    """Ranks of a vector from 0, ties sharing their mean rank.

    Args:
        values: [n] finite numbers.

    Returns:
        [n] float64.
    """
    vector = np.asarray(values, np.float64)
    _, place, count = np.unique(vector, return_inverse=True, return_counts=True)
    last = np.cumsum(count) - 1
    return (last - (count - 1) / 2)[place]


def order_of_scores(scores: npt.ArrayLike) -> Array:
    """Numbers of the same order as scores, equal where scores count as tied.

    Args:
        scores: [n] finite numbers.

    Returns:
        [n] float64: 0 for the lowest, 1 for those above it, and so on.
    """
    vector = np.asarray(scores, np.float64)
    return np.unique(_score_keys(vector), return_inverse=True)[1].astype(np.float64)


def _row_by_row(
    scores: npt.ArrayLike,
    quality: npt.ArrayLike,
    coefficient: Callable[[npt.NDArray[np.uint64], Array], Array],
    of_one: Callable[..., Any],
) -> Array:
    rows = np.asarray(scores, np.float64)
    target = np.asarray(quality, np.float64)
    if rows.ndim != 2 or target.ndim != 1 or rows.shape[1] != target.size:
        raise ValueError(f"scores {rows.shape} do not fit quality {target.shape}")
    if not np.isfinite(target).all():
        raise ValueError("the quality holds a NaN or an infinity")
    result = np.full(len(rows), np.nan)
    if target.size < 2 or np.ptp(target) == 0:
        return result
    ranks = midranks(target)
    finite = np.isfinite(rows).all(axis=1)
    if target.size > _LONGEST:  # no room for the payload
        for place in np.flatnonzero(finite):
            order = order_of_scores(rows[place])
            if order.any():  # else constant
                result[place] = of_one(order, ranks).statistic
        return result
    if finite.all():
        return coefficient(_sorted_keys(rows, ranks), ranks)
    if finite.any():
        result[finite] = coefficient(_sorted_keys(rows[finite], ranks), ranks)
    return result


def _sorted_keys(rows: Array, ranks: Array) -> npt.NDArray[np.uint64]:
    """Sort each row's scores with the doubled mid-rank of the quality in the low bits."""
    keys = _score_keys(rows)
    keys |= (2 * ranks).astype(np.uint64)
    keys.sort(axis=1)
    return keys


def _score_keys(scores: Array) -> npt.NDArray[np.uint64]:
    """Integers of the scores' order, equal where they are tied, with zeros in the low bits."""
    keys: npt.NDArray[np.uint64]
    keys = (scores + 0.0).view(np.uint64)  # + 0.0 makes -0.0 and 0.0 the same number
    # IEEE doubles order like their bits once negative ones are inverted and positive ones
    # get the top bit.
    negative = (keys.view(np.int64) >> 63).view(np.uint64)
    keys ^= negative | _SIGN
    keys += _ROUNDING
    keys &= ~_PAYLOAD
    return keys


def _tied_with_next(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    scores = keys & ~_PAYLOAD
    tied: npt.NDArray[np.bool_] = np.equal(scores[:, 1:], scores[:, :-1])
    return tied


def _group_ends(tied: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """First and last sorted position of the tie group each position belongs to."""
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


def _spearman_from_keys(keys: npt.NDArray[np.uint64], ranks: Array) -> Array:
    n = ranks.size
    centred = ranks - (n - 1) / 2
    position = np.arange(n) - (n - 1) / 2
    quality_rank = (keys & _PAYLOAD).astype(np.float64) * 0.5
    covariance = quality_rank @ position
    variance = np.full(len(keys), position @ position)
    tied = _tied_with_next(keys)
    with_ties = np.flatnonzero(tied.any(axis=1))
    if with_ties.size:
        first, last = _group_ends(tied[with_ties])
        mean_position = (first + last) / 2 - (n - 1) / 2
        covariance[with_ties] = np.einsum("ij,ij->i", quality_rank[with_ties], mean_position)
        variance[with_ties] = np.einsum("ij,ij->i", mean_position, mean_position)
    return _ratio(covariance, np.sqrt(variance * (centred @ centred)))


def _kendall_from_keys(keys: npt.NDArray[np.uint64], ranks: Array) -> Array:
    n = ranks.size
    quality_rank = (keys & _PAYLOAD).astype(np.int16)
    # Equal scores are sorted by quality, so they add no inversion: what is counted is
    # strictly discordant.
    discordant = np.zeros(len(keys))
    for gap in range(1, n):
        discordant += np.count_nonzero(quality_rank[:, gap:] < quality_rank[:, :-gap], axis=1)
    pairs = n * (n - 1) / 2
    _, counts = np.unique(ranks, return_counts=True)
    tied_quality = float((counts * (counts - 1)).sum() / 2)
    tied_scores = _tied_pairs(_tied_with_next(keys))
    tied_both = _tied_pairs(np.equal(keys[:, 1:], keys[:, :-1]))
    difference = pairs - tied_scores - tied_quality + tied_both - 2 * discordant
    return _ratio(difference, np.sqrt((pairs - tied_scores) * (pairs - tied_quality)))


def _tied_pairs(tied: npt.NDArray[np.bool_]) -> Array:
    """Number of pairs within tie groups, from whether each position ties with the next."""
    pairs = np.zeros(len(tied))
    some = np.flatnonzero(tied.any(axis=1))
    if some.size:
        first, _ = _group_ends(tied[some])
        position = np.arange(first.shape[1])
        pairs[some] = (position - first).sum(axis=1)
    return pairs


def _ratio(numerator: Array, denominator: Array) -> Array:
    defined = denominator > 0
    result = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=defined)
    np.clip(result, -1.0, 1.0, out=result)
    return result


def fisher_z(correlation: float) -> float:
    """Fisher's transformation of a correlation, whose standard error hardly depends on it.

    That of n pairs is about 1 / sqrt(n - 3); 1 and -1 are taken as a millionth less.
    """
    return math.atanh(max(-0.999999, min(correlation, 0.999999)))
