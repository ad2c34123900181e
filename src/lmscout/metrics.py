"""Correlations of scores and quality, their intervals, and what is beyond the configuration.

Sorting is the cost of Spearman's ρ, and NumPy sorts 64-bit integers three times as fast as it
argsorts floats.  Each score becomes an integer of the same order whose lowest 12 bits carry the
doubled rank of the quality, so one sort orders both.  Scores count as tied if they agree to 40
significant bits (1e-12 relative): smaller differences are rounding noise of float32 statistics.

A bootstrap sample of n architectures is a vector w of n multiplicities.  Both coefficients are
ratios of quadratic forms in w over matrices that depend on the data alone, so all samples together
are a few matrix products.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.stats

Array = npt.NDArray[np.float64]
Keys = npt.NDArray[np.uint64]

SAMPLES = 1000
SMALLEST_CELL = 5  # architectures
_TAIL = (1 - 0.95) / 2  # beyond either end of an interval
_LINEAR_ROUNDING = 1e-12  # relative difference below which two scores are the same
_RANK_ROUNDING = 1e-9  # of mean ranks, so that equal ones compare as equal
_RANK_BITS = 12  # of a float64's 52 mantissa bits: 40 stay for the score
_RANK_MASK = np.uint64((1 << _RANK_BITS) - 1)
_SIGN = np.uint64(1 << 63)
_ROUNDING = np.uint64(1 << (_RANK_BITS - 1))
_LONGEST = (1 << _RANK_BITS) // 2 - 1  # architectures whose doubled ranks fit into the low bits


def rounded(value: float | None) -> str:
    """A correlation as text, with three decimals; a dash if it is undefined."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def spearman(scores: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Spearman's ρ of one score vector; see `spearman_many`."""
    return float(spearman_many(np.asarray(scores, np.float64)[None], quality)[0])


