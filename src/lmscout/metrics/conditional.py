"""Correlation beyond size, configuration baselines, and equivalent random trials.

What a ranking is worth beyond the obvious: given size, within a cell, at the top.

Configuration baselines: what can be said of an architecture without building it.

Any proxy that reads a model has to beat these, or it has only found a slow way to count.

What trials at random are worth: the expected rank of the best of k, drawn without return.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from lmscout.metrics.correlation import midranks, order_of_scores, spearman

SMALLEST_CELL = 5


def partial_spearman(scores: npt.ArrayLike, quality: npt.ArrayLike, given: npt.ArrayLike) -> float:
    """Spearman's ρ of scores and quality with a third quantity held fixed.

    The first-order partial correlation of ranks,
    (r_xy - r_xz r_yz) / sqrt((1 - r_xz²) (1 - r_yz²)).

    Args:
        scores: [n] one score an architecture.
        quality: [n] measured quality.
        given: [n] what is held fixed, usually the number of parameters.

    Returns:
        The coefficient; NaN where the scores order architectures just as `given` does (or
        the reverse), since then nothing is left to correlate.
    """
    xy, xz, yz = spearman(scores, quality), spearman(scores, given), spearman(quality, given)
    left = (1 - xz**2) * (1 - yz**2)
    if not left > 1e-12:  # also when a coefficient is NaN
        return float("nan")
    return float(np.clip((xy - xz * yz) / np.sqrt(left), -1, 1))


def within_cell_spearman(
    scores: npt.ArrayLike, quality: npt.ArrayLike, cells: Sequence[Hashable]
) -> float:
    """Spearman's ρ inside groups of architectures of one shape, averaged over the groups.

    On a benchmark whose quality is mostly depth and width, this says whether a proxy knows
    anything else.

    Args:
        scores: [n] one score an architecture.
        quality: [n] measured quality.
        cells: [n] the group of each architecture, such as (depth, width).

    Returns:
        The mean of ρ over cells of at least five architectures, weighted by their size; a
        cell in which the scores are constant counts as 0.  NaN where no cell is that large.
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
    """Share of the truly best architectures that the scores also put on top.

    Args:
        scores: [n] one score an architecture, higher is better.
        quality: [n] measured quality, higher is better.
        share: how many count as the top; at least one does.

    Returns:
        A number from 0 to 1; NaN where a score is not finite.  Scores tied at the border
        count in proportion.
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


Array = npt.NDArray[np.float64]


def configuration_baselines(
    *,
    parameters: npt.ArrayLike,
    body_parameters: npt.ArrayLike,
    depth: npt.ArrayLike,
    width: npt.ArrayLike,
) -> dict[str, Array]:
    """Scores of the five baselines, by name.

    Args:
        parameters: [n] all parameters.
        body_parameters: [n] parameters of the blocks and the final norm.
        depth: [n] number of blocks.
        width: [n] width of the hidden state.

    Returns:
        name -> [n] float64, in the order in which they are reported.
    """
    depths = np.asarray(depth, np.float64)
    widths = np.asarray(width, np.float64)
    return {
        "parameters": np.asarray(parameters, np.float64),
        "body-parameters": np.asarray(body_parameters, np.float64),
        "depth": depths,
        "width": widths,
        "depth²×width": depths**2 * widths,
    }


_ROUNDING = 1e-9  # of ranks, so that equal ones compare as equal


def true_ranks(quality: npt.ArrayLike) -> Array:
    """Ranks of qualities, 1 for the best; ties share their mean rank.

    Args:
        quality: [n] finite, higher is better.

    Returns:
        [n] float64.
    """
    return midranks(-np.asarray(quality, np.float64)) + 1


def expected_best_rank(ranks: npt.ArrayLike, k: int) -> float:
    """Expected rank of the best of k of n, every k of them as likely.

    The best is the i-th of all with probability C(n - i, k - 1) / C(n, k), so that without ties
    the expectation is (n + 1) / (k + 1).

    Args:
        ranks: [n] of all, as `true_ranks` gives them.
        k: how many are drawn, 1 to n.
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
        ranks: [n] of all, as `true_ranks` gives them.
        rank: one of them, or a mean of some.

    Returns:
        The smallest k, 1 to n, with `expected_best_rank(ranks, k)` at most `rank`.
    """
    low, high = 1, len(np.asarray(ranks))
    while low < high:  # more trials never make it worse
        middle = (low + high) // 2
        if expected_best_rank(ranks, middle) <= rank + _ROUNDING:
            high = middle
        else:
            low = middle + 1
    return low
