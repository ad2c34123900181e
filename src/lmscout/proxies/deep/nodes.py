"""Trees of the deep language: frozen, typed, and impossible to build wrongly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lmscout.errors import LmscoutError
from lmscout.proxies.deep.words import (
    NUMBER,
    STACKS,
    TENSOR,
    WORDS,
    Word,
    as_number,
    number_text,
)
from lmscout.proxies.spelling import did_you_mean, shown

LARGEST = 256
"""The most nodes of a tree; more is a slip rather than a proxy."""


@dataclass(frozen=True)
class Node:
    """A word with its operands.

    Attributes:
        name: the word; of a number the shortest digits, however it was given.
        operands: trees that it takes.
        word: its entry in the table, found by the name and the operands' types.
        type: "block", "score", or the stack of its tensors.
        size: number of nodes.
        leaves: names of the leaves under it, of what is read; numbers are not among them.
    """

    name: str
    operands: tuple[Node, ...] = ()
    word: Word = field(init=False, repr=False, compare=False)
    type: str = field(init=False, repr=False, compare=False)
    size: int = field(init=False, repr=False, compare=False)
    leaves: frozenset[str] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (number := as_number(self.name)) is not None:
            if math.isinf(number):
                raise LmscoutError(f"{self.name[:12]}... has {len(self.name)} digits: too large")
            object.__setattr__(self, "name", number_text(number))
        word, kind = _typed(self.name, tuple(one.type for one in self.operands))
        size = 1 + sum(one.size for one in self.operands)
        if size > LARGEST:
            raise LmscoutError(f"a proxy of {size} words is too large: at most {LARGEST}")
        below = (one.leaves for one in self.operands)
        read = {self.name} if number is None else set()
        leaves = frozenset().union(*below) if self.operands else frozenset(read)
        for name, value in (
            ("word", word),
            ("type", kind),
            ("size", size),
            ("leaves", leaves),
            ("_hash", hash((self.name, self.operands))),
        ):
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return self._hash  # kept: a tree is looked up more often than it is made

    def __reduce__(self) -> tuple[Any, ...]:
        return Node, (self.name, self.operands)  # another process hashes text in another way


def walk(node: Node, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Node]]:
    """Every subtree with its path from the root, the root first."""
    waiting = [(path, node)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        below = [((*path, place), operand) for place, operand in enumerate(node.operands)]
        waiting += reversed(below)


def replaced(node: Node, path: tuple[int, ...], subtree: Node) -> Node:
    """The tree with another subtree at a path.

    Raises:
        LmscoutError: the subtree's type does not fit there.
    """
    if not path:
        return subtree
    operands = list(node.operands)
    operands[path[0]] = replaced(operands[path[0]], path[1:], subtree)
    return Node(node.name, tuple(operands))


_BY_NAME: dict[str, tuple[Word, ...]] = {
    name: tuple(word for word in WORDS if word.name == name)
    for name in dict.fromkeys(word.name for word in WORDS)
}


@cache
def _typed(name: str, types: tuple[str, ...]) -> tuple[Word, str]:
    """The word of this name that takes operands of these types, and the type that it gives."""
    if as_number(name) is not None:
        if types:
            raise LmscoutError(f"{name} is a number and takes nothing, not ({', '.join(types)})")
        return NUMBER, NUMBER.gives
    if name not in _BY_NAME:
        raise LmscoutError(f"unknown word {shown(name)}{did_you_mean(name, _BY_NAME)}")
    general = tuple(TENSOR if one in STACKS else one for one in types)
    for word in _BY_NAME[name]:
        if word.takes == general and len({one for one in types if one in STACKS}) <= 1:
            return word, types[0] if word.gives == TENSOR else word.gives
    wanted = " or ".join(
        f"({', '.join(word.takes)})" if word.takes else "nothing" for word in _BY_NAME[name]
    )
    raise LmscoutError(
        f"{name} takes {wanted}, not ({', '.join(types)})"
        + ("; tensors that are joined are of one stack" if TENSOR in general else "")
    )
