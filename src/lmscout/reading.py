"""Bounded readers of files from elsewhere: bytes, text, JSON, YAML, safetensors headers.

Size, nesting and digits are checked before anything is constructed.  The bounds are listed in
docs/security.md.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lmscout.errors import LmscoutError, brief

MIB = 2**20

MOST_TEXT = 1024 * MIB
"""Bytes of a text, after decompression."""
MOST_STRUCTURED = 64 * MIB
"""Bytes of a JSON file, of JSON lines, and of a text that a benchmark is trained on."""
MOST_VALUES = 1_000_000
"""Values in one JSON text, and lines of JSON lines."""
_MOST_LINE = 4 * MIB  # bytes of one of several JSON lines
_MOST_DEPTH = 64  # nested arrays and objects in JSON, lists and mappings in YAML
_MOST_DIGITS = 100  # characters of a number
_MOST_YAML = 4 * MIB  # bytes of a YAML file
_MOST_NODES = 200_000  # nodes of a YAML file, aliases expanded
_MOST_SCALAR = 10_000  # characters of a YAML scalar
_MOST_HEADER = 32 * MIB  # bytes of the header of a safetensors file

_GZIP = b"\x1f\x8b"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_QUOTED = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_NUMBER = re.compile(r"[-+]?[0-9][0-9A-Fa-fxob_:.]*")  # in YAML, of any base
_PYTHON_TAG = re.compile(r"tag '(?:tag:yaml\.org,2002:)?([^']*)'")
# The same safe constructors; libyaml's scanner is several times faster where it is there.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Refuse a mapping with one name twice: the first value would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.most_common(1):
            if count > 1:
                problem = f"the name {brief(name)} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_bytes(
    path: Path, most: int, *, compressed: bool = False, pipe: bool = False, name: str = ""
) -> bytes:
    """Read a whole file of at most so many bytes, after decompression.

    If `compressed`, gzip is recognised by its first bytes and decompressed; if `pipe`, a pipe or a
    device, as of `<(command)`, is read too.  LmscoutError, with the name of the file (its path by
    default), if it cannot be read, is damaged or too large.
    """
    name = name or str(path)
    with _readable(path, name, pipe=pipe) as file:
        packed = compressed and file.peek(len(_GZIP)).startswith(_GZIP)
        source = gzip.GzipFile(fileobj=file) if packed else file
        content = io.BytesIO()
        while chunk := source.read(MIB):
            content.write(chunk)
            if content.tell() > most:
                unpacked = " decompressed" if packed else ""
                raise LmscoutError(
                    f"{name}: is too large (more than {_size(most)}{unpacked}); give a smaller file"
                )
    return content.getvalue()


def expanded(name: str) -> Path:
    """The path of a name, `~` expanded; raises LmscoutError if it is no path."""
    if "\0" in name:
        raise LmscoutError(f"{brief(name)}: is no path: it holds a null character")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise LmscoutError(f"{name}: there is no such user's home folder") from None


def decoded(content: bytes, name: str) -> str:
    """UTF-8 text without its byte-order mark; raises LmscoutError if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith(_UTF_16):
            raise LmscoutError(f"{name}: is UTF-16, not UTF-8 text; save it as UTF-8") from None
        if content.startswith(_GZIP):
            raise LmscoutError(f"{name}: is compressed with gzip; decompress it first") from None
        raise LmscoutError(
            f"{name}: not UTF-8 text (byte {error.start}); the file is damaged or another"
        ) from None


def read_text(path: Path, most: int = MOST_STRUCTURED) -> str:
    """Read a UTF-8 file of at most so many bytes; see `read_bytes` and `decoded`."""
    return decoded(read_bytes(path, most), str(path))


def read_json(path: Path, *, lenient: bool = False, surrogates: bool = False) -> Any:
    """Read a file that holds one JSON value, in UTF-8.

    If `lenient`, a name may occur twice in one object; the last one counts, as for the libraries
    that read the file again.  If `surrogates`, strings may hold lone surrogates, as file names that
    are not UTF-8 do.  LmscoutError if the file cannot be read, is not JSON, or is beyond a bound.
    """
    return parse_json(read_text(path), str(path), lenient=lenient, surrogates=surrogates)


