"""The text form of a proxy: `sum(abslog(head) - sqrt(weight))`.

Grammar, with white space anywhere between words and signs:

    proxy  := AGGREGATION "(" branch [ SIGN branch ] ")"
    branch := OPERATION "(" branch-inside ")"
    branch-inside := branch | INPUT
    SIGN   := "+" | "-" | "*" | "@"

Some names have two meanings: `mean` is an aggregation and an operation, `softmax` an
operation and an input.  Position decides: the first word is the aggregation, a word before
a parenthesis is an operation, any other word is an input.  Text is only ever tokenized and
compared with the tables; nothing in it is evaluated.
"""

import re
from dataclasses import dataclass
from typing import NoReturn

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import MAX_OPERATIONS, Binary, Branch, Proxy
from lmscout.proxies.operators import (
    AGGREGATION,
    BINARY,
    BINARY_OPERATION,
    INPUT,
    UNARY,
    UNARY_OPERATION,
)
from lmscout.proxies.spelling import nearest, shown

LONGEST = 100_000
"""Characters of an expression."""

_TOKEN = re.compile(r"(?P<space>\s+)|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>[()+\-*@])")
_SIGNS = {entry.symbol: entry.name for entry in BINARY}

# What people may write for an operation, with our name for it: LPZero's names are known too.
_SPELLINGS = {entry.upstream: entry.name for entry in UNARY} | {
    entry.name: entry.name for entry in UNARY
}


@dataclass(frozen=True)
class _Token:
    text: str
    column: int
    kind: str  # "word", "sign" or "end"

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else shown(self.text)


def parse(text: str) -> Proxy:
    """Read a proxy from its text form.

    Raises:
        LmscoutError: The text is malformed; the line names the column (from 1), what was
            found there and what was expected.
    """
    require_short(text)
    return _Parser(text).proxy()


def require_short(text: str) -> None:
    """Raise LmscoutError where a text is longer than any proxy's."""
    if len(text) > LONGEST:
        raise LmscoutError(
            f"proxy {shown(text)}: is too long (got {len(text):,} characters, expected at most "
            f"{LONGEST:,})"
        )


def format_proxy(proxy: Proxy) -> str:
    """The canonical text form: `parse` gives the same proxy back."""
    body = proxy.body
    if isinstance(body, Branch):
        return f"{proxy.aggregation}({format_branch(body)})"
    symbol = BINARY_OPERATION[body.operation].symbol
    return f"{proxy.aggregation}({format_branch(body.left)} {symbol} {format_branch(body.right)})"


def format_branch(branch: Branch) -> str:
    """The text of one branch, as a proxy's form has it."""
    text = branch.input
    for name in branch.chain:
        text = f"{name}({text})"
    return text


class _Parser:
    """A position in the tokens of one text, and what the grammar expects there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokenize()
        self.position = 0

    def proxy(self) -> Proxy:
        aggregation = self._aggregation()
        self._sign("(", f"'(' after the aggregation {aggregation}")
        left = self._branch()
        body: Binary | Branch = left
        token = self._next()
        if token.text in _SIGNS:
            body = Binary(_SIGNS[token.text], left, self._branch())
            token = self._next()
            if token.text in _SIGNS:
                self._fail(token, "')': a proxy joins two branches, not more")
        if token.text != ")":
            signs = ", ".join(repr(sign) for sign in _SIGNS)
            closing = f"')' to close {aggregation}"
            self._fail(token, closing if isinstance(body, Binary) else f"{signs} or {closing}")
        token = self._next()
        if token.kind != "end":
            self._fail(token, "the end of the proxy")
        return Proxy(aggregation, body)

    def _aggregation(self) -> str:
        token = self._next()
        expected = f"an aggregation ({', '.join(AGGREGATION)})"
        if token.kind != "word" or token.text not in AGGREGATION:
            self._fail_word(token, expected, {name: name for name in AGGREGATION})
        return token.text

    def _branch(self) -> Branch:
        """A chain of operations around an input; a loop, so that depth costs no stack."""
        operations: list[str] = []
        token = self._next()
        while token.kind == "word" and self.tokens[self.position].text == "(":
            if token.text not in UNARY_OPERATION:
                self._fail_word(token, f"an operation ({', '.join(UNARY_OPERATION)})", _SPELLINGS)
            operations.append(token.text)
            if len(operations) > MAX_OPERATIONS:
                self._fail(token, f"an input: no more than {MAX_OPERATIONS} operations are nested")
            self._next()
            token = self._next()
        if not operations:
            self._fail_bare(token)
        if token.kind != "word" or token.text not in INPUT:
            expected = f"an input ({', '.join(INPUT)})"
            if token.kind != "word":
                expected = f"an operation or {expected}"
            self._fail_word(token, expected, {name: name for name in INPUT})
        for name in reversed(operations):
            self._sign(")", f"')' to close {name}")
        return Branch(token.text, tuple(reversed(operations)))

    def _fail_bare(self, token: _Token) -> NoReturn:
        """Nothing that applies an operation stands where a branch must begin."""
        if token.kind == "word" and token.text in INPUT:
            self._fail(token, f"an operation around the input, as in identity({token.text})")
        if token.kind == "word" and token.text in UNARY_OPERATION:
            following = self.tokens[self.position]
            self._fail(following, f"'(' after the operation {token.text}")
        names = _SPELLINGS | {name: f"identity({name})" for name in INPUT}
        self._fail_word(token, "an operation, as in abs(weight)", names)

    def _fail_word(self, token: _Token, expected: str, spellings: dict[str, str]) -> NoReturn:
        """Fail on a word of the wrong role, or on an unknown one with the nearest known."""
        if token.kind == "word":
            roles = [
                role
                for role, table in (
                    ("an aggregation", AGGREGATION),
                    ("an operation", UNARY_OPERATION),
                    ("an input", INPUT),
                )
                if token.text in table
            ]
            if roles:
                self._fail(token, expected, f", which is {' and '.join(roles)}")
            guess = nearest(token.text, spellings)
            if guess:
                self._fail(token, f"{expected}; did you mean {spellings[guess]!r}?")
        self._fail(token, expected)

    def _next(self) -> _Token:
        token = self.tokens[self.position]
        if token.kind != "end":
            self.position += 1
        return token

    def _sign(self, sign: str, expected: str) -> None:
        token = self._next()
        if token.text != sign:
            self._fail(token, expected)

    def _tokenize(self) -> tuple[_Token, ...]:
        tokens = []
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                signs = " ".join(("(", ")", *_SIGNS))
                self._fail(_Token(self.text[at], at + 1, "sign"), f"a name or one of {signs}")
            kind = match.lastgroup or ""
            if kind != "space":
                tokens.append(_Token(match.group(), at + 1, kind))
            at = match.end()
        return (*tokens, _Token("", len(self.text) + 1, "end"))

    def _fail(self, token: _Token, expected: str, remark: str = "") -> NoReturn:
        raise LmscoutError(
            f"proxy {shown(self.text)}, column {token.column}: "
            f"found {token}{remark}, expected {expected}"
        )
