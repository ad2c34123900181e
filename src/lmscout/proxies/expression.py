"""Expressions of the proxy language: one frozen, typed tree, and its text in both notations.

An expression of the *published form* aggregates one block value, or two that a sign joins; each is
the average of a chain of unary operations on one input, as in
`mean(average(abs(act)) + average(std(head)))`.  Such expressions have a shorter notation, an index
in a space (`spaces`) and a fast evaluation from collected statistics.  The text is

    expression := term { ("+" | "-") term }
    term       := operand { ("*" | "/" | "@") operand }
    operand    := NUMBER | LEAF | "(" expression ")"
                | WORD "(" expression [ "," expression ] ")"

Types decide what a word means where it has several meanings.  Where a block value is expected and
a tensor is given, its average is taken: `sum(abs(head) - sqrt(weight))` is
`sum(average(abs(head)) - average(sqrt(weight)))`.  `left @ right` is the inner product of two
block values over blocks, `sum(left * right)`; an aggregation around it has no effect.  White
space is free, signs bind as in arithmetic and from left to right, and nothing is evaluated.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple, NoReturn

from lmscout.errors import LmscoutError, brief, did_you_mean, nearest
from lmscout.proxies.primitives import (
    AGGREGATES,
    ARITHMETIC,
    BLOCK,
    COMMUTATIVE,
    INPUT,
    LEAF,
    NUMBER,
    PRIMITIVES,
    SCORE,
    STACKS,
    SYNONYMS,
    TENSOR,
    UNARY,
    UNARY_OPERATION,
    Primitive,
    as_number,
    number_text,
)

LARGEST = 256
"""Most words of an expression."""

_REMEMBERED = 1 << 13  # canonical forms: most trees of a search share subtrees with earlier ones
_PUBLISHED_SIGNS = ("+", "-", "*")

BY_NAME: dict[str, tuple[Primitive, ...]] = {
    name: tuple(word for word in PRIMITIVES if word.name == name)
    for name in dict.fromkeys(word.name for word in PRIMITIVES)
}
LONGEST = 100_000
"""Characters of an expression."""

_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<word>[A-Za-z_][A-Za-z0-9_]*|[0-9]+(?:\.[0-9]+)?)|(?P<sign>[()+\-*/@,])"
)
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "@": 2}
_PRODUCT = "inner product"  # a meaning besides the three types: a score summed over blocks
_OPERATIONS = frozenset(one.name for one in PRIMITIVES if one.takes)
# LPZero's names and lmscout's own -> name here.
_SPELLINGS = {one.upstream: one.name for one in UNARY} | {one.name: one.name for one in PRIMITIVES}


@dataclass(frozen=True, order=True, slots=True)
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
        found = (word, kind, size, leaves, hashed)
        for name, value in zip(("word", "type", "size", "leaves", "_hash"), found, strict=True):
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return self._hash  # computed once: a tree is looked up more often than it is made

    def __reduce__(self) -> tuple[Any, ...]:
        return Expression, (self.name, self.operands)  # text hashes differently in every process


@lru_cache(1 << 12)
def walk(expression: Expression) -> tuple[tuple[tuple[int, ...], Expression], ...]:
    """Every subtree with its path from the root, the root first."""
    below = (
        ((place, *path), one)
        for place, operand in enumerate(expression.operands)
        for path, one in walk(operand)
    )
    return (((), expression), *below)


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
        operands = tuple(sorted(operands))
    return _with_operands(expression, operands)


@lru_cache(_REMEMBERED)
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


Meanings = dict[str, Expression]
"""Possible meanings of a part of a text: type to expression."""


class _Token(NamedTuple):
    text: str
    column: int
    kind: str  # "word", "sign" or "end"

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else brief(self.text)


def parse(text: str) -> Expression:
    """Parse a proxy in either notation.

    LmscoutError if the text is malformed or gives no score; the line names the column (from 1), the
    token found there and the expected ones.
    """
    require_short(text)
    return _Parser(text).proxy()


def require_short(text: str) -> None:
    """Raise LmscoutError if a text is longer than any proxy's."""
    if len(text) > LONGEST:
        raise LmscoutError(
            f"proxy {brief(text)}: is too long (got {len(text):,} characters, expected at most "
            f"{LONGEST:,})"
        )


def format_expression(expression: Expression) -> str:
    """The text of an expression, from which `parse` makes the same score.

    The published form has its shorter notation, without `average`.
    """
    published = as_published(expression)
    if published is None:
        return _formatted(expression, 0)
    body = f" {published.sign} ".join(map(format_branch, published.branches))
    return f"{published.aggregation}({body})"


def require_score(expression: Expression) -> None:
    """Raise LmscoutError if an expression gives a tensor or a block value."""
    if expression.type != SCORE:
        raise LmscoutError(
            f"{format_expression(expression)} gives no score: aggregate it over the blocks"
        )


def format_branch(branch: Branch) -> str:
    """The text of a block value in the shorter notation: its operations on the input."""
    text = branch.input
    for name in branch.chain:
        text = f"{name}({text})"
    return text


