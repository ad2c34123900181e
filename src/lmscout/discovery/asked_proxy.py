"""A proxy as a user asks for it: a name or an expression, and which side of it is better."""

from __future__ import annotations

from dataclasses import dataclass

from lmscout.errors import LmscoutError
from lmscout.proxies import Entry, Expression, format_expression, resolve
from lmscout.proxies.spelling import shown

FALLING = "-"


@dataclass(frozen=True)
class SignedProxy:
    """A proxy with its sign.

    Attributes:
        name: its name in the catalog, or its text in the usual form.
        sign: 1 where a higher score is better, -1 where a lower one is.
    """

    name: str
    sign: int

    def __str__(self) -> str:
        """As `discover` prints it, and `signed_proxy` reads it."""
        if self.sign > 0:
            return self.name
        proxy = resolve(self.name)
        several = isinstance(proxy, Expression) and proxy.name in ("+", "-")
        return f"{FALLING}({self.name})" if several else FALLING + self.name


def signed_proxy(text: str) -> SignedProxy:
    """Read a proxy; a minus sign before it says that lower scores are better.

    Args:
        text: a catalog name or an expression, with or without a minus sign before it.

    Raises:
        LmscoutError: there is no such entry, the expression is malformed, or the minus sign
            might be meant for its first term alone.
    """
    bare = text.strip()
    sign = -1 if bare.startswith(FALLING) else 1
    rest = bare.removeprefix(FALLING).strip()
    proxy = resolve(rest)
    if (
        sign < 0
        and isinstance(proxy, Expression)
        and proxy.name in ("+", "-")
        and not _enclosed(rest)
    ):
        raise LmscoutError(
            f"{shown(text)}: the minus sign before a proxy says that lower scores are better; "
            f"write {FALLING}({rest}), or begin with a term that has no sign"
        )
    return SignedProxy(proxy_name(proxy), sign)


def _enclosed(text: str) -> bool:
    """Whether a well-formed expression is in parentheses as a whole."""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return place == len(text) - 1
    return False


def proxy_name(proxy: Entry | Expression) -> str:
    """A proxy's name in the catalog, or its text in the usual form."""
    return proxy.name if isinstance(proxy, Entry) else format_expression(proxy)
