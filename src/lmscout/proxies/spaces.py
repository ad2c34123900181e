"""The published spaces: every proxy that joins two branches, by index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmscout.errors import LmscoutError, brief, require_known
from lmscout.proxies.expression import Branch, Expression, as_published
from lmscout.proxies.primitives import AGGREGATION, BINARY, INPUT, UNARY_OPERATION

Lookup = Callable[[str, tuple[str, ...]], ArrayLike]
"""(input, chain) to block values [n_architectures, max_blocks]."""

_SIGNS = tuple(one.symbol for one in BINARY)
APPLY: Mapping[str, np.ufunc] = {"+": np.add, "-": np.subtract, "*": np.multiply}


@dataclass(frozen=True)
class Space:
    """Every proxy of the published form that joins two branches on different inputs.

    The index runs in C order (the last varies fastest) over

        (aggregation, pair of inputs, left chain, right chain, binary operation)

    A pair is unordered: the left input is the one that comes first in `inputs`.  Every binary
    operation but the difference commutes, and a swapped difference only changes its sign, so
    nothing distinct is left out under the mean and the sum.

    """

    name: str
    inputs: tuple[str, ...]  # that are paired
    chains: tuple[tuple[str, ...], ...]  # of unary operations, innermost first
    aggregations: tuple[str, ...]

    def __post_init__(self) -> None:
        given = self.aggregations
        if not given or len(set(given)) != len(given):
            raise LmscoutError(
                f"space {self.name}: aggregations are {brief(', '.join(map(str, given)))}, "
                "expected 1 or more, each once"
            )
        for name in given:
            require_known("aggregation", name, AGGREGATION)

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of distinct inputs: (first, second), (first, third), ..."""
        return tuple(combinations(self.inputs, 2))

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Lengths of the index's axes: aggregation, pair, left and right chain, binary."""
        chains = len(self.chains)
        return (len(self.aggregations), len(self.pairs), chains, chains, len(BINARY))

    @property
    def size(self) -> int:
        """Number of proxies."""
        return int(np.prod(self.shape))

    def proxy(self, index: int) -> Expression:
        """The proxy of an index, from 0 to `size` - 1.

        A matrix product is the sum of the products, whatever the aggregation of its index.
        """
        aggregation, pair, *chains, binary = np.unravel_index(int(index), self.shape)
        operands = tuple(
            Branch(name, self.chains[chain]).expression()
            for name, chain in zip(self.pairs[pair], chains, strict=True)
        )
        if (sign := _SIGNS[binary]) == "@":
            return Expression("sum", (Expression("*", operands),))
        return Expression(self.aggregations[aggregation], (Expression(sign, operands),))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Expression]:
        return (self.proxy(index) for index in range(self.size))


def published(aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """LPZero's published space: one operation a side, C(6, 2) x 20^2 x 4 = 24,000 a mean.

    The paper has only the mean over blocks.
    """
    chains = tuple((name,) for name in UNARY_OPERATION)
    return Space("published", tuple(INPUT), chains, aggregations)


def two_op(aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """Two operations a side: 15 x 400^2 x 4 = 9.6 million proxies an aggregation.

    LPZero's code (lpzero/structures/tree.py) searches this space; its paper counts
    `published`.  A chain's number is 20 x its inner operation + its outer one.
    """
    chains = tuple(product(UNARY_OPERATION, UNARY_OPERATION))
    return Space("two-op", tuple(INPUT), chains, aggregations)


SPACES: Mapping[str, Callable[[tuple[str, ...]], Space]] = {
    "published": published,
    "two-op": two_op,
}


def space(name: str, aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """The enumerated space of a name; LmscoutError if it or an aggregation is unknown."""
    require_known("space", name, (*SPACES, "deep"))
    return SPACES[name](aggregations)


def evaluate(proxy: Expression, lookup: Lookup, blocks: ArrayLike) -> NDArray[np.float64]:
    """Score many architectures by a published proxy from collected block values, in float64.

    `lookup` gives block values [n_architectures, max_blocks] of an input under a chain; `blocks`
    [n_architectures] are the depths.  Values beyond a depth are padding, whatever they are; a NaN
    within it makes the score [n_architectures] NaN.
    """
    form = as_published(proxy)
    assert form is not None
    values, *rest = (np.asarray(lookup(one.input, one.chain), np.float64) for one in form.branches)
    exists = np.arange(values.shape[1]) < np.asarray(blocks)[:, None]
    # Overflow and inf - inf are values here (inf and NaN), not accidents to warn of.
    with np.errstate(over="ignore", invalid="ignore"):
        if form.sign:
            values = APPLY[form.sign](values, rest[0])
        return _aggregate(form.aggregation, values, exists)


def _aggregate(
    aggregation: str, values: NDArray[np.float64], exists: NDArray[np.bool_]
) -> NDArray[np.float64]:
    padding = {"max": -np.inf, "min": np.inf}.get(aggregation, 0.0)
    padded = np.where(exists, values, padding)
    reduction = "sum" if aggregation == "mean" else aggregation
    total: NDArray[np.float64] = getattr(padded, reduction)(axis=1)
    return total / exists.sum(axis=1) if aggregation == "mean" else total
