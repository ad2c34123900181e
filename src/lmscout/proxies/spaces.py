"""Spaces of expressions: the published ones by number, and the deep one by size or at random.

A published space holds every proxy that joins two branches on different inputs.  Its index runs in
C order (the last varies fastest) over

    (aggregation, pair of inputs, left chain, right chain, binary operation)

so that an engine can work through it in contiguous blocks, and both directions between index and
proxy take constant time.  A pair is unordered: the left input is the one that comes first in the
space's `inputs`.  Every binary operation but the difference commutes, and swapping the difference
only turns its sign, so nothing distinct is left out under the mean and the sum.

A grammar bounds the deep space, of which only short expressions can be listed.  Whatever is drawn
at random comes from a generator that is handed in, so that a seed gives the same expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from types import MappingProxyType

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
    INPUTS,
    REDUCTIONS,
    SCORE,
    SPEC_LEAVES,
    STACKS,
    TENSOR,
    TENSOR_JOINS,
    TENSOR_UNARY,
    UNARY,
    UNARY_OPERATION,
)
from lmscout.proxies.spelling import did_you_mean, require_known, shown

Random = np.random.Generator
Lookup = Callable[[str, tuple[str, ...]], ArrayLike]
"""(input, chain) to block values [n_architectures, max_blocks]."""

LEAST: Mapping[str, int] = MappingProxyType({TENSOR: 1, BLOCK: 2, SCORE: 3})
"""Words of the smallest expression of a type that reads a tensor."""

_JOINS = 0.35  # how often a random expression branches where it could
_BARE = 0.3  # how often a block value or a score is not worked on any further
_SIGNS = tuple(one.symbol for one in BINARY)
_APPLY = MappingProxyType({"+": np.add, "-": np.subtract, "*": np.multiply})


@dataclass(frozen=True)
class Space:
    """An enumerated space of the published form.

    Attributes:
        name: What people call it.
        inputs: The inputs that are paired, in order.
        chains: The chains of unary operations a branch may have, in order, innermost
            operation first.
        aggregations: The aggregations, in order.
    """

    name: str
    inputs: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]
    aggregations: tuple[str, ...]

    def __post_init__(self) -> None:
        for what, values, fewest in (
            ("inputs", self.inputs, 2),
            ("chains", self.chains, 1),
            ("aggregations", self.aggregations, 1),
        ):
            if len(values) < fewest or len(set(values)) != len(values):
                raise LmscoutError(
                    f"space {self.name}: {what} are {shown(', '.join(map(str, values)))}, "
                    f"expected {fewest} or more, each once"
                )
        for aggregation in self.aggregations:
            require_known("aggregation", aggregation, AGGREGATION)
        for name in self.inputs:
            require_known("input", name, INPUT)
        for name in {name for chain in self.chains for name in chain}:
            require_known("operation", name, UNARY_OPERATION)

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
        aggregations, pairs, left, right, binary = self.shape
        return aggregations * pairs * left * right * binary

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
        aggregation, pair, left, right, binary = np.unravel_index(int(index), self.shape)
        left_input, right_input = self.pairs[pair]
        operands = (
            Branch(left_input, self.chains[left]).expression(),
            Branch(right_input, self.chains[right]).expression(),
        )
        if (sign := _SIGNS[binary]) == "@":
            return Expression("sum", (Expression("*", operands),))
        return Expression(self.aggregations[aggregation], (Expression(sign, operands),))

    def index(self, proxy: Expression) -> int:
        """The index of a proxy: under `sum`, that of the product and not of the matrix product.

        Raises:
            LmscoutError: The space does not hold it (as written: operands are not swapped).
        """
        aggregations, pairs, chains = self._positions
        form = as_published(proxy)
        try:
            if form is None or not form.sign:
                raise KeyError
            left, right = form.branches
            aggregation, binary = aggregations.get(form.aggregation), _SIGNS.index(form.sign)
            if aggregation is None and (form.aggregation, form.sign) == ("sum", "*"):
                aggregation, binary = 0, _SIGNS.index("@")
            if aggregation is None:
                raise KeyError
            place = (
                aggregation,
                pairs[left.input, right.input],
                chains[left.chain],
                chains[right.chain],
                binary,
            )
        except KeyError:
            raise LmscoutError(
                f"space {self.name} does not hold {shown(format_expression(proxy))}: it pairs "
                f"different inputs in the order {', '.join(self.inputs)}, with "
                f"{len(self.chains)} chains a side and {', '.join(self.aggregations)}"
            ) from None
        return int(np.ravel_multi_index(place, self.shape))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Expression]:
        return (self.proxy(index) for index in range(self.size))

    @cached_property
    def _positions(
        self,
    ) -> tuple[dict[str, int], dict[tuple[str, str], int], dict[tuple[str, ...], int]]:
        return (
            {name: position for position, name in enumerate(self.aggregations)},
            {pair: position for position, pair in enumerate(self.pairs)},
            {chain: position for position, chain in enumerate(self.chains)},
        )


def published(aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """LPZero's published space: one operation a side, C(6, 2) x 20^2 x 4 = 24,000 a mean.

    Args:
        aggregations: Over blocks; the paper has the mean alone.
    """
    return Space("published", _inputs(), tuple((entry.name,) for entry in UNARY), aggregations)


def two_op(aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """Two operations a side: 15 x 400^2 x 4 = 9.6 million proxies an aggregation.

    LPZero's code (lpzero/structures/tree.py) searches this space; its paper counts
    `published`.  A chain's number is 20 x its inner operation + its outer one.

    Args:
        aggregations: Over blocks.
    """
    names = tuple(entry.name for entry in UNARY)
    return Space("two-op", _inputs(), tuple(product(names, names)), aggregations)


SPACES: Mapping[str, Callable[[tuple[str, ...]], Space]] = MappingProxyType(
    {"published": published, "two-op": two_op}
)


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


def _inputs() -> tuple[str, ...]:
    return tuple(entry.name for entry in INPUTS)


def evaluate(proxy: Expression, lookup: Lookup, blocks: ArrayLike) -> NDArray[np.float64]:
    """Score many architectures by a published proxy from collected block values, in float64.

    What is padding is told by the depths alone: values beyond an architecture's depth are
    never looked at, and a NaN within it makes the score NaN.

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


