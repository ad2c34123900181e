"""Unknown names: one line with the expected names and the nearest of them."""

import difflib
from collections.abc import Iterable

from lmscout.errors import LmscoutError, brief

LONGEST_SHOWN = 60


def shown(value: object) -> str:
    """A value in a one-line message: text quoted and escaped, long values cut."""
    if not isinstance(value, str):
        return brief(value)
    return repr(value if len(value) <= LONGEST_SHOWN else value[: LONGEST_SHOWN - 3] + "...")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that resembles `name` most, or None if none does."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name[:LONGEST_SHOWN].lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail `; did you mean 'x'?` of an error, or nothing if no known name is near."""
    guess = nearest(name, known)
    return f"; did you mean {guess!r}?" if guess else ""


def require_known(kind: str, name: object, known: Iterable[str]) -> None:
    """Check that `name` is one of the `known` names of this kind.

    Raises:
        LmscoutError: It is not; the line lists the known names and the nearest of them.
    """
    known = tuple(known)
    if not isinstance(name, str):
        raise LmscoutError(f"{kind} must be a name, not {shown(name)}")
    if name not in known:
        raise LmscoutError(
            f"unknown {kind} {shown(name)}: expected one of {', '.join(known)}"
            f"{did_you_mean(name, known)}"
        )
