"""What trials at random are worth: the expected rank of the best of k, drawn without return."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lmscout.ranking.correlation import midranks

Array = npt.NDArray[np.float64]

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
