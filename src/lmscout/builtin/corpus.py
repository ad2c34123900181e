"""The built-in text: the reference topics and the standard library of the running CPython.

A document's name, and with it its side, depends on neither the version nor the machine, so that
one interpreter's training text is not another one's test text.
"""

from __future__ import annotations

import functools
import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lmscout.errors import LmscoutError

SIDES = ("train", "validation", "test")
END_OF_DOCUMENT = "<|endoftext|>"  # the tokenizer has a token for it

_HELD_OUT = MappingProxyType({0: "validation", 1: "test"})  # by twentieths; the others train
_FEWEST = 200  # source files of a standard library; CPython's have more than 300

# Left out, wherever they are in a path: tests and installed packages.
_FOREIGN = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})

# Left out, by the first part of a path: packages that some distributions and platforms lack, so
# that the text of a version is the same everywhere, and CPython's dummies for frozen modules.
_APART = frozenset(
    {
        *("__hello__.py", "__phello__", "distutils", "ensurepip", "idlelib", "lib-dynload"),
        *("lib2to3", "msilib", "sitecustomize.py", "tkinter", "turtle.py", "turtledemo"),
        "usercustomize.py",
    }
)
_MACHINE = ("_sysconfigdata", "config-")  # a build's record of its machine
# Tables, and the module of the topics, which are documents themselves.
_TABLES = frozenset({"encodings", "html/entities.py", "pydoc_data", "stringprep.py"})

_LONG = 40  # characters; shorter lines recur without being copies


@dataclass(frozen=True)
class Document:
    """One document of the built-in text.

    Its name is `topics/assert` for a topic of the reference, `lib/json/decoder.py` for a source
    file; a package's `__init__.py` is named as a module, `lib/json.py`, since modules become
    packages from one version to the next.
    """

    name: str
    side: str  # "train", "validation" or "test"
    text: str  # with universal newlines


def side_of(name: str) -> str:
    """The side that a document of this name is on.

    The first eight bytes of the name's SHA-256, as a big-endian number modulo 20: 0 is
    validation, 1 is test, the others are train.
    """
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return _HELD_OUT.get(number % 20, "train")


@functools.cache
def documents() -> tuple[Document, ...]:
    """The documents of the running interpreter, sorted by name.

    They are some 450, of 8 million characters in all.  Topics contain one another, and a few
    sources are copies: a document of validation or test is left out if more than half of its long
    lines are in documents of another side.

    Raises:
        LmscoutError: this interpreter lacks its sources or its topics.
    """
    found = sorted((*_topics(), *_sources()), key=lambda document: document.name)
    lines = {document.name: _long_lines(document.text) for document in found}
    sides: dict[str, set[str]] = {side: set() for side in SIDES}
    for document in found:
        sides[document.side] |= lines[document.name]

    def copied(document: Document) -> bool:
        own = lines[document.name]
        others = (sides[side] for side in SIDES if side != document.side)
        return 2 * len(own.intersection(set().union(*others))) > len(own)

    return tuple(one for one in found if one.side == "train" or not copied(one))


def corpus_text(side: str, every: int = 1) -> str:
    """A side's documents in the order of their names, `END_OF_DOCUMENT` between them.

    One document in so many is used.
    """
    return END_OF_DOCUMENT.join(document.text for document in side_documents(side)[::every])


def corpus_digest(side: str, every: int = 1) -> str:
    """SHA-256 of `corpus_text(side, every)` in UTF-8."""
    return hashlib.sha256(corpus_text(side, every).encode()).hexdigest()


def side_documents(side: str) -> list[Document]:
    """The documents of one side, sorted by name."""
    if side not in SIDES:
        raise ValueError(f"a side is one of {', '.join(SIDES)}, not {side!r}")
    return [document for document in documents() if document.side == side]


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise LmscoutError(
            "this Python has no pydoc_data.topics, a part of lmscout's built-in text; use a whole "
            "CPython, such as one from python.org, pyenv, conda or a python container"
        ) from None
    for topic, text in topics.items():
        name = f"topics/{topic}"
        yield Document(name, side_of(name), text)


def _sources() -> list[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for file in root.rglob("*.py"):
        path = file.relative_to(root)
        if not _belongs(path):
            continue
        name = f"lib/{path.as_posix().removesuffix('/__init__.py').removesuffix('.py')}.py"
        text = _read(file)
        if text.strip():
            found.append(Document(name, side_of(name), text))
    if len(found) < _FEWEST:
        raise LmscoutError(
            f"{root}: holds {len(found)} source files of the standard library, and lmscout's "
            "built-in text is made of them; use a CPython with its sources unpacked, such as one "
            "from python.org, pyenv, conda or a python container"
        )
    return found


def _belongs(path: Path) -> bool:
    first = path.parts[0]
    return not (
        _FOREIGN.intersection(path.parts)
        or first.startswith(_MACHINE)
        or (_APART | _TABLES).intersection((first, path.as_posix()))
    )


def _read(file: Path) -> str:
    try:
        with tokenize.open(file) as source:  # in the encoding that the file declares
            return source.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise LmscoutError(
            f"{file}: this source file of the standard library cannot be read ({error}); install "
            "this Python again, or use another"
        ) from None


def _long_lines(text: str) -> set[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return {line for line in lines if len(line) > _LONG}
