"""The one exception that reaches a person, and values as its message shows them."""

import reprlib

_LONGEST_SHOWN = 60


class LmscoutError(Exception):
    """Something the user can mend; the message is one line: what, where, and what to do.

    The command line prints the message and exits with code 2.  Anything else that is
    raised is a defect of lmscout and keeps its traceback.
    """


def brief(value: object) -> str:
    """A value of any size and depth in a one-line message: its representation, cut short."""
    try:
        text = _SHORT.repr(value)
    except (RecursionError, ValueError):  # too deep, or an integer of more than 4,300 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def _short_repr() -> reprlib.Repr:
    """As `repr` for what is short enough to be shown whole."""
    short = reprlib.Repr()
    short.maxlevel = 8
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = 32
    short.maxstring = short.maxlong = short.maxother = 4 * _LONGEST_SHOWN
    return short


_SHORT = _short_repr()
