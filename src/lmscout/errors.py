"""The exception for user errors, checks that raise it, and values as messages show them."""

import errno
import os
import re
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

LAST_SEED = 2**63 - 1  # that PyTorch's generators take

_LONGEST = 60
_NO_MEMORY = (  # of PyTorch's allocator, the system's, C++'s, and for the stack of a thread
    *("can't allocate memory", "not enough memory", "Cannot allocate memory"),
    *("std::bad_alloc", "can't start new thread"),
)
_PASSWORD = re.compile(r"(://[^\s:/@]*):[^\s/]+@")
_BETWEEN = re.compile(r" \| (?![^\[]*\])")  # alternatives of an annotation, not in brackets
_TYPES: dict[str, Any] = {
    "None": types.NoneType,
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "Path_": (str, os.PathLike),
    "Progress": (bool, Callable, types.NoneType),
}
_VALUE = re.compile(
    r"([?&;](?:\w*passw(?:or)?d|pwd|pw|auth|odbc_connect|secret|\w*token))=(?!\*{3})[^\s&;]+",
    re.IGNORECASE,
)
_Function = TypeVar("_Function", bound=Callable[..., Any])


class LmscoutError(Exception):
    """An error that the user can fix; its message is one line: where, what, and the remedy.

    The command line prints the message and exits with code 2.  Any other exception is a defect
    of lmscout and keeps its traceback.
    """


def check_whole(name: str, given: object, least: int, most: int | None = None) -> None:
    """Raise LmscoutError unless the setting of this name is a whole number within bounds."""
    if isinstance(given, bool) or not isinstance(given, int):
        raise LmscoutError(f"{name} of {given!r} is no whole number: give {least} or more")
    if given < least:
        raise LmscoutError(f"{name} of {given} is too small: give {least} or more")
    if most is not None and given > most:
        raise LmscoutError(f"{name} of {given} is too large: give {most} or less")


def public(function: _Function) -> _Function:
    """Decorate a public function or method: wrong arguments are refused in one line."""
    parameters = signature(function)
    annotations = {"self": "Any", "cls": "Any", **function.__annotations__}

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        try:
            bound = parameters.bind(*given, **named)
        except TypeError:
            return function(*given, **named)  # which says what is missing, or not known
        check_types(function.__name__, annotations, bound.arguments)
        try:
            return function(*bound.args, **bound.kwargs)
        except (OSError, ValueError) as error:
            if problem := path_problem(error):
                raise LmscoutError(problem) from None
            raise

    return cast(_Function, call)


def check_types(
    owner: str, annotations: Mapping[str, Any], values: MutableMapping[str, Any]
) -> None:
    """Raise LmscoutError unless values are of the types that annotations, as text, give by name.

    Numbers and arrays of NumPy, pandas and PyTorch are replaced by Python's.  Classes are compared
    by name: some are imported on first use, under a longer name.
    """
    for name, given in values.items():
        value = values[name] = _plain(given)
        if isinstance(value, list) and annotations[name].startswith("tuple"):
            value = values[name] = tuple(value)
        if value == "" and "Path_" in annotations[name]:
            raise LmscoutError(f"{owner}: {name} is empty; give a name or a path")
        if not _is_any(value, annotations[name]):
            expected = annotations[name].replace("Path_", "str | path")
            plain = isinstance(value, str | int | float | list | tuple | dict)
            got = f"got {brief(value)}, " if plain else ""
            remedy = "; name its folder" if "LoadedModel" in expected else ""
            raise LmscoutError(
                f"{owner}: {name} is of type {type(value).__name__} ({got}expected {expected})"
                f"{remedy}"
            )


def _plain(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def _is_any(value: object, annotation: str) -> bool:
    return any(_is(value, one) for one in _BETWEEN.split(annotation))


def _is(value: object, annotation: str) -> bool:
    if annotation == "Any":
        return True
    name, _, of = annotation.removesuffix("]").partition("[")
    if name in ("Sequence", "tuple"):
        kind: Any = Sequence if name == "Sequence" else tuple
        if not isinstance(value, kind) or isinstance(value, str):
            return False
        items: Any = value
        return all(_is_any(one, of.removesuffix(", ...")) for one in items)
    if name in _TYPES:
        number = isinstance(value, bool) and name in ("int", "float")
        return isinstance(value, _TYPES[name]) and not number
    classes = (one.__name__ for one in type(value).__mro__[:-1])
    return any(name.rpartition(".")[2].endswith(one) for one in classes)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is due to insufficient memory, of an accelerator or the machine.

    PyTorch has a class of its own for accelerators only; its CPU allocator raises RuntimeError.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error)
    return isinstance(error, RuntimeError | OSError) and any(one in message for one in _NO_MEMORY)


def path_problem(error: BaseException) -> str | None:
    """The message for a path that no file can have; None for any other error."""
    if isinstance(error, ValueError) and str(error).startswith("embedded null"):
        return "a path holds a null character; give another"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{brief(error.filename)}: is no path: a name in it is too long"
    return None


def first_line(error: BaseException, limit: int = 200) -> str:
    """The message of a library's error as one line; the class if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if line.endswith(":"):  # only announces what follows
        line = " ".join(lines[:2])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def worker_ended(error: BaseException) -> LmscoutError:
    """What to tell of a pool of processes that is broken, by loky's error."""
    codes = re.search(r"exit codes of the workers are \{(.*)\}", str(error))
    how = codes.group(1) if codes else "without an exit code"
    return LmscoutError(
        f"a worker process has ended ({how}), perhaps because memory ran out; finished work is "
        "kept: run the same command again with fewer workers"
    )


def brief(value: object) -> str:
    """The representation of any value, cut to 60 characters."""
    try:
        text = _SHORT.repr(value)
    except (RecursionError, ValueError):  # too deep, or an integer of more than 4,300 digits
        text = f"a value of type {type(value).__name__}"
    text = " ".join(text.split("\n"))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def shown(value: object) -> str:
    """As `brief`, but short strings without quotes."""
    if isinstance(value, str) and len(value) <= _LONGEST and value.isprintable():
        return value
    return brief(value)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that resembles `name` most, or None if none does."""
    from difflib import get_close_matches

    by_lower = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name[:_LONGEST].lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail `; did you mean 'x'?` of an error, or nothing if no known name is near."""
    guess = nearest(name, known)
    return f"; did you mean {guess!r}?" if guess else ""


def require_known(kind: str, name: object, known: Iterable[str]) -> None:
    """Raise LmscoutError, with the known names and the nearest of them, unless a name is known."""
    known = tuple(known)
    if not isinstance(name, str):
        raise LmscoutError(f"{kind} must be a name, not {brief(name)}")
    if name not in known:
        raise LmscoutError(
            f"unknown {kind} {brief(name)}: expected one of {', '.join(known)}"
            f"{did_you_mean(name, known)}"
        )


def without_passwords(text: str) -> str:
    """Mask the passwords of URLs in a text."""
    return _VALUE.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", text))


_SHORT = reprlib.Repr()  # as `repr` for values that fit
_SHORT.maxlevel = 8
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 32
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 4 * _LONGEST
