"""The text form of a deep proxy: `sum(total(abs(mul(weight, grad)))) / params`.

A word before a parenthesis takes what is in it, one or two operands; any other word is a leaf,
and so is a number such as `0.5`.
Tensors are joined by `mul`, `add`, `sub` and `div`; block values and scores by the signs
`* / + -`, which bind as in arithmetic and from left to right.  Nothing is evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmscout.errors import LmscoutError
from lmscout.proxies.deep.nodes import LARGEST, Node
from lmscout.proxies.deep.words import ARITHMETIC
from lmscout.proxies.spelling import shown
from lmscout.proxies.text import require_short

_TOKEN = re.compile(
    r"\s*(?:(?P<word>[A-Za-z_][A-Za-z0-9_]*|[0-9]+(?:\.[0-9]+)?)|(?P<sign>[()+\-*/,]))"
)
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2}


def parse(text: str) -> Node:
    """Read a tree from its text.

    Raises:
        LmscoutError: the text is malformed or of no type; it names the column.
    """
    require_short(text)
    reader = _Reader(text)
    node = reader.joined(0)
    if reader.token.text:
        reader.fail("the end or a sign")
    return node


def format_node(node: Node) -> str:
    """The canonical text: `parse` gives the same tree back."""
    return _formatted(node, 0)


def _formatted(node: Node, binding: int) -> str:
    if node.name in ARITHMETIC:
        own = _BINDING[node.name]
        left, right = node.operands
        text = f"{_formatted(left, own)} {node.name} {_formatted(right, own + 1)}"
        return f"({text})" if own < binding else text
    if not node.operands:
        return node.name
    return f"{node.name}({', '.join(_formatted(one, 0) for one in node.operands)})"


@dataclass(frozen=True)
class _Token:
    text: str
    column: int
    is_word: bool = False


class _Reader:
    """A position in the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self.token = self._next()

    def joined(self, binding: int) -> Node:
        """Operands joined by signs that bind more than the given one."""
        node = self._operand()
        while self.token.text in _BINDING and _BINDING[self.token.text] > binding:
            sign = self._take()
            node = self._node(sign, (node, self.joined(_BINDING[sign.text])))
        return node

    def _operand(self) -> Node:
        self._depth += 1
        if self._depth > LARGEST:
            self.fail(f"no more than {LARGEST} words within each other")
        try:
            if self.token.text == "(":
                self._take()
                node = self.joined(0)
                self._closing()
                return node
            if not self.token.is_word:
                self.fail("a word or '('")
            word = self._take()
            operands: list[Node] = []
            if self.token.text == "(":
                self._take()
                operands.append(self.joined(0))
                while self.token.text == ",":
                    self._take()
                    operands.append(self.joined(0))
                self._closing()
            return self._node(word, tuple(operands))
        finally:
            self._depth -= 1

    def _closing(self) -> None:
        if self.token.text != ")":
            self.fail("')' or a sign")
        self._take()

    def _node(self, token: _Token, operands: tuple[Node, ...]) -> Node:
        try:
            return Node(token.text, operands)
        except LmscoutError as error:
            raise LmscoutError(
                f"proxy {shown(self._text)}, column {token.column}: {error}"
            ) from None

    def fail(self, expected: str) -> None:
        """Raise for the token at hand."""
        found = shown(self.token.text) if self.token.text else "the end"
        raise LmscoutError(
            f"proxy {shown(self._text)}, column {self.token.column}: found {found}, expected "
            f"{expected}"
        )

    def _take(self) -> _Token:
        token, self.token = self.token, self._next()
        return token

    def _next(self) -> _Token:
        rest = self._text[self._at :]
        blank = len(rest) - len(rest.lstrip())
        match = _TOKEN.match(self._text, self._at)
        column = self._at + blank + 1
        if match is None:
            unknown = rest[blank : blank + 1]
            self._at = len(self._text) if not unknown else self._at
            if unknown:
                raise LmscoutError(
                    f"proxy {shown(self._text)}, column {column}: found {shown(unknown)}, "
                    "expected a word, a number or one of ( ) + - * / ,"
                )
            return _Token("", column)
        self._at = match.end()
        return _Token(match.group().strip(), column, match.lastgroup == "word")
