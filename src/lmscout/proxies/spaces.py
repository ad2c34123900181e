"""Spaces of expressions: the published ones by index, and the deep one by size or at random.

A grammar bounds the deep space, of which only short expressions can be listed.  Random draws use
the given generator, so that a seed gives the same expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import Branch, Expression, as_published, walk
from lmscout.proxies.parser import format_expression
from lmscout.proxies.primitives import (
    AGGREGATES,
    AGGREGATION,
    ARITHMETIC,
    BINARY,
    BLOCK,
    COMMUTATIVE,
    ELEMENTWISE,
    INPUT,
    REDUCTIONS,
    SCORE,
    SPEC_LEAVES,
    STACKS,
    TENSOR,
    TENSOR_JOINS,
    TENSOR_UNARY,
    UNARY_OPERATION,
)
from lmscout.proxies.spelling import did_you_mean, require_known, shown

Random = np.random.Generator
Lookup = Callable[[str, tuple[str, ...]], ArrayLike]
"""(input, chain) to block values [n_architectures, max_blocks]."""

LEAST: Mapping[str, int] = {TENSOR: 1, BLOCK: 2, SCORE: 3}
"""Words of the smallest expression of a type that reads a tensor."""

_JOINS = 0.35  # chance that a random expression joins two where it can
_BARE = 0.3  # chance that a block value gets no further operation
_SIGNS = tuple(one.symbol for one in BINARY)
_ARITHMETIC = tuple(ARITHMETIC)
_APPLY = {"+": np.add, "-": np.subtract, "*": np.multiply}


@dataclass(frozen=True)
class Space:
    """Every proxy of the published form that joins two branches on different inputs.

    The index runs in C order (the last varies fastest) over

        (aggregation, pair of inputs, left chain, right chain, binary operation)

    A pair is unordered: the left input is the one that comes first in `inputs`.  Every binary
    operation but the difference commutes, and a swapped difference only changes its sign, so
    nothing distinct is left out under the mean and the sum.

    Attributes:
        name: In messages.
        inputs: The inputs that are paired, in order.
        chains: The chains of unary operations of a branch, in order, innermost operation first.
        aggregations: The aggregations, in order.
    """

    name: str
    inputs: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]
    aggregations: tuple[str, ...]

    def __post_init__(self) -> None:
        for field, fewest in (("inputs", 2), ("chains", 1), ("aggregations", 1)):
            values = getattr(self, field)
            if len(values) < fewest or len(set(values)) != len(values):
                raise LmscoutError(
                    f"space {self.name}: {field} are {shown(', '.join(map(str, values)))}, "
                    f"expected {fewest} or more, each once"
                )
        operations = {name for chain in self.chains for name in chain}
        for kind, names, known in (
            ("aggregation", self.aggregations, AGGREGATION),
            ("input", self.inputs, INPUT),
            ("operation", operations, UNARY_OPERATION),
        ):
            for name in names:
                require_known(kind, name, known)

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

        Raises:
            LmscoutError: The index is outside the space.
        """
        if not 0 <= index < self.size:
            raise LmscoutError(
                f"space {self.name}: index {index} is outside, give one from 0 to {self.size - 1}"
            )
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

    Args:
        aggregations: Over blocks; the paper has only the mean.
    """
    chains = tuple((name,) for name in UNARY_OPERATION)
    return Space("published", tuple(INPUT), chains, aggregations)


def two_op(aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """Two operations a side: 15 x 400^2 x 4 = 9.6 million proxies an aggregation.

    LPZero's code (lpzero/structures/tree.py) searches this space; its paper counts
    `published`.  A chain's number is 20 x its inner operation + its outer one.

    Args:
        aggregations: Over blocks.
    """
    chains = tuple(product(UNARY_OPERATION, UNARY_OPERATION))
    return Space("two-op", tuple(INPUT), chains, aggregations)


SPACES: Mapping[str, Callable[[tuple[str, ...]], Space]] = {
    "published": published,
    "two-op": two_op,
}


def space(name: str, aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """The enumerated space of a name.

    Raises:
        LmscoutError: There is none of this name, or an aggregation is unknown.
    """
    if name not in SPACES:
        raise LmscoutError(
            f"unknown space {shown(name)}: expected one of {', '.join(SPACES)}, deep"
            f"{did_you_mean(name, SPACES)}"
        )
    return SPACES[name](aggregations)


def evaluate(proxy: Expression, lookup: Lookup, blocks: ArrayLike) -> NDArray[np.float64]:
    """Score many architectures by a published proxy from collected block values, in float64.

    Values beyond an architecture's depth are padding, whatever they are; a NaN within it makes
    the score NaN.

    Args:
        proxy: An expression of the published form.
        lookup: Gives the block values [n_architectures, max_blocks] of an input under a
            chain of operations.
        blocks: Depth of each architecture, [n_architectures], each from 1 to max_blocks.

    Returns:
        Scores [n_architectures].

    Raises:
        LmscoutError: The proxy is not of that form, or the depths do not fit the block values.
    """
    form = as_published(proxy)
    if form is None:
        raise LmscoutError(f"{format_expression(proxy)} is not of the published form")
    depths = np.asarray(blocks)
    values, *rest = (_block_values(branch, lookup, depths) for branch in form.branches)
    exists = np.arange(values.shape[1]) < depths[:, None]
    # Overflow and inf - inf are values here (inf and NaN), not accidents to warn of.
    with np.errstate(over="ignore", invalid="ignore"):
        if form.sign:
            values = _APPLY[form.sign](values, rest[0])
        return _aggregate(form.aggregation, values, exists)


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
    padding = {"max": -np.inf, "min": np.inf}.get(aggregation, 0.0)
    padded = np.where(exists, values, padding)
    reduction = "sum" if aggregation == "mean" else aggregation
    total: NDArray[np.float64] = getattr(padded, reduction)(axis=1)
    return total / exists.sum(axis=1) if aggregation == "mean" else total


@dataclass(frozen=True)
class Grammar:
    """Bounds of the deep space.

    Attributes:
        spec_leaves: Leaves that read the configuration; may be empty.
        stacks: Stacks whose tensors may be read.
        aggregates: Over blocks.
        largest: Most words of an expression.
    """

    spec_leaves: tuple[str, ...] = SPEC_LEAVES
    stacks: tuple[str, ...] = tuple(STACKS)
    aggregates: tuple[str, ...] = AGGREGATES
    largest: int = 20

    @cached_property
    def leaves(self) -> frozenset[str]:
        """Every leaf that may be used."""
        return frozenset({*self.spec_leaves, *(one for s in self.stacks for one in STACKS[s])})

    def holds(self, expression: Expression) -> bool:
        """Whether an expression is a score of this grammar."""
        aggregates = {one.name for _, one in walk(expression) if one.word.aggregates}
        return (
            expression.type == SCORE
            and expression.size <= self.largest
            and expression.leaves <= self.leaves
            and aggregates <= set(self.aggregates)
        )


def every_score(grammar: Grammar) -> Iterator[Expression]:
    """Every score of a grammar, by size; of commutative operands, one order."""
    for size in range(1, grammar.largest + 1):
        yield from every_expression(grammar, SCORE, size)


def every_expression(grammar: Grammar, kind: str, size: int) -> Iterator[Expression]:
    """Every expression of a type and a size, in a fixed order.

    Nothing is stored: of five words there are some ten thousand, of eight a hundred million.

    Args:
        grammar: Its bounds.
        kind: "score", "block" or a stack.
        size: Number of words.
    """
    leaves = {BLOCK: (), SCORE: grammar.spec_leaves}.get(kind, STACKS.get(kind, ()))
    if size == 1:
        yield from map(Expression, leaves)
    if kind == BLOCK:
        for stack in grammar.stacks:
            yield from _on_one(REDUCTIONS, grammar, stack, size)
    if kind == SCORE:
        yield from _on_one(grammar.aggregates, grammar, BLOCK, size)
    yield from _on_one(TENSOR_UNARY if kind in STACKS else ELEMENTWISE, grammar, kind, size)
    yield from _on_two(TENSOR_JOINS if kind in STACKS else _ARITHMETIC, grammar, kind, size)


def _on_one(words: tuple[str, ...], grammar: Grammar, kind: str, size: int) -> Iterator[Expression]:
    if size > 1:
        for operand in every_expression(grammar, kind, size - 1):
            yield from (Expression(word, (operand,)) for word in words)


def _on_two(words: tuple[str, ...], grammar: Grammar, kind: str, size: int) -> Iterator[Expression]:
    for left in range(1, size - 1):
        for operands in product(
            every_expression(grammar, kind, left), every_expression(grammar, kind, size - 1 - left)
        ):
            ordered = repr(operands[0]) <= repr(operands[1])
            yield from (
                Expression(word, operands) for word in words if ordered or word not in COMMUTATIVE
            )


def random_score(grammar: Grammar, rng: Random) -> Expression:
    """A random score of random size."""
    return random_expression(grammar, SCORE, int(rng.integers(4, grammar.largest + 1)), rng)


def random_expression(grammar: Grammar, kind: str, size: int, rng: Random) -> Expression:
    """A random expression of a type.

    Args:
        grammar: Its bounds.
        kind: "score", "block" or a stack.
        size: Most words; at least as many as the smallest expression of the type has.
        rng: Source of randomness.
    """
    least = LEAST.get(kind, LEAST[TENSOR])
    if kind == SCORE and size < least:
        if grammar.spec_leaves:
            return Expression(any_of(grammar.spec_leaves, rng))
        size = least
    if size >= 2 * least + 1 and rng.random() < _JOINS:
        left = int(rng.integers(least, size - least))
        operands = (
            random_expression(grammar, kind, left, rng),
            random_expression(grammar, kind, size - 1 - left, rng),
        )
        return Expression(any_of(TENSOR_JOINS if kind in STACKS else _ARITHMETIC, rng), operands)
    if kind in STACKS:
        if size < 2:
            return Expression(any_of(STACKS[kind], rng))
        word, inner = any_of(TENSOR_UNARY, rng), kind
    elif kind == BLOCK:
        if size >= 3 and rng.random() > 1 - _BARE / 2:
            word, inner = any_of(ELEMENTWISE, rng), BLOCK
        else:
            return _reduced(grammar, size, rng)
    elif grammar.spec_leaves and size >= 5 and rng.random() < _JOINS:
        leaf = Expression(any_of(grammar.spec_leaves, rng))
        operands = (random_expression(grammar, SCORE, size - 2, rng), leaf)
        return Expression(any_of(_ARITHMETIC, rng), operands)
    else:
        word, inner = any_of(grammar.aggregates, rng), BLOCK
    return Expression(word, (random_expression(grammar, inner, size - 1, rng),))


def _reduced(grammar: Grammar, size: int, rng: Random) -> Expression:
    tensor = random_expression(grammar, any_of(grammar.stacks, rng), size - 1, rng)
    return Expression(any_of(REDUCTIONS, rng), (tensor,))


def any_of(names: tuple[str, ...] | list[str], rng: Random) -> str:
    """One of some names, each with the same probability."""
    return names[rng.integers(len(names))]
