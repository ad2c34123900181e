"""Which blocks to drop: subsets of blocks, as rows of a boolean array.

The first block and the last are load-bearing in nearly every model, so they are dropped
rarely where subsets are drawn, and never left out where all are listed.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

Subsets = npt.NDArray[np.bool_]

_LISTED = 5_000  # subsets that are listed and put in random order, rather than drawn
_ENDS = 0.1  # weight of the first and the last block in draws; others have 1


def every_subset(depth: int, size: int) -> Subsets:
    """All subsets of so many blocks, [C(depth, size), depth]."""
    members = np.array(list(combinations(range(depth), size)), np.int64)
    return _of_members(members.reshape(comb(depth, size), size), depth)


def runs(depth: int, size: int) -> Subsets:
    """All subsets of adjacent blocks, [depth - size + 1, depth]; of no blocks there is one."""
    first = np.arange(depth - size + 1 if size else 1)[:, None]
    return _of_members(first + np.arange(size), depth)


def are_runs(subsets: Subsets) -> npt.NDArray[np.bool_]:
    """Whether the blocks of each subset [n, depth] are adjacent, [n]."""
    begins = subsets[:, 0] + (subsets[:, 1:] & ~subsets[:, :-1]).sum(axis=1)
    return np.asarray(begins <= 1)


def drawn_subsets(depth: int, size: int, count: int, rng: np.random.Generator) -> Subsets:
    """Distinct subsets in random order, those with the first or the last block late.

    Args:
        depth: number of blocks.
        size: of every subset.
        count: wanted.
        rng: draws them.

    Returns:
        [n, depth]; at most `count`, and fewer only where there are no more, but for a few
        that came twice.
    """
    if comb(depth, size) <= max(4 * count, _LISTED):
        return in_random_order(every_subset(depth, size), rng)[:count]
    # Of keys with Gumbel noise, the largest are a draw without replacement by weight.
    keys = _log_weights(depth) + rng.gumbel(size=(2 * count, depth))
    subsets = _of_members(np.argsort(-keys, axis=1)[:, :size], depth)
    _, first = np.unique(subsets, axis=0, return_index=True)
    return subsets[np.sort(first)][:count]


def in_random_order(subsets: Subsets, rng: np.random.Generator) -> Subsets:
    """The same subsets, those with the first or the last block late."""
    keys = subsets @ _log_weights(subsets.shape[1]) + rng.gumbel(size=len(subsets))
    return subsets[np.argsort(-keys, kind="stable")]


def swapped(subset: Subsets) -> Subsets:
    """All subsets that have another block in place of one of a subset's [depth]."""
    inside, outside = np.flatnonzero(subset), np.flatnonzero(~subset)
    others = np.tile(subset, (len(inside) * len(outside), 1))
    place = np.arange(len(others))
    others[place, np.repeat(inside, len(outside))] = False
    others[place, np.tile(outside, len(inside))] = True
    return others


def changed_by_one(subset: Subsets, present: bool) -> Subsets:
    """All subsets with one block more (`present`) or less than a subset [depth]."""
    blocks = np.flatnonzero(subset != present)
    others = np.tile(subset, (len(blocks), 1))
    others[np.arange(len(blocks)), blocks] = present
    return others


def _of_members(members: npt.NDArray[np.int64], depth: int) -> Subsets:
    subsets = np.zeros((len(members), depth), np.bool_)
    np.put_along_axis(subsets, members, True, axis=1)
    return subsets


def _log_weights(depth: int) -> npt.NDArray[np.float64]:
    weights = np.zeros(depth)
    weights[[0, -1]] = np.log(_ENDS)
    return weights
