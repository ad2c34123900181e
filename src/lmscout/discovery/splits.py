"""Which architectures a choice may see, and on which it is judged."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.errors import LmscoutError

Indices = npt.NDArray[np.int64]

SMALLEST_SPLIT = 5


@dataclass(frozen=True)
class Split:
    """Row numbers of a benchmark, three disjoint sets in ascending order.

    Attributes:
        search: candidates are compared on these.
        select: the last choice among finalists is made on these; may be empty.
        test: reported on, and seen by no choice.
    """

    search: Indices
    select: Indices
    test: Indices


def split_benchmark(
    architectures: Sequence[Hashable], *, search: int, seed: int, select: int = 0
) -> Split:
    """Draw a split; equal architectures stay together, so that no test row has been seen.

    Args:
        architectures: the benchmark's specs.
        search: size of the search split, met exactly.
        seed: of the draw.
        select: size of the select split, met exactly.

    Returns:
        The split; every row not drawn is a test row.

    Raises:
        LmscoutError: the sizes leave too few rows on a side, or repeated architectures make
            them impossible.
    """
    n = len(architectures)
    for name, size, least in (("search", search, SMALLEST_SPLIT), ("select", select, 0)):
        if size < least:
            raise LmscoutError(f"{name} split of {size} is too small: at least {least}")
    if n < 2 * SMALLEST_SPLIT + select:
        raise LmscoutError(
            f"{n} architectures are too few to search on some and to test on others: at least "
            f"{2 * SMALLEST_SPLIT + select}"
        )
    if n - search - select < SMALLEST_SPLIT:
        raise LmscoutError(
            f"search split of {search} does not fit a benchmark of {n} architectures: at most "
            f"{n - select - SMALLEST_SPLIT}, so that {SMALLEST_SPLIT} remain to test on"
        )
    sides: dict[str, list[int]] = {"search": [], "select": [], "test": []}
    room = {"search": search, "select": select, "test": n}
    for group in shuffled_groups(architectures, seed):
        side = next(name for name in sides if len(sides[name]) + len(group) <= room[name])
        sides[side].extend(group)
    for name, size in (("search", search), ("select", select)):
        if len(sides[name]) != size:
            raise LmscoutError(
                f"{name} split of {size} cannot be met without parting equal architectures: "
                f"{len(sides[name])} can"
            )
    return Split(*(np.sort(np.array(rows, np.int64)) for rows in sides.values()))


def shuffled_groups(architectures: Sequence[Hashable], seed: int) -> list[list[int]]:
    """Row numbers in groups of equal architectures, the groups in an order drawn by the seed."""
    groups: dict[Hashable, list[int]] = {}
    for index, architecture in enumerate(architectures):
        groups.setdefault(architecture, []).append(index)
    order = list(groups.values())
    np.random.default_rng(seed).shuffle(order)
    return order
