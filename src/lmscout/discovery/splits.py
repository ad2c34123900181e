"""Search and test splits of a benchmark."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.errors import LmscoutError

Indices = npt.NDArray[np.int64]

SMALLEST_SPLIT = 5
MOST_BY_DEFAULT = 100  # search architectures; else half of the benchmark's


@dataclass(frozen=True)
class Split:
    """Row numbers of a benchmark, two disjoint sets in ascending order."""

    search: Indices  # candidates are compared on these
    test: Indices  # held out; the chosen proxy is reported on these


def search_sizes(wanted: int | Sequence[int] | None, benchmarks: int) -> tuple[int | None, ...]:
    """The sizes of the search splits of so many benchmarks, None for the default.

    LmscoutError unless one is wanted for all, or one for each.
    """
    if wanted is None or isinstance(wanted, int) or len(wanted) == 1:
        return (wanted if wanted is None or isinstance(wanted, int) else wanted[0],) * benchmarks
    if len(wanted) != benchmarks:
        raise LmscoutError(
            f"n_search gives {len(wanted)} numbers for {benchmarks} benchmarks: give one for "
            "all, or one for each"
        )
    return tuple(wanted)


def search_size(wanted: int | None, architectures: int) -> int:
    """The size of a search split: by default half of the architectures, at most 100."""
    if wanted is not None:
        return wanted
    return max(SMALLEST_SPLIT, min(MOST_BY_DEFAULT, architectures // 2))


def split_benchmark(architectures: Sequence[Hashable], *, search: int, seed: int) -> Split:
    """Draw a split with a search split of this size; equal architectures stay on one side.

    LmscoutError if a side would be too small, or repeated architectures make the size impossible.
    """
    n = len(architectures)
    if search < SMALLEST_SPLIT:
        raise LmscoutError(f"search split of {search} is too small: at least {SMALLEST_SPLIT}")
    if n < 2 * SMALLEST_SPLIT:
        raise LmscoutError(
            f"{n} architectures are too few to search on some and to test on others: at least "
            f"{2 * SMALLEST_SPLIT}"
        )
    if n - search < SMALLEST_SPLIT:
        raise LmscoutError(
            f"search split of {search} does not fit a benchmark of {n} architectures: at most "
            f"{n - SMALLEST_SPLIT}, so that {SMALLEST_SPLIT} remain to test on"
        )
    chosen: list[int] = []
    others: list[int] = []
    for group in shuffled_groups(architectures, seed):
        (chosen if len(chosen) + len(group) <= search else others).extend(group)
    if len(chosen) != search:
        raise LmscoutError(
            f"search split of {search} cannot be met without parting equal architectures: "
            f"{len(chosen)} can"
        )
    return Split(*(np.sort(np.array(rows, np.int64)) for rows in (chosen, others)))


def halves(architectures: Sequence[Hashable], seed: int) -> tuple[Indices, Indices]:
    """Two random halves of the rows, ascending; equal architectures stay on one side."""
    sides: tuple[list[int], list[int]] = ([], [])
    for group in shuffled_groups(architectures, seed):
        sides[len(sides[0]) + len(group) > (len(architectures) + 1) // 2].extend(group)
    first, second = (np.sort(np.array(side, np.int64)) for side in sides)
    return first, second


def shuffled_groups(architectures: Sequence[Hashable], seed: int) -> list[list[int]]:
    """Row numbers in groups of equal architectures, in random order."""
    groups: dict[Hashable, list[int]] = {}
    for index, architecture in enumerate(architectures):
        groups.setdefault(architecture, []).append(index)
    order = list(groups.values())
    np.random.default_rng(seed).shuffle(order)
    return order