@dataclass(frozen=True)
class Grammar:
    """Which expressions of the deep space a search may hold.

    Attributes:
        spec_leaves: Leaves that read the configuration and not the model; may be empty.
        stacks: Whose tensors may be read.
        aggregates: Over blocks.
        largest: Words of an expression, at most.
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
        """Whether a score is of this grammar."""
        aggregates = {one.name for _, one in walk(expression) if one.word.aggregates}
        return (
            expression.type == SCORE
            and expression.size <= self.largest
            and expression.leaves <= self.leaves
            and aggregates <= set(self.aggregates)
        )


def every_score(grammar: Grammar) -> Iterator[Expression]:
    """Every score of a grammar, by size; of operands that commute, one order alone."""
    for size in range(1, grammar.largest + 1):
        yield from every_expression(grammar, SCORE, size)


def every_expression(grammar: Grammar, kind: str, size: int) -> Iterator[Expression]:
    """Every expression of a type and a size, in an order that never changes.

    Nothing is kept: of five words there are some ten thousand, of eight a hundred million.

    Args:
        grammar: What they are made of.
        kind: "score", "block" or a stack.
        size: Words, exactly.
    """
    if kind in STACKS:
        if size == 1:
            yield from (Expression(leaf) for leaf in STACKS[kind])
        yield from _on_one(TENSOR_UNARY, grammar, kind, size)
        yield from _on_two(TENSOR_JOINS, grammar, kind, size)
    elif kind == BLOCK:
        for stack in grammar.stacks:
            yield from _on_one(REDUCTIONS, grammar, stack, size)
        yield from _on_one(ELEMENTWISE, grammar, BLOCK, size)
        yield from _on_two(tuple(ARITHMETIC), grammar, BLOCK, size)
    else:
        if size == 1:
            yield from (Expression(leaf) for leaf in grammar.spec_leaves)
        yield from _on_one(grammar.aggregates, grammar, BLOCK, size)
        yield from _on_one(ELEMENTWISE, grammar, SCORE, size)
        yield from _on_two(tuple(ARITHMETIC), grammar, SCORE, size)


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
        grammar: What it may be made of.
        kind: "score", "block" or a stack.
        size: Words, at most; as many as the smallest of the type needs, at least.
        rng: The source of chance.
    """
    if kind in STACKS:
        return _random_tensor(kind, size, rng)
    if kind == BLOCK:
        return _random_block(grammar, size, rng)
    return _random_score(grammar, size, rng)


def any_of(names: tuple[str, ...] | list[str], rng: Random) -> str:
    """One of some names, each as likely."""
    return names[rng.integers(len(names))]


def _random_tensor(stack: str, size: int, rng: Random) -> Expression:
    if size >= 3 and rng.random() < _JOINS:
        left = int(rng.integers(1, size - 1))
        operands = (_random_tensor(stack, left, rng), _random_tensor(stack, size - 1 - left, rng))
        return Expression(any_of(TENSOR_JOINS, rng), operands)
    if size >= 2:
        return Expression(any_of(TENSOR_UNARY, rng), (_random_tensor(stack, size - 1, rng),))
    return Expression(any_of(STACKS[stack], rng))


def _random_block(grammar: Grammar, size: int, rng: Random) -> Expression:
    if size >= 5 and rng.random() < _JOINS:
        left = int(rng.integers(2, size - 2))
        operands = (
            _random_block(grammar, left, rng),
            _random_block(grammar, size - 1 - left, rng),
        )
        return Expression(any_of(tuple(ARITHMETIC), rng), operands)
    if size >= 3 and rng.random() > 1 - _BARE / 2:
        return Expression(any_of(ELEMENTWISE, rng), (_random_block(grammar, size - 1, rng),))
    tensor = _random_tensor(any_of(grammar.stacks, rng), size - 1, rng)
    return Expression(any_of(REDUCTIONS, rng), (tensor,))


def _random_score(grammar: Grammar, size: int, rng: Random) -> Expression:
    least = LEAST[SCORE]
    if size < least:
        if grammar.spec_leaves:
            return Expression(any_of(grammar.spec_leaves, rng))
        size = least
    if size >= 2 * least + 1 and rng.random() < _JOINS:
        left = int(rng.integers(least, size - least))
        operands = (
            _random_score(grammar, left, rng),
            _random_score(grammar, size - 1 - left, rng),
        )
        return Expression(any_of(tuple(ARITHMETIC), rng), operands)
    if grammar.spec_leaves and size >= 5 and rng.random() < _JOINS:
        leaf = Expression(any_of(grammar.spec_leaves, rng))
        operands = (_random_score(grammar, size - 2, rng), leaf)
        return Expression(any_of(tuple(ARITHMETIC), rng), operands)
    return Expression(any_of(grammar.aggregates, rng), (_random_block(grammar, size - 1, rng),))