def read_json_object(
    path: Path, *, lenient: bool = False, surrogates: bool = False
) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object."""
    value = read_json(path, lenient=lenient, surrogates=surrogates)
    if not isinstance(value, dict):
        raise LmscoutError(f"{path}: expected an object with names, found {_kind(value)}")
    return value


def read_json_rows(path: Path) -> list[Any]:
    """Read rows from a JSON array or JSON lines; raises LmscoutError as `read_json`."""
    text = read_text(path)
    first, _, rest = text.strip().partition("\n")
    if first.startswith("{") and first.rstrip().endswith("}") and rest.strip():
        return [value for _, value in parse_json_lines(text, str(path))]
    value = parse_json(text, str(path))
    if not isinstance(value, list):
        raise LmscoutError(f"{path}: expected a list of rows, or JSON lines, found {_kind(value)}")
    return value


def parse_json_lines(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """Yield line numbers, from 1, and values of JSON lines; blank lines are skipped.

    LmscoutError if a line is not JSON, or is beyond a bound.
    """
    for number, line in enumerate(io.StringIO(text), start=1):
        if number > MOST_VALUES:
            raise LmscoutError(f"{name}: holds too many lines (more than {MOST_VALUES:,})")
        if line.strip():
            yield number, parse_json(line, f"{name}, line {number}", single_line=True)


def parse_json(
    text: str,
    name: str,
    *,
    lenient: bool = False,
    surrogates: bool = False,
    single_line: bool = False,
) -> Any:
    """Parse the JSON text of a named file, see `read_json`, or one of its JSON lines.

    LmscoutError if it is not JSON, nests too deep, or has too many values or digits, a name twice
    in one object, or a lone surrogate.
    """
    most = _MOST_LINE if single_line else MOST_STRUCTURED
    if len(text) > most:
        raise LmscoutError(f"{name}: is too long (more than {_size(most)}); shorten it")
    _check_structure(text, name)
    try:
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_real,
            object_pairs_hook=None if lenient else _once,
        )
    except json.JSONDecodeError as error:
        raise LmscoutError(_not_json(error, name, single_line)) from None
    except (ValueError, RecursionError) as error:
        raise LmscoutError(f"{name}: {error}") from None
    if not surrogates and "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise LmscoutError(
                f"{name}: holds half of a character (a lone surrogate); write it whole"
            ) from None
    return value


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read a file that holds a YAML mapping; raises LmscoutError as `parse_yaml`."""
    return parse_yaml(read_text(path, _MOST_YAML), str(path))


