"""Random trees of the deep language, and random changes of them.

Everything draws from a generator that is handed in, so that a seed gives the same trees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lmscout.errors import LmscoutError
from lmscout.proxies.deep.nodes import Node, replaced, walk
from lmscout.proxies.deep.words import (
    AGGREGATES,
    ARITHMETIC,
    BLOCK,
    COMMUTATIVE,
    ELEMENTWISE,
    REDUCTIONS,
    SCORE,
    SPEC_LEAVES,
    STACKS,
    TENSOR,
    TENSOR_JOINS,
    TENSOR_UNARY,
    WORDS,
)

Random = np.random.Generator

_TRIES = 20  # draws of a change before it is given up: what does not fit is drawn again
_LEAST = {TENSOR: 1, BLOCK: 2, SCORE: 3}  # words of the smallest tree of a type
_JOINS = 0.35  # how often a tree branches where it could
_BARE = 0.3  # how often a block value or a score is not worked on any further


@dataclass(frozen=True)
class Grammar:
    """Which trees may grow.

    Attributes:
        spec_leaves: leaves that read the configuration and not the model; may be empty.
        stacks: whose tensors may be read.
        aggregates: over blocks.
        largest: words of a tree, at most.
    """

    spec_leaves: tuple[str, ...] = SPEC_LEAVES
    stacks: tuple[str, ...] = tuple(STACKS)
    aggregates: tuple[str, ...] = AGGREGATES
    largest: int = 20

    @cached_property
    def leaves(self) -> frozenset[str]:
        """Every leaf that may be used."""
        return frozenset({*self.spec_leaves, *(one for s in self.stacks for one in STACKS[s])})

    def holds(self, node: Node) -> bool:
        """Whether a score is of this grammar."""
        aggregates = {one.name for _, one in walk(node) if one.word.aggregates}
        return (
            node.type == SCORE
            and node.size <= self.largest
            and node.leaves <= self.leaves
            and aggregates <= set(self.aggregates)
        )


def grow(grammar: Grammar, kind: str, size: int, rng: Random) -> Node:
    """A random tree of a type.

    Args:
        grammar: what it may be made of.
        kind: "score", "block" or a stack.
        size: words, at most; as many as the smallest tree of the type needs, at least.
        rng: the source of chance.
    """
    if kind in STACKS:
        return _tensor(kind, size, rng)
    if kind == BLOCK:
        return _block(grammar, size, rng)
    return _score(grammar, size, rng)


def seedling(grammar: Grammar, rng: Random) -> Node:
    """A random score of random size."""
    return grow(grammar, SCORE, int(rng.integers(4, grammar.largest + 1)), rng)


def mutate_point(node: Node, grammar: Grammar, rng: Random) -> Node:
    """One word exchanged for another of the same type."""

    def change() -> Node:
        path, old = _pick(node, rng)
        words = [
            word.name
            for word in WORDS
            if len(word.takes) == len(old.operands) and word.name != old.name
        ]
        if not old.operands:
            words = [word for word in words if word in grammar.leaves]
        return replaced(node, path, Node(_any(words, rng), old.operands))

    return _tried(change, node, grammar)


def mutate_subtree(node: Node, grammar: Grammar, rng: Random) -> Node:
    """A subtree replaced by a random one of its type."""

    def change() -> Node:
        path, old = _pick(node, rng)
        room = grammar.largest - node.size + old.size
        least = _LEAST.get(old.type, _LEAST[TENSOR])
        size = int(rng.integers(least, max(least, min(room, old.size + 4)) + 1))
        return replaced(node, path, grow(grammar, old.type, size, rng))

    return _tried(change, node, grammar)


def hoist(node: Node, grammar: Grammar, rng: Random) -> Node:
    """A subtree replaced by one of its own subtrees of the same type: a shorter tree."""

    def change() -> Node:
        path, old = _pick(node, rng)
        inner = [one for below, one in walk(old) if below and one.type == old.type]
        return replaced(node, path, inner[rng.integers(len(inner))]) if inner else node

    return _tried(change, node, grammar)


def cross(node: Node, other: Node, grammar: Grammar, rng: Random) -> Node:
    """A subtree replaced by one of another tree, of the same type."""

    def change() -> Node:
        path, old = _pick(node, rng)
        donors = [one for _, one in walk(other) if one.type == old.type]
        return replaced(node, path, donors[rng.integers(len(donors))]) if donors else node

    return _tried(change, node, grammar)


def join(node: Node, other: Node, grammar: Grammar, rng: Random) -> Node:
    """A score put together with one of another tree: what two formulas know, in one."""

    def change() -> Node:
        room = grammar.largest - node.size - 1
        donors = [one for _, one in walk(other) if one.type == SCORE and one.size <= room]
        if not donors:
            return node
        pair = [node, donors[rng.integers(len(donors))]]
        rng.shuffle(pair)
        return Node(_any(tuple(ARITHMETIC), rng), tuple(pair))

    return _tried(change, node, grammar)


def canonical(node: Node) -> Node:
    """The same with the operands of what commutes in one order, so that equals are equal."""
    operands = tuple(canonical(one) for one in node.operands)
    if node.name in COMMUTATIVE:
        operands = tuple(sorted(operands, key=repr))
    same = all(one is other for one, other in zip(operands, node.operands, strict=True))
    return node if same else Node(node.name, operands)


def _tensor(stack: str, size: int, rng: Random) -> Node:
    if size >= 3 and rng.random() < _JOINS:
        left = int(rng.integers(1, size - 1))
        operands = (_tensor(stack, left, rng), _tensor(stack, size - 1 - left, rng))
        return Node(_any(TENSOR_JOINS, rng), operands)
    if size >= 2:
        return Node(_any(TENSOR_UNARY, rng), (_tensor(stack, size - 1, rng),))
    return Node(_any(STACKS[stack], rng))


def _block(grammar: Grammar, size: int, rng: Random) -> Node:
    if size >= 5 and rng.random() < _JOINS:
        left = int(rng.integers(2, size - 2))
        operands = (_block(grammar, left, rng), _block(grammar, size - 1 - left, rng))
        return Node(_any(tuple(ARITHMETIC), rng), operands)
    if size >= 3 and rng.random() > 1 - _BARE / 2:
        return Node(_any(ELEMENTWISE, rng), (_block(grammar, size - 1, rng),))
    tensor = _tensor(_any(grammar.stacks, rng), size - 1, rng)
    return Node(_any(REDUCTIONS, rng), (tensor,))


def _score(grammar: Grammar, size: int, rng: Random) -> Node:
    if size < _LEAST[SCORE]:
        if grammar.spec_leaves:
            return Node(_any(grammar.spec_leaves, rng))
        size = _LEAST[SCORE]
    if size >= 2 * _LEAST[SCORE] + 1 and rng.random() < _JOINS:
        left = int(rng.integers(_LEAST[SCORE], size - _LEAST[SCORE]))
        operands = (_score(grammar, left, rng), _score(grammar, size - 1 - left, rng))
        return Node(_any(tuple(ARITHMETIC), rng), operands)
    if grammar.spec_leaves and size >= 5 and rng.random() < _JOINS:
        spec = Node(_any(grammar.spec_leaves, rng))
        operands = (_score(grammar, size - 2, rng), spec)
        return Node(_any(tuple(ARITHMETIC), rng), operands)
    return Node(_any(grammar.aggregates, rng), (_block(grammar, size - 1, rng),))


def _pick(node: Node, rng: Random) -> tuple[tuple[int, ...], Node]:
    every = list(walk(node))
    return every[rng.integers(len(every))]


def _any(names: tuple[str, ...] | list[str], rng: Random) -> str:
    return names[rng.integers(len(names))]


def _tried(change: Callable[[], Node], node: Node, grammar: Grammar) -> Node:
    """The first of some changes that is another tree of the grammar, or the tree itself."""
    for _ in range(_TRIES):
        try:
            changed = change()
        except LmscoutError:  # the word does not take operands of these types
            continue
        if changed != node and grammar.holds(changed):
            return changed
    return node
