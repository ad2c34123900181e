"""Proxies as typed expressions, and their value on collected statistics.

A `Branch` turns the tensors of one input into one number a block, a `Binary` joins two
branches, and a `Proxy` aggregates over blocks to one score an architecture.  All three are
frozen and hashable, and none that is malformed can be built.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmscout.errors import LmscoutError
from lmscout.proxies.operators import AGGREGATION, BINARY_OPERATION, INPUT, UNARY_OPERATION
from lmscout.proxies.spelling import require_known, shown

MAX_OPERATIONS = 64
"""The longest chain of unary operations; deeper nesting is a slip rather than a proxy."""

Lookup = Callable[[str, tuple[str, ...]], ArrayLike]
"""(input, chain) to block values [n_architectures, max_blocks]."""


@dataclass(frozen=True)
class Branch:
    """A block value: a chain of unary operations on one input, reduced by the mean.

    Attributes:
        input: One of the six inputs.
        chain: Names of unary operations, innermost first; at least one.
    """

    input: str
    chain: tuple[str, ...]

    def __post_init__(self) -> None:
        require_known("input", self.input, INPUT)
        if not isinstance(self.chain, tuple):
            raise LmscoutError(f"a chain must be a tuple of operations, not {shown(self.chain)}")
        if not 1 <= len(self.chain) <= MAX_OPERATIONS:
            raise LmscoutError(
                f"a chain on {self.input} has {len(self.chain)} operations: "
                f"give between 1 and {MAX_OPERATIONS}"
            )
        for name in self.chain:
            require_known("operation", name, UNARY_OPERATION)


@dataclass(frozen=True)
class Binary:
    """Two block values joined, block by block or by the inner product over blocks.

    Attributes:
        operation: Name of a binary operation.
        left: The left operand.
        right: The right operand.
    """

    operation: str
    left: Branch
    right: Branch

    def __post_init__(self) -> None:
        require_known("binary operation", self.operation, BINARY_OPERATION)
        for side, operand in (("left", self.left), ("right", self.right)):
            if not isinstance(operand, Branch):
                raise LmscoutError(
                    f"the {side} operand of {self.operation} must be a Branch, not {shown(operand)}"
                )


@dataclass(frozen=True)
class Proxy:
    """A score: a body aggregated over blocks.

    Attributes:
        aggregation: Name of an aggregation.  After a matrix product, which gives a score
            already, it has no effect.
        body: What has one value a block.
    """

    aggregation: str
    body: Binary | Branch

    def __post_init__(self) -> None:
        require_known("aggregation", self.aggregation, AGGREGATION)
        if not isinstance(self.body, Binary | Branch):
            raise LmscoutError(
                f"the body of a proxy must be a Binary or a Branch, not {shown(self.body)}"
            )


def branches(proxy: Proxy) -> tuple[Branch, ...]:
    """The one or two branches of a proxy, left to right."""
    if isinstance(proxy.body, Branch):
        return (proxy.body,)
    return (proxy.body.left, proxy.body.right)


def complexity(proxy: Proxy) -> int:
    """Number of nodes: every input, unary operation, binary operation and the aggregation."""
    operands = branches(proxy)
    joins = len(operands) - 1
    return 1 + joins + sum(1 + len(branch.chain) for branch in operands)


def evaluate(proxy: Proxy, lookup: Lookup, blocks: ArrayLike) -> NDArray[np.float64]:
    """Score many architectures from their collected block values, in float64.

    What is padding is told by the depths alone: values beyond an architecture's depth are
    never looked at, and a NaN within it makes the score NaN.

    Args:
        proxy: The proxy.
        lookup: Gives the block values [n_architectures, max_blocks] of an input under a
            chain of operations.
        blocks: Depth of each architecture, [n_architectures], each from 1 to max_blocks.

    Returns:
        Scores [n_architectures].

    Raises:
        LmscoutError: The depths do not fit the block values.
    """
    depths = np.asarray(blocks)
    left, *rest = (_block_values(branch, lookup, depths) for branch in branches(proxy))
    exists = np.arange(left.shape[1]) < depths[:, None]
    # Overflow and inf - inf are values here (inf and NaN), not accidents to warn of.
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(proxy.body, Branch):
            return _aggregate(proxy.aggregation, left, exists)
        operation = BINARY_OPERATION[proxy.body.operation]
        joined = operation.apply(left, rest[0])
        return _aggregate("sum" if operation.gives_score else proxy.aggregation, joined, exists)


def _block_values(
    branch: Branch, lookup: Lookup, depths: NDArray[np.integer]
) -> NDArray[np.float64]:
    values = np.asarray(lookup(branch.input, branch.chain), dtype=np.float64)
    if values.ndim != 2 or depths.shape != values.shape[:1]:
        raise LmscoutError(
            f"block values of {branch.input} have shape {values.shape} beside "
            f"{depths.shape} depths: expected [architectures, blocks] and [architectures]"
        )
    if depths.size and not (depths.min() >= 1 and depths.max() <= values.shape[1]):
        raise LmscoutError(
            f"depths from {depths.min()} to {depths.max()} do not fit block values of "
            f"{branch.input}, which have {values.shape[1]} blocks"
        )
    return values


def _aggregate(
    aggregation: str, values: NDArray[np.float64], exists: NDArray[np.bool_]
) -> NDArray[np.float64]:
    total: NDArray[np.float64]
    if aggregation == "max":
        total = np.where(exists, values, -np.inf).max(axis=1)
    elif aggregation == "min":
        total = np.where(exists, values, np.inf).min(axis=1)
    else:
        total = np.where(exists, values, 0.0).sum(axis=1)
        if aggregation == "mean":
            total /= exists.sum(axis=1)
    return total