def _formatted(expression: Expression, binding: int) -> str:
    if expression.name in ARITHMETIC:
        own = _BINDING[expression.name]
        left, right = expression.operands
        text = f"{_formatted(left, own)} {expression.name} {_formatted(right, own + 1)}"
        return f"({text})" if own < binding else text
    if not expression.operands:
        return expression.name
    return f"{expression.name}({', '.join(_formatted(one, 0) for one in expression.operands)})"


class _Parser:
    """A position in the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._tokenized()
        self._at = 0
        self._depth = 0

    def proxy(self) -> Expression:
        """The whole text."""
        meanings = self._joined(0)
        if self._token.kind != "end":
            self._fail(self._token, "the end or a sign")
        if SCORE not in meanings:
            kind = "a block value" if TENSOR not in meanings else "a tensor"
            raise LmscoutError(
                f"proxy {brief(self._text)}, column 1: found {kind}, expected a score: aggregate "
                f"it over the blocks, as in sum(...)"
            )
        return meanings[SCORE]

    def _joined(self, binding: int) -> Meanings:
        """Operands joined by signs of higher precedence than the given one."""
        left = self._operand()
        while _BINDING.get(self._token.text, 0) > binding:
            sign = self._take()
            left = self._applied(sign, (left, self._joined(_BINDING[sign.text])))
        return left

    def _operand(self) -> Meanings:
        self._depth += 1
        if self._depth > LARGEST:
            self._fail(self._token, f"no more than {LARGEST} words within each other")
        token = self._take()
        if token.text == "(":
            meanings = self._joined(0)
            self._closing("'('")
        elif token.kind != "word":
            self._fail(token, "a word, a number or '('")
        elif self._token.text == "(":
            self._take()
            operands = [self._joined(0)]
            if self._token.text == ",":
                self._take()
                operands.append(self._joined(0))
            self._closing(token.text)
            meanings = self._applied(token, tuple(operands))
        else:
            meanings = self._leaf(token)
        self._depth -= 1
        return meanings

    def _leaf(self, token: _Token) -> Meanings:
        if token.text in _OPERATIONS and token.text not in LEAF:
            self._fail(self._token, f"'(' after {token.text}")
        if token.text not in LEAF and as_number(token.text) is None:
            self._fail_unknown(token, f"a leaf ({', '.join(LEAF)})")
        return self._applied(token, ())

    def _applied(self, token: _Token, operands: tuple[Meanings, ...]) -> Meanings:
        """Every meaning of a word with its operands."""
        name = token.text
        if operands and name not in _OPERATIONS and name != "@" and as_number(name) is None:
            self._fail_unknown(token, "an operation", name in LEAF)
        try:
            return self._meanings(name, operands)
        except LmscoutError as error:
            raise LmscoutError(
                f"proxy {brief(self._text)}, column {token.column}: {error}"
            ) from None

    def _meanings(self, name: str, operands: tuple[Meanings, ...]) -> Meanings:
        if name == "@":
            if not all(BLOCK in one for one in operands):
                raise LmscoutError("@ takes (block, block)")
            product = Expression("*", tuple(one[BLOCK] for one in operands))
            score = Expression("sum", (product,))
            return {SCORE: score, _PRODUCT: score}
        if name in AGGREGATES and len(operands) == 1 and _PRODUCT in operands[0]:
            return {SCORE: operands[0][_PRODUCT]}
        meanings: Meanings = {}
        for word in BY_NAME.get(name, (NUMBER,)):
            gives = word.gives if word.gives in (BLOCK, SCORE) else TENSOR
            taken = [
                one[kind] for kind, one in zip(word.takes, operands, strict=False) if kind in one
            ]
            if gives in meanings or not len(word.takes) == len(operands) == len(taken):
                continue
            meanings[gives] = Expression(name, tuple(taken))
            if gives == TENSOR:
                meanings[BLOCK] = Expression("average", (meanings[TENSOR],))
        if not meanings:  # raises
            Expression(name, tuple(next(iter(one.values())) for one in operands))
        return meanings

    def _closing(self, opened: str) -> None:
        if self._token.text != ")":
            self._fail(self._token, f"')' to close {opened}, or a sign")
        self._take()

    @property
    def _token(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._token
        if token.kind != "end":
            self._at += 1
        return token

    def _tokenized(self) -> tuple[_Token, ...]:
        tokens = []
        at = 0
        while at < len(self._text):
            match = _TOKEN.match(self._text, at)
            if match is None:
                self._fail(
                    _Token(self._text[at], at + 1, "sign"),
                    "a word, a number or one of ( ) + - * / @ ,",
                )
            kind = match.lastgroup or ""
            if kind != "space":
                tokens.append(_Token(match.group(), at + 1, kind))
            at = match.end()
        return (*tokens, _Token("", len(self._text) + 1, "end"))

    def _fail_unknown(self, token: _Token, expected: str, is_leaf: bool = False) -> NoReturn:
        guess = None if is_leaf else nearest(token.text, _SPELLINGS)
        tail = f"; did you mean {_SPELLINGS[guess]!r}?" if guess else ""
        self._fail(token, expected + tail, ", which takes nothing" if is_leaf else "")

    def _fail(self, token: _Token, expected: str, remark: str = "") -> NoReturn:
        raise LmscoutError(
            f"proxy {brief(self._text)}, column {token.column}: "
            f"found {token}{remark}, expected {expected}"
        )
