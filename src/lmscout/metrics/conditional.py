"""Correlation beyond the configuration, the configuration baselines, equivalent random trials."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from lmscout.metrics.correlation import midranks, order_of_scores, spearman

Array = npt.NDArray[np.float64]

SMALLEST_CELL = 5  # architectures
_ROUNDING = 1e-9  # of ranks, so that equal ones compare as equal


def partial_spearman(scores: npt.ArrayLike, quality: npt.ArrayLike, given: npt.ArrayLike) -> float:
    """Spearman's ρ of scores and quality with a third quantity held fixed.

    The first-order partial correlation of ranks,
    (r_xy - r_xz r_yz) / sqrt((1 - r_xz²) (1 - r_yz²)).

    Args:
        scores: [n] one score per architecture.
        quality: [n] measured quality.
        given: [n] quantity held fixed, usually the number of parameters.

    Returns:
        The coefficient; NaN if the scores have the order of `given` or its reverse.
    """
    xy, xz, yz = spearman(scores, quality), spearman(scores, given), spearman(quality, given)
    left = (1 - xz**2) * (1 - yz**2)
    if not left > 1e-12:  # also when a coefficient is NaN
        return float("nan")
    return float(np.clip((xy - xz * yz) / np.sqrt(left), -1, 1))


def within_cell_spearman(
    scores: npt.ArrayLike, quality: npt.ArrayLike, cells: Sequence[Hashable]
) -> float:
    """Spearman's ρ inside cells of architectures of one shape, averaged over the cells.

    Args:
        scores: [n] one score per architecture.
        quality: [n] measured quality.
        cells: [n] the cell of each architecture, such as (depth, width).

    Returns:
        The mean of ρ over cells of at least five architectures, weighted by their size; 0 for a
        cell with constant scores.  NaN if no cell is that large.
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
            return float("nan")
        rho = spearman(x[indices], y[indices])
        total += len(indices) * (0.0 if np.isnan(rho) else rho)
        weight += len(indices)
    return total / weight if weight else float("nan")


def top_recall(scores: npt.ArrayLike, quality: npt.ArrayLike, share: float = 0.1) -> float:
    """Share of the best architectures that are also the best by their scores.

    Scores and quality are [n], higher is better; the top holds at least one architecture.  NaN if a
    score is not finite.  Scores tied at the border count in proportion.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(quality, np.float64)
    if not np.isfinite(x).all():
        return float("nan")
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
    the expectation is (n + 1) / (k + 1).

    Args:
        ranks: [n] of all architectures, from `true_ranks`.
        k: number drawn, 1 to n.
    """
    ordered = np.sort(np.asarray(ranks, np.float64))
    n = len(ordered)
    if not 1 <= k <= n:
        raise ValueError(f"{k} of {n} cannot be drawn")
    # P(1) = k / n and P(i + 1) = P(i) (n - i - k + 1) / (n - i), zero beyond n - k + 1.
    i = np.arange(1, n)
    factors = np.clip((n - i - k + 1) / (n - i), 0, None)
    return float(k / n * np.cumprod(np.concatenate([[1.0], factors])) @ ordered)


def equivalent_trials(ranks: npt.ArrayLike, rank: float) -> int:
    """The fewest random trials whose best is expected to be at least as good as a rank.

    Args:
        ranks: [n] of all architectures, from `true_ranks`.
        rank: one of them, or a mean of some.
    """
    low, high = 1, len(np.asarray(ranks))
    while low < high:  # the expectation does not increase with k
        middle = (low + high) // 2
        if expected_best_rank(ranks, middle) <= rank + _ROUNDING:
            high = middle
        else:
            low = middle + 1
    return low
