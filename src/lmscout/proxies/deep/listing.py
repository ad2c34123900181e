"""Every tree of a grammar, shortest first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from lmscout.proxies.deep.growing import Grammar
from lmscout.proxies.deep.nodes import Node
from lmscout.proxies.deep.words import (
    ARITHMETIC,
    BLOCK,
    COMMUTATIVE,
    ELEMENTWISE,
    REDUCTIONS,
    SCORE,
    STACKS,
    TENSOR_JOINS,
    TENSOR_UNARY,
)


def every_score(grammar: Grammar) -> Iterator[Node]:
    """Every score of a grammar, by size; of operands that commute, one order alone."""
    for size in range(1, grammar.largest + 1):
        yield from trees(grammar, SCORE, size)


def trees(grammar: Grammar, kind: str, size: int) -> Iterator[Node]:
    """Every tree of a type and a size, in an order that never changes.

    Nothing is kept: of five words there are some ten thousand, of eight a hundred million.

    Args:
        grammar: what they are made of.
        kind: "score", "block" or a stack.
        size: words, exactly.
    """
    if kind in STACKS:
        if size == 1:
            yield from (Node(leaf) for leaf in STACKS[kind])
        yield from _on_one(TENSOR_UNARY, grammar, kind, size)
        yield from _on_two(TENSOR_JOINS, grammar, kind, size)
    elif kind == BLOCK:
        for stack in grammar.stacks:
            yield from _on_one(REDUCTIONS, grammar, stack, size)
        yield from _on_one(ELEMENTWISE, grammar, BLOCK, size)
        yield from _on_two(tuple(ARITHMETIC), grammar, BLOCK, size)
    else:
        if size == 1:
            yield from (Node(leaf) for leaf in grammar.spec_leaves)
        yield from _on_one(grammar.aggregates, grammar, BLOCK, size)
        yield from _on_one(ELEMENTWISE, grammar, SCORE, size)
        yield from _on_two(tuple(ARITHMETIC), grammar, SCORE, size)


def _on_one(words: tuple[str, ...], grammar: Grammar, kind: str, size: int) -> Iterator[Node]:
    if size > 1:
        for operand in trees(grammar, kind, size - 1):
            yield from (Node(word, (operand,)) for word in words)


def _on_two(words: tuple[str, ...], grammar: Grammar, kind: str, size: int) -> Iterator[Node]:
    for left in range(1, size - 1):
        for operands in product(trees(grammar, kind, left), trees(grammar, kind, size - 1 - left)):
            ordered = repr(operands[0]) <= repr(operands[1])
            yield from (
                Node(word, operands) for word in words if ordered or word not in COMMUTATIVE
            )