def parse_yaml(text: str, name: str) -> dict[Any, Any]:
    """Parse a YAML mapping of plain data, of a named file.

    Events are counted, without recursion, before anything is constructed.  LmscoutError if it is
    not YAML, not a mapping or beyond a bound, or has a tag that names Python code.
    """
    try:
        _check_events(text, name)
        values = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f"{name}, line {error.problem_mark.line + 1}" if error.problem_mark else name
        problem = error.problem or error.context or ""
        if not isinstance(error, yaml.constructor.ConstructorError):
            problem = f"not YAML: {problem}"
        elif tag := _PYTHON_TAG.search(problem):
            problem = (
                f"the tag {tag[1]!r} is not plain data; lmscout constructs nothing that a file "
                "names: replace it with plain values"
            )
        raise LmscoutError(f"{where}: {problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise LmscoutError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    except (AttributeError, LookupError) as error:  # PyYAML's own, of "!!int" without digits, say
        raise LmscoutError(f"{name}: not YAML: a value does not fit its tag ({error})") from None
    if not isinstance(values, dict):
        raise LmscoutError(f"{name}: expected names with values, found {_kind(values)}")
    return values


def named_file(folder: Path, name: object, where: str) -> Path:
    """Path of a file in a folder by a name that was read from another file, `where`.

    LmscoutError if it is no file name, or leaves the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name or len(name.encode()) > 255:
        raise LmscoutError(f"{where}: {brief(name)} is no file name; fetch it again")
    if name in (".", "..") or "/" in name or "\\" in name or Path(name).drive:
        raise LmscoutError(
            f"{where}: names the file {brief(name)}, which is not in its folder; a file of weights "
            "lies beside the file that names it"
        )
    path = folder / name
    check_inside(path)
    return path


def check_inside(path: Path, folder: Path | None = None) -> None:
    """Raise LmscoutError for a link that leads nowhere or outside a folder, by default its own.

    The Hub's cache links to its own blobs.
    """
    if not path.is_symlink():
        return
    try:
        target, folder = path.resolve(), (folder or path.parent).resolve()
    except (OSError, RuntimeError):
        raise LmscoutError(f"{path}: is a link that leads nowhere; fetch it again") from None
    cached = folder.parent.name == "snapshots" and target.is_relative_to(
        folder.parent.parent / "blobs"
    )
    if not (target.is_relative_to(folder) or cached):
        raise LmscoutError(
            f"{path}: is a link to a file outside its folder; copy the file into the folder"
        )


def check_safetensors_header(path: Path) -> None:
    """Raise LmscoutError unless a safetensors file is regular and its header within bounds."""
    with _readable(path, str(path)) as file:
        start = file.read(8)
        size = os.fstat(file.fileno()).st_size
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if len(start) < 8 or length > size - 8:
        raise LmscoutError(
            f"{path}: is damaged or incomplete, or is no safetensors file (its header is longer "
            "than the file); fetch or save it again"
        )
    if length > _MOST_HEADER:
        raise LmscoutError(
            f"{path}: its header is too large (got {length:,} bytes, expected at most "
            f"{_size(_MOST_HEADER)})"
        )


@contextmanager
def _readable(path: Path, name: str, *, pipe: bool = False) -> Iterator[io.BufferedReader]:
    """An open file; errors of reading it become one line."""
    try:
        kind = os.stat(path).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind) or pipe):
            raise LmscoutError(f"{name}: cannot be read: it is a pipe or a device, not a file")
        with open(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LmscoutError(
            f"{name}: is damaged gzip ({error}); fetch or compress it again"
        ) from None
    except OSError as error:
        raise LmscoutError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError:  # a null byte in the path
        raise LmscoutError(f"{name!r}: is no path") from None


def _check_structure(text: str, name: str) -> None:
    """Refuse JSON that nests too deep or holds too many values, without parsing it."""
    few = text.count("[") + text.count("{") <= _MOST_DEPTH
    if few and len(text) <= MOST_VALUES:
        return
    bare = _QUOTED.sub("", text)
    if bare.count(",") + bare.count("[") + bare.count("{") > MOST_VALUES:
        raise LmscoutError(f"{name}: holds too many values (more than {MOST_VALUES:,})")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket.group() in "[{" else -1
        if depth > _MOST_DEPTH:
            raise LmscoutError(f"{name}: nests too deep (more than {_MOST_DEPTH} levels)")


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(
            f"a number has too many digits (got {len(digits):,}, expected at most {_MOST_DIGITS})"
        )
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > _MOST_DIGITS:
        _integer(digits)  # raises
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:24]} is too large")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {brief(twice)} is given twice in one object")
    return values


def _not_json(error: json.JSONDecodeError, name: str, single_line: bool) -> str:
    where = name if single_line else f"{name}, line {error.lineno}, column {error.colno}"
    if error.msg == "Extra data":
        return f"{where}: holds more than one JSON value; expected one"
    return f"{where}: not JSON: {error.msg}; is the file cut short? Fetch or write it again"


def _check_events(text: str, name: str) -> None:
    """Refuse YAML that nests too deep, or is too large with its aliases expanded."""

    def refuse(problem: str) -> NoReturn:
        raise LmscoutError(f"{name}, line {event.start_mark.line + 1}: {problem}")

    total, open_anchors, sizes = 0, [], {}  # type: ignore[var-annotated]
    event: Any
    for event in yaml.parse(text, Loader=_SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                refuse(f"the alias *{brief(event.anchor)} stands for nothing before it")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            total += 1
            open_anchors.append((event.anchor, total - 1))
            if len(open_anchors) > _MOST_DEPTH:
                refuse(f"nests too deep (more than {_MOST_DEPTH} levels)")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if len(event.value) > _MOST_SCALAR:
                refuse(f"a value is too long (more than {_MOST_SCALAR:,} characters)")
            if len(event.value) > _MOST_DIGITS and _NUMBER.fullmatch(event.value):
                refuse(f"a number has too many digits ({len(event.value):,})")
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if total > _MOST_NODES:
            refuse(f"holds too many values (more than {_MOST_NODES:,}, aliases expanded)")


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, dict) else type(value).__name__


def _size(count: int) -> str:
    return f"{count // MIB} MiB"