def kendall(scores: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Kendall's τ-b of one score vector; see `kendall_many`."""
    return float(kendall_many(np.asarray(scores, np.float64)[None], quality)[0])


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
    rows, ranks, defined = _checked(scores, quality)
    result = np.full(len(rows), np.nan)
    if ranks.size > _LONGEST:
        for place in defined:
            order = order_of_scores(rows[place])
            if order.any() and np.ptp(ranks):  # else constant
                result[place] = scipy.stats.spearmanr(order, ranks).statistic
    elif defined.size:
        keys = _score_keys(rows if len(defined) == len(rows) else rows[defined])
        keys |= (2 * ranks).astype(np.uint64)
        keys.sort(axis=1)
        result[defined] = _spearman_of_keys(keys, ranks)
    return result


def kendall_many(scores: npt.ArrayLike, quality: npt.ArrayLike) -> Array:
    """Kendall's τ-b of every row of scores with one quality vector.

    τ-b = (C - D) / sqrt((n0 - n1) (n0 - n2)), with C concordant and D discordant pairs, n0
    all pairs, n1 and n2 the pairs tied in either vector (Kendall 1945).  Arguments, result and
    errors are those of `spearman_many`.
    """
    rows, ranks, defined = _checked(scores, quality)
    result = np.full(len(rows), np.nan)
    once = np.ones((1, ranks.size))
    for place in defined:
        result[place] = _kendall_samples(order_of_scores(rows[place]), ranks, once)[0]
    return result


def log_pearson(scores: npt.ArrayLike, quality: npt.ArrayLike) -> float:
    """Pearson's r of the logarithms of two vectors.

    A rank correlation weighs a difference below training noise as much as a large one; a linear
    one does not.  Logarithms, since quality follows size by power laws (Kaplan et al., arXiv
    2001.08361).  A vector of both signs, or with a zero, counts as it is: see `logarithm`.

    Returns:
        The coefficient of scores [n] and quality [n]; NaN if a score is not finite or either vector
        is constant.
    """
    x = np.asarray(scores, np.float64)
    if not np.isfinite(x).all():
        return math.nan
    x = _deviations(logarithm(x))
    y = _log_deviations(np.asarray(quality, np.float64).tobytes())
    square = float((x @ x) * (y @ y))
    return max(-1.0, min(float(x @ y) / math.sqrt(square), 1.0)) if square > 0 else math.nan


def logarithm(values: Array) -> Array:
    """Logarithms of values [n] of one sign, in the same order; other values unchanged.

    Negative values, such as negated perplexities, become -ln(-x).
    """
    if values.min() > 0:
        return np.log(values)
    return -np.log(-values) if values.max() < 0 else values


def fisher_z(correlation: float) -> float:
    """Fisher's transformation of a correlation, clipped to ±0.999999.

    Its standard error for n pairs is about 1 / sqrt(n - 3), whatever the correlation.
    """
    return math.atanh(max(-0.999999, min(correlation, 0.999999)))


def midranks(values: npt.ArrayLike) -> Array:
    """Ranks of finite values [n] from 0, ties sharing their mean rank: [n] float64."""
    ordered = np.sort(values)
    first, last = (ordered.searchsorted(values, side) for side in ("left", "right"))
    return (first + last - 1) / 2


def order_of_scores(scores: npt.ArrayLike) -> Array:
    """Ranks of finite scores [n] from 0 without gaps, equal if scores count as tied."""
    keys = _score_keys(np.asarray(scores, np.float64))
    return np.unique(keys, return_inverse=True)[1].astype(np.float64)


def partial_spearman(scores: npt.ArrayLike, quality: npt.ArrayLike, given: npt.ArrayLike) -> float:
    """Spearman's ρ of scores [n] and quality [n] with a third quantity [n] held fixed.

    The first-order partial correlation of ranks,
    (r_xy - r_xz r_yz) / sqrt((1 - r_xz²) (1 - r_yz²)); NaN if the scores have the order of the
    third quantity or its reverse.
    """
    xy, xz, yz = spearman(scores, quality), spearman(scores, given), spearman(quality, given)
    left = (1 - xz**2) * (1 - yz**2)
    if not left > 1e-12:  # also when a coefficient is NaN
        return math.nan
    return float(np.clip((xy - xz * yz) / np.sqrt(left), -1, 1))


def within_cell_spearman(
    scores: npt.ArrayLike, quality: npt.ArrayLike, cells: Sequence[Hashable]
) -> float:
    """Spearman's ρ of scores [n] and quality [n] inside cells [n], such as (depth, width).

    It is the mean over cells of at least five architectures, weighted by their size; 0 for a cell
    with constant scores.  NaN if no cell is that large.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    members: dict[Hashable, list[int]] = {}
    for index, cell in enumerate(cells):
        members.setdefault(cell, []).append(index)
    total = weight = 0.0
    for indices in members.values():
        if len(indices) < SMALLEST_CELL or np.ptp(y[indices]) == 0:
            continue
        if not np.isfinite(x[indices]).all():
            return math.nan
        total += len(indices) * float(np.nan_to_num(spearman(x[indices], y[indices])))
        weight += len(indices)
    return total / weight if weight else math.nan


def top_recall(scores: npt.ArrayLike, quality: npt.ArrayLike, share: float = 0.1) -> float:
    """Share of the best architectures that are also the best by their scores.

    Scores and quality are [n], higher is better; the top holds at least one architecture.  NaN if a
    score is not finite.  Scores tied at the border count in proportion.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    if not np.isfinite(x).all():
        return math.nan
    size = max(1, round(share * y.size))
    best = np.argsort(-y, kind="stable")[:size]
    order = order_of_scores(x)
    border = np.sort(order)[-size]
    above, at_border = order > border, order == border
    chance = above + at_border * ((size - above.sum()) / at_border.sum())
    return float(chance[best].sum() / size)


def configuration_baselines(
    *,
    parameters: npt.ArrayLike,
    body_parameters: npt.ArrayLike,
    depth: npt.ArrayLike,
    width: npt.ArrayLike,
) -> dict[str, Array]:
    """Scores [n] float64 of the five baselines that read the configuration alone, by name.

    Body parameters are those of the blocks and the final norm, width is that of the hidden state.
    """
    every, body, depths, widths = (
        np.asarray(one, np.float64) for one in (parameters, body_parameters, depth, width)
    )
    return {
        "parameters": every,
        "body-parameters": body,
        "depth": depths,
        "width": widths,
        "depth²×width": depths**2 * widths,
    }


def true_ranks(quality: npt.ArrayLike) -> Array:
    """Ranks [n] of finite qualities [n], 1 for the highest; ties share their mean rank."""
    return midranks(-np.asarray(quality, np.float64)) + 1


def expected_best_rank(ranks: npt.ArrayLike, k: int) -> float:
    """Expected rank of the best of k architectures drawn at random without replacement.

    The best is the i-th of all n with probability C(n - i, k - 1) / C(n, k), so that without ties
    the expectation is (n + 1) / (k + 1).  The ranks [n] are from `true_ranks`; k is 1 to n.
    """
    ordered = np.sort(np.asarray(ranks, np.float64))
    n = len(ordered)
    if not 1 <= k <= n:
        raise ValueError(f"{k} of {n} cannot be drawn")
    # P(1) = k / n and P(i + 1) = P(i) (n - i - k + 1) / (n - i), zero beyond n - k + 1.
    i = np.arange(1, n)
    factors = np.clip((n - i - k + 1) / (n - i), 0, None)
    return float(k / n * np.cumprod(np.concatenate([[1.0], factors])) @ ordered)


def equivalent_trials(ranks: Array, rank: float) -> int:
    """The fewest random trials whose best is expected to be at least as good as a rank.

    The rank is one of `true_ranks` [n], or a mean of some.
    """

    def as_good(k: int) -> bool:  # the expectation does not increase with k
        return expected_best_rank(ranks, k) <= rank + _RANK_ROUNDING

    return 1 + bisect_left(range(1, len(ranks)), True, key=as_good)


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


def multiplicities(n: int, seed: int, samples: int = SAMPLES) -> Array:
    """How often each of n architectures occurs in each bootstrap sample: [samples, n] float64.

    One seed for all proxies makes their intervals comparable.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float64)


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


def _deviations(values: Array) -> Array:
    """Deviations from the mean, scaled so that they can be squared; 0 for a constant."""
    largest = np.abs(values).max()
    if largest == 0:
        return values
    scaled = values / largest
    varies = scaled.max() - scaled.min() > _LINEAR_ROUNDING
    return scaled - scaled.mean() if varies else np.zeros_like(values)


# By its bytes: a search correlates thousands of scores with one quality.
@lru_cache(64)
def _log_deviations(quality: bytes) -> Array:
    return _deviations(logarithm(np.frombuffer(quality)))


@lru_cache(64)
def _known_midranks(quality: bytes) -> Array:
    target = np.frombuffer(quality)
    if not np.isfinite(target).all():
        raise ValueError("the quality holds a NaN or an infinity")
    return midranks(target)


def _checked(
    scores: npt.ArrayLike, quality: npt.ArrayLike
) -> tuple[Array, Array, npt.NDArray[np.intp]]:
    """Scores [n_rows, n], ranks of the quality [n], and which rows are finite."""
    rows, target = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    if rows.ndim != 2 or target.ndim != 1 or rows.shape[1] != target.size:
        raise ValueError(f"scores {rows.shape} do not fit quality {target.shape}")
    finite = np.flatnonzero(np.isfinite(rows).all(axis=1))
    return rows, _known_midranks(target.tobytes()), finite


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


def _spearman_of_keys(keys: Keys, ranks: Array) -> Array:
    n = ranks.size
    centred = ranks - (n - 1) / 2
    position = np.arange(n) - (n - 1) / 2
    quality_rank = (keys & _RANK_MASK).astype(np.float64) * 0.5
    covariance = quality_rank @ position
    variance = np.full(len(keys), position @ position)
    scores = keys & ~_RANK_MASK
    tied = np.equal(scores[:, 1:], scores[:, :-1])
    if tied.any():
        with_ties = np.flatnonzero(tied.any(axis=1))
        mean_position = _mean_positions(tied[with_ties]) - (n - 1) / 2
        covariance[with_ties] = np.einsum("ij,ij->i", quality_rank[with_ties], mean_position)
        variance[with_ties] = np.einsum("ij,ij->i", mean_position, mean_position)
    return _ratio(covariance, np.sqrt(variance * (centred @ centred))).clip(-1.0, 1.0)


def _mean_positions(tied: npt.NDArray[np.bool_]) -> Array:
    """Mean of the tie group's first and last sorted position, from which ties with the next."""
    n_rows, width = tied.shape[0], tied.shape[1] + 1
    position = np.arange(width)
    first = np.zeros((n_rows, width), np.int64)
    first[:, 1:] = np.where(tied, 0, position[1:])
    last = np.full((n_rows, width), width - 1)
    last[:, :-1] = np.where(tied, width - 1, position[:-1])
    first = np.maximum.accumulate(first, axis=1)
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    return (first + last) / 2
