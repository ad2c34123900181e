"""Expressions of the proxy language: one frozen, typed tree that cannot be malformed.

An expression of the *published form* aggregates one block value, or two that a sign joins; each is
the average of a chain of unary operations on one input, as in
`mean(average(abs(act)) + average(std(head)))`.  Such expressions have a shorter notation, an index
in a space (`spaces`) and a fast evaluation from collected statistics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from lmscout.errors import LmscoutError, brief, did_you_mean
from lmscout.proxies.primitives import (
    COMMUTATIVE,
    INPUT,
    NUMBER,
    PRIMITIVES,
    STACKS,
    SYNONYMS,
    TENSOR,
    UNARY_OPERATION,
    Primitive,
    as_number,
    number_text,
)

LARGEST = 256
"""Most words of an expression."""

_REMEMBERED = 1 << 16  # canonical forms: most trees of a search share subtrees with earlier ones
_PUBLISHED_SIGNS = ("+", "-", "*")


@dataclass(frozen=True)
class Expression:
    """A primitive, by its name (of a number its shortest digits) and the types of its operands."""

    name: str
    operands: tuple[Expression, ...] = ()
    word: Primitive = field(init=False, repr=False, compare=False)
    type: str = field(init=False, repr=False, compare=False)  # "block", "score", or a stack
    size: int = field(init=False, repr=False, compare=False)  # number of words
    leaves: frozenset[str] = field(init=False, repr=False, compare=False)  # without numbers
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        number = None if self.name in BY_NAME else as_number(self.name)
        if number is not None:
            if math.isinf(number):
                raise LmscoutError(f"{self.name[:12]}... has {len(self.name)} digits: too large")
            object.__setattr__(self, "name", number_text(number))
        word, kind = _typed(self.name, tuple(one.type for one in self.operands))
        size = 1 + sum(one.size for one in self.operands)
        if size > LARGEST:
            raise LmscoutError(f"a proxy of {size} words is too large: at most {LARGEST}")
        if len(self.operands) == 1:
            leaves = self.operands[0].leaves
        else:
            own = {self.name} if number is None and not self.operands else set()
            leaves = frozenset(own).union(*(one.leaves for one in self.operands))
        hashed = hash((self.name, self.operands))
        vars(self).update(word=word, type=kind, size=size, leaves=leaves, _hash=hashed)

    def __hash__(self) -> int:
        return self._hash  # computed once: a tree is looked up more often than it is made

    def __reduce__(self) -> tuple[Any, ...]:
        return Expression, (self.name, self.operands)  # text hashes differently in every process


def walk(
    expression: Expression, path: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], Expression]]:
    """Every subtree with its path from the root, the root first."""
    waiting = [(path, expression)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        if node.operands:
            below = [((*path, place), operand) for place, operand in enumerate(node.operands)]
            waiting += reversed(below)


def replaced(expression: Expression, path: tuple[int, ...], subtree: Expression) -> Expression:
    """The expression with another subtree at a path; LmscoutError if its type does not fit."""
    if not path:
        return subtree
    operands = list(expression.operands)
    operands[path[0]] = replaced(operands[path[0]], path[1:], subtree)
    return Expression(expression.name, tuple(operands))


@lru_cache(_REMEMBERED)
def canonical(expression: Expression) -> Expression:
    """The expression with operands of commutative operations sorted, so that equals are equal."""
    operands = tuple(canonical(one) for one in expression.operands)
    if expression.name in COMMUTATIVE:
        operands = tuple(sorted(operands, key=repr))
    return _with_operands(expression, operands)


def simplified(expression: Expression) -> Expression:
    """The expression without `identity`, and with `mean` for `meansum`: the form of searches."""
    operands = tuple(simplified(one) for one in expression.operands)
    if expression.name in SYNONYMS:
        name = SYNONYMS[expression.name]
        return Expression(name, operands) if name else operands[0]
    return _with_operands(expression, operands)


def _with_operands(expression: Expression, operands: tuple[Expression, ...]) -> Expression:
    same = all(one is other for one, other in zip(operands, expression.operands, strict=True))
    return expression if same else Expression(expression.name, operands)


@dataclass(frozen=True)
class Branch:
    """A block value of the published form."""

    input: str  # one of the six
    chain: tuple[str, ...]  # names of unary operations, innermost first; at least one

    def expression(self) -> Expression:
        """The average of the chain on the input."""
        tensor = Expression(self.input)
        for name in self.chain:
            tensor = Expression(name, (tensor,))
        return Expression("average", (tensor,))


@dataclass(frozen=True)
class Published:
    """The parts of an expression of the published form."""

    aggregation: str  # over blocks
    sign: str  # "+", "-" or "*" between two branches, "" for one branch
    branches: tuple[Branch, ...]  # left to right


def as_published(expression: Expression) -> Published | None:
    """The parts of an expression of the published form; None if it is of another form."""
    if not expression.word.aggregates:
        return None
    (body,) = expression.operands
    sign = body.name if body.name in _PUBLISHED_SIGNS else ""
    found = [_branch(one) for one in (body.operands if sign else (body,))]
    branches = tuple(one for one in found if one is not None)
    return Published(expression.name, sign, branches) if len(branches) == len(found) else None


def _branch(expression: Expression) -> Branch | None:
    if expression.name != "average":
        return None
    chain: list[str] = []
    (node,) = expression.operands
    while node.name in UNARY_OPERATION and node.operands:
        chain.append(node.name)
        (node,) = node.operands
    if not chain or node.operands or node.name not in INPUT:
        return None
    return Branch(node.name, tuple(reversed(chain)))


BY_NAME: dict[str, tuple[Primitive, ...]] = {
    name: tuple(word for word in PRIMITIVES if word.name == name)
    for name in dict.fromkeys(word.name for word in PRIMITIVES)
}


@cache
def _typed(name: str, types: tuple[str, ...]) -> tuple[Primitive, str]:
    """The primitive of a name on operands of these types, and the type of its value."""
    if as_number(name) is not None:
        if types:
            raise LmscoutError(f"{name} is a number and takes nothing, not ({', '.join(types)})")
        return NUMBER, NUMBER.gives
    if name not in BY_NAME:
        raise LmscoutError(f"unknown word {brief(name)}{did_you_mean(name, BY_NAME)}")
    general = tuple(TENSOR if one in STACKS else one for one in types)
    for word in BY_NAME[name]:
        if word.takes == general and len({one for one in types if one in STACKS}) <= 1:
            return word, types[0] if word.gives == TENSOR else word.gives
    wanted = " or ".join(
        f"({', '.join(word.takes)})" if word.takes else "nothing" for word in BY_NAME[name]
    )
    raise LmscoutError(
        f"{name} takes {wanted}, not ({', '.join(types)})"
        + ("; tensors that are joined are of one stack" if TENSOR in general else "")
    )
