"""Genetic operators on expressions: mutation, crossover, join.

Each returns an expression of the grammar: the first of some draws that differs from the parent, or
the parent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import Expression, replaced, walk
from lmscout.proxies.primitives import ARITHMETIC, SCORE, SEARCHED, TENSOR
from lmscout.proxies.spaces import LEAST, Grammar, Random, any_of, random_expression

_TRIES = 20  # draws of a change; one that does not fit is drawn again

P = ParamSpec("P")


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
    path, old = _any_place(parent, rng)
    words = [
        word.name
        for word in SEARCHED
        if len(word.takes) == len(old.operands) and word.name != old.name
    ]
    if not old.operands:
        words = [word for word in words if word in grammar.leaves]
    return replaced(parent, path, Expression(any_of(words, rng), old.operands))


@_operator
def subtree_mutation(parent: Expression, grammar: Grammar, rng: Random) -> Expression:
    """A subtree replaced by a random one of its type."""
    path, old = _any_place(parent, rng)
    room = grammar.largest - parent.size + old.size
    least = LEAST.get(old.type, LEAST[TENSOR])
    size = int(rng.integers(least, max(least, min(room, old.size + 4)) + 1))
    return replaced(parent, path, random_expression(grammar, old.type, size, rng))


@_operator
def hoist_mutation(parent: Expression, grammar: Grammar, rng: Random) -> Expression:
    """A subtree replaced by one of its own subtrees of the same type: a shorter expression."""
    path, old = _any_place(parent, rng)
    inner = [one for below, one in walk(old) if below and one.type == old.type]
    return replaced(parent, path, inner[rng.integers(len(inner))]) if inner else parent


@_operator
def crossover(parent: Expression, other: Expression, grammar: Grammar, rng: Random) -> Expression:
    """A subtree replaced by one of another expression, of the same type."""
    path, old = _any_place(parent, rng)
    donors = [one for _, one in walk(other) if one.type == old.type]
    return replaced(parent, path, donors[rng.integers(len(donors))]) if donors else parent


@_operator
def join(parent: Expression, other: Expression, grammar: Grammar, rng: Random) -> Expression:
    """A score joined with one of another expression, by a sign."""
    room = grammar.largest - parent.size - 1
    donors = [one for _, one in walk(other) if one.type == SCORE and one.size <= room]
    if not donors:
        return parent
    pair = [parent, donors[rng.integers(len(donors))]]
    rng.shuffle(pair)
    return Expression(any_of(tuple(ARITHMETIC), rng), tuple(pair))


def _any_place(expression: Expression, rng: Random) -> tuple[tuple[int, ...], Expression]:
    every = list(walk(expression))
    return every[rng.integers(len(every))]
