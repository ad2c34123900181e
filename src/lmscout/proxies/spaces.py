"""Spaces of proxies: the published ones by index; the deep one by size, at random, by operators.

The published spaces hold every proxy that joins two branches.  A grammar bounds the deep space, of
which only short expressions can be listed.  Random draws use the given generator, so that a seed
gives the same expressions.  A genetic operator returns an expression of the grammar: the first of
some draws that differs from the parent, or the parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, wraps
from itertools import combinations, product
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmscout.errors import LmscoutError, brief, require_known
from lmscout.proxies.expression import Branch, Expression, as_published, replaced, walk
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
    SEARCHED,
    SPEC_LEAVES,
    STACKS,
    TENSOR,
    TENSOR_JOINS,
    TENSOR_UNARY,
    UNARY_OPERATION,
)

Lookup = Callable[[str, tuple[str, ...]], ArrayLike]
"""(input, chain) to block values [n_architectures, max_blocks]."""

_SIGNS = tuple(one.symbol for one in BINARY)
APPLY: Mapping[str, np.ufunc] = {"+": np.add, "-": np.subtract, "*": np.multiply}

Random = np.random.Generator
P = ParamSpec("P")
T = TypeVar("T")
LEAST: Mapping[str, int] = {TENSOR: 1, BLOCK: 2, SCORE: 3}
"""Words of the smallest expression of a type that reads a tensor."""

_JOINS = 0.35  # chance that a random expression joins two where it can
_BARE = 0.3  # chance that a block value gets no further operation
_TRIES = 20  # draws of a change; one that does not fit is drawn again
_ARITHMETIC = tuple(ARITHMETIC)
_WORDS = [[word.name for word in SEARCHED if len(word.takes) == n] for n in range(3)]


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


@dataclass(frozen=True)
class Grammar:
    """Bounds of the deep space."""

    spec_leaves: tuple[str, ...] = SPEC_LEAVES  # that read the configuration; may be empty
    stacks: tuple[str, ...] = tuple(STACKS)  # whose tensors may be read
    aggregates: tuple[str, ...] = AGGREGATES  # over blocks
    largest: int = 20  # words of an expression

    @cached_property
    def leaves(self) -> frozenset[str]:
        """Every leaf that may be used."""
        return frozenset({*self.spec_leaves, *(one for s in self.stacks for one in STACKS[s])})

    def holds(self, expression: Expression) -> bool:
        """Whether an expression is a score of this grammar."""
        return (
            expression.type == SCORE
            and expression.size <= self.largest
            and expression.leaves <= self.leaves
            and (
                self.aggregates == AGGREGATES
                or all(
                    one.name in self.aggregates
                    for _, one in walk(expression)
                    if one.word.aggregates
                )
            )
        )


def every_score(grammar: Grammar) -> Iterator[Expression]:
    """Every score of a grammar, by size; of commutative operands, one order."""
    for size in range(1, grammar.largest + 1):
        yield from every_expression(grammar, SCORE, size)


def every_expression(grammar: Grammar, kind: str, size: int) -> Iterator[Expression]:
    """Every expression of a type ("score", "block" or a stack) and a size, in a fixed order.

    Nothing is stored: of five words there are some ten thousand, of eight a hundred million.
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
            ordered = operands[0] <= operands[1]
            yield from (
                Expression(word, operands) for word in words if ordered or word not in COMMUTATIVE
            )


def random_score(grammar: Grammar, rng: Random) -> Expression:
    """A random score of random size."""
    return random_expression(grammar, SCORE, int(rng.integers(4, grammar.largest + 1)), rng)


def random_expression(grammar: Grammar, kind: str, size: int, rng: Random) -> Expression:
    """A random expression of a type ("score", "block" or a stack) and at most so many words."""
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


def any_of(some: Sequence[T], rng: Random) -> T:
    """One of some names or places, each with the same probability."""
    return some[int(rng.integers(len(some)))]


def _operator(draw: Callable[P, Expression]) -> Callable[P, Expression]:
    """Repeat the draw until it differs from the parent and fits the grammar."""

    @wraps(draw)
    def apply(*args: P.args, **kwargs: P.kwargs) -> Expression:
        given: Any = args
        parent: Expression = given[0]
        grammar: Grammar = given[-2]
        for _ in range(_TRIES):
            try:
                child = draw(*args, **kwargs)
            except LmscoutError:  # the word does not take operands of these types
                continue
            if child != parent and grammar.holds(child):
                return child
        return parent

    return apply


@_operator
def point_mutation(parent: Expression, grammar: Grammar, rng: Random) -> Expression:
    """One word exchanged for another of the same type."""
    number = int(rng.integers(parent.size))
    _, old = walk(parent)[number]
    words = _others(old.name, len(old.operands), grammar.leaves)
    return _with_word(parent, number, any_of(words, rng))


@lru_cache(1 << 14)
def _with_word(parent: Expression, number: int, name: str) -> Expression:
    path, old = walk(parent)[number]
    try:
        return replaced(parent, path, Expression(name, old.operands))
    except LmscoutError:  # the word does not take operands of these types
        return parent


@cache
def _others(name: str, operands: int, leaves: frozenset[str]) -> list[str]:
    return [one for one in _WORDS[operands] if one != name and (operands or one in leaves)]


@_operator
def subtree_mutation(parent: Expression, grammar: Grammar, rng: Random) -> Expression:
    """A subtree replaced by a random one of its type."""
    path, old = any_of(walk(parent), rng)
    room = grammar.largest - parent.size + old.size
    least = LEAST.get(old.type, LEAST[TENSOR])
    size = int(rng.integers(least, max(least, min(room, old.size + 4)) + 1))
    return replaced(parent, path, random_expression(grammar, old.type, size, rng))


@_operator
def hoist_mutation(parent: Expression, grammar: Grammar, rng: Random) -> Expression:
    """A subtree replaced by one of its own subtrees of the same type: a shorter expression."""
    path, old = any_of(walk(parent), rng)
    inner = _of_type(old, old.type)[1:]
    return replaced(parent, path, any_of(inner, rng)) if inner else parent


@_operator
def crossover(parent: Expression, other: Expression, grammar: Grammar, rng: Random) -> Expression:
    """A subtree replaced by one of another expression, of the same type."""
    path, old = any_of(walk(parent), rng)
    donors = _of_type(other, old.type)
    return replaced(parent, path, any_of(donors, rng)) if donors else parent


@lru_cache(1 << 12)
def _of_type(expression: Expression, kind: str) -> list[Expression]:
    return [one for _, one in walk(expression) if one.type == kind]


@_operator
def join(parent: Expression, other: Expression, grammar: Grammar, rng: Random) -> Expression:
    """A score joined with one of another expression, by a sign."""
    room = grammar.largest - parent.size - 1
    donors = [one for one in _of_type(other, SCORE) if one.size <= room]
    if not donors:
        return parent
    pair = [parent, any_of(donors, rng)]
    rng.shuffle(pair)
    return Expression(any_of(_ARITHMETIC, rng), tuple(pair))
