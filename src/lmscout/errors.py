"""The exception for user errors, checks that raise it, and values as messages show them."""

import re
import reprlib

_LONGEST_SHOWN = 60
_NO_MEMORY = (  # PyTorch's allocator, the system's, and C++'s
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "can't start new thread",  # for whose stack there is none
)


_PASSWORD = re.compile(r"(://[^\s:/@]*):[^\s/]+@")
_VALUE = re.compile(
    r"([?&;](?:\w*passw(?:or)?d|pwd|pw|auth|odbc_connect|secret|\w*token))=(?!\*{3})[^\s&;]+",
    re.IGNORECASE,
)


class LmscoutError(Exception):
    """Something the user can mend; the message is one line: what, where, and what to do.

    The command line prints the message and exits with code 2.  Anything else that is
    raised is a defect of lmscout and keeps its traceback.
    """


def check_whole(name: str, given: object, least: int, most: int | None = None) -> None:
    """Refuse a setting that is no whole number, or is out of its bounds.

    Args:
        name: of the setting, as the message is to call it.
        given: its value.
        least: the smallest that is allowed.
        most: the largest; None for no such bound.

    Raises:
        LmscoutError: it is.
    """
    if isinstance(given, bool) or not isinstance(given, int):
        raise LmscoutError(f"{name} of {given!r} is no whole number: give {least} or more")
    if given < least:
        raise LmscoutError(f"{name} of {given} is too small: give {least} or more")
    if most is not None and given > most:
        raise LmscoutError(f"{name} of {given} is too large: give {most} or less")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, on an accelerator or a CPU.

    PyTorch has a class of its own for accelerators alone; its CPU allocator raises RuntimeError.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError | OSError) and any(one in said for one in _NO_MEMORY)


def brief(value: object) -> str:
    """A value of any size and depth in a one-line message: its representation, cut short."""
    try:
        text = _SHORT.repr(value)
    except (RecursionError, ValueError):  # too deep, or an integer of more than 4,300 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def shown(value: object) -> str:
    """As `brief`, a short string without quotes."""
    if isinstance(value, str) and len(value) <= _LONGEST_SHOWN and value.isprintable():
        return value
    return brief(value)


def _short_repr() -> reprlib.Repr:
    """As `repr` for what is short enough to be shown whole."""
    short = reprlib.Repr()
    short.maxlevel = 8
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = 32
    short.maxstring = short.maxlong = short.maxother = 4 * _LONGEST_SHOWN
    return short


_SHORT = _short_repr()


def without_passwords(words: str) -> str:
    """Words in which URLs have no passwords, wherever in the line they are."""
    return _VALUE.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", words))
