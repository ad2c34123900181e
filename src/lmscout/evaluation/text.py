"""Text to calibrate on and to report on: files, rows of files, and data sets of the Hub.

Text in rows: one field of JSON lines or of a Parquet file, its rows joined by blank lines.

A source is `FILE` or `FILE#FIELD`, as the address of a data set on the Hub ends.  The kind of a
file is told by its suffix.  An empty row stays a row, so that a perplexity is that of the same
rows on the Hub.

Text to calibrate on and to report on: files, plain, gzip or in rows, and Hub data sets.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lmscout.errors import LmscoutError
from lmscout.evaluation.hub import HUB, dataset_text
from lmscout.reading import MOST_TEXT, expanded, parse_json_lines, read_bytes

BLANK_LINE = "\n\n"
_FIELD = "text"  # that is taken where none is named
_SOURCE = re.compile(
    r"(?P<file>.+\.(?:(?P<parquet>parquet)|(?:jsonl|ndjson)(?:\.gz)?))(?:#(?P<field>[^#]+))?",
    re.IGNORECASE | re.DOTALL,
)
_BATCH = 256  # rows of a Parquet file at a time


@dataclass(frozen=True)
class RowFile:
    """A file of rows, and the field that holds the text.

    Attributes:
        source: as it was given.
        path: the file.
        field: name of the field; None for `text`, or for the only one of strings.
        parquet: whether it is Parquet, and no JSON lines.
    """

    source: str
    path: Path
    field: str | None
    parquet: bool

    def absolute(self) -> str:
        """The source as it is found from every folder."""
        return f"{self.path.resolve()}{'' if self.field is None else f'#{self.field}'}"


def row_file(source: str) -> RowFile | None:
    """Take a source apart; None where it names no file of rows.

    A file whose whole name is the source is that file, whatever stands behind a `#` in it.

    Args:
        source: a path, with or without `#FIELD` behind it.
    """
    match = _SOURCE.fullmatch(source)
    if match is None or (match["field"] and Path(source).expanduser().is_file()):
        return None
    path = Path(match["file"]).expanduser()
    return RowFile(source, path, match["field"], match["parquet"] is not None)


def json_lines_text(rows: RowFile, content: str) -> str:
    """The text of a field of JSON lines.

    Args:
        rows: the file.
        content: its content, one JSON object a line; blank lines are skipped.

    Raises:
        LmscoutError: a line is no object, lacks the field, or holds something else than a string
            or null in it; or the field is not named and could be several.
    """
    name, found = rows.field, []
    for number, row in _objects(rows, content):
        strings = [key for key, value in row.items() if isinstance(value, str)]
        if name is None:
            name = _only(rows, strings)
        if name not in row:
            raise LmscoutError(
                f"{rows.source}, line {number}: has no field {name!r}; fields there are "
                f"{_listed(row)}: name one, as {rows.path}#FIELD"
            )
        value = row[name]
        if not (value is None or isinstance(value, str)):
            raise LmscoutError(
                f"{rows.source}, line {number}: field {name!r} holds no text; fields of text are "
                f"{_listed(strings)}: name one, as {rows.path}#FIELD"
            )
        found.append(value or "")
    return BLANK_LINE.join(found)


def parquet_text(rows: RowFile) -> str:
    """The text of a column of a Parquet file.

    Raises:
        LmscoutError: the file cannot be read or holds too much text, it has no such column of
            strings, or the column is not named and could be several.
    """
    try:
        with pq.ParquetFile(rows.path) as file:
            schema = file.schema_arrow
            strings = [one.name for one in schema if _is_text(one.type)]
            name = _only(rows, strings) if rows.field is None else rows.field
            if name not in strings:
                raise LmscoutError(
                    f"{rows.source}: has no column {name!r} of strings; columns of strings are "
                    f"{_listed(strings)}: name one, as {rows.path}#FIELD"
                )
            return BLANK_LINE.join(_values(rows, file, name))
    except FileNotFoundError:
        raise LmscoutError(f"{rows.path}: no such file; name a Parquet file") from None
    except (OSError, pa.ArrowException) as error:
        first = str(error).partition("\n")[0]
        raise LmscoutError(
            f"{rows.path}: cannot be read as Parquet ({first}); fetch it again or give another"
        ) from None


def _values(rows: RowFile, file: pq.ParquetFile, name: str) -> Iterator[str]:
    held = 0
    for batch in file.iter_batches(batch_size=_BATCH, columns=[name]):
        column = batch.column(0)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        held += column.nbytes
        if held > MOST_TEXT:
            raise LmscoutError(
                f"{rows.source}: holds more than {MOST_TEXT >> 30} GiB of text; give a smaller file"
            )
        yield from (value or "" for value in column.to_pylist())


def _is_text(kind: pa.DataType) -> bool:
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held))


def _objects(rows: RowFile, content: str) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of JSON lines with their line numbers, from 1."""
    for number, row in parse_json_lines(content, rows.source):
        if not isinstance(row, dict):
            raise LmscoutError(
                f"{rows.source}, line {number}: is no JSON object; give one object a line, or "
                "rename the file to read it as plain text"
            )
        yield number, row


def _only(rows: RowFile, strings: Sequence[str]) -> str:
    """The field that is taken where none is named."""
    if _FIELD in strings:
        return _FIELD
    if len(strings) == 1:
        return strings[0]
    raise LmscoutError(
        f"{rows.source}: which field holds the text? fields of text are {_listed(strings)}: name "
        f"one, as {rows.path}#FIELD"
    )


def _listed(names: Iterable[str]) -> str:
    """Names for a message; the first twenty."""
    known = list(names)
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return (", ".join(known[:20]) or "none") + more


_LONG = 40  # characters; shorter lines (headings, "= = =") recur without having been copied


@dataclass(frozen=True)
class Text:
    """A text, and where it is from.

    Attributes:
        source: the file or the Hub address as it was given.
        content: exactly what the source holds; neither lines nor blanks are changed.
        sha256: of `content` in UTF-8, whatever the file's compression.
    """

    source: str
    content: str
    sha256: str


def read_text(source: str) -> Text:
    """Read a text.

    Args:
        source: a file in UTF-8, plain or gzip (told by its first bytes, not by its name), or
            `FILE#FIELD` of JSON lines (.jsonl, .jsonl.gz) or Parquet (.parquet), or
            `hub:NAME[/CONFIG][:SPLIT][#FIELD]`; rows are joined by blank lines.

    Returns:
        The text.

    Raises:
        LmscoutError: it cannot be read, is not text, or is empty.
    """
    rows = row_file(source)
    if source.startswith(HUB):
        content = dataset_text(source)
    elif rows is None:
        content = _file(source)
    elif rows.parquet:
        content = parquet_text(rows)
    else:
        content = json_lines_text(rows, _file(str(rows.path)))
    if not content.strip():
        raise LmscoutError(f"{source}: holds no text; give another file")
    return Text(source, content, hashlib.sha256(content.encode()).hexdigest())


def same_text(one: Text, other: Text) -> bool:
    """Whether two texts are equal but for white space."""
    return one.content.split() == other.content.split()


def shared_lines(text: Text, other: Text) -> float:
    """Share of a text's long lines that occur in another text as well.

    Args:
        text: the text whose lines are counted; the one reported on, say.
        other: the text that they are looked for in; the one calibrated on, say.

    Returns:
        Share in [0, 1] of the lines longer than 40 characters, white space aside; 0 where
        there is no such line.
    """
    lines = _long_lines(text)
    known = set(_long_lines(other))
    return sum(line in known for line in lines) / len(lines) if lines else 0.0


def _long_lines(text: Text) -> list[str]:
    lines = (" ".join(line.split()) for line in text.content.splitlines())
    return [line for line in lines if len(line) > _LONG]


def _file(source: str) -> str:
    path = expanded(source)
    if not os.path.lexists(path):
        raise LmscoutError(
            f"{source}: no such file; a text is a file (plain, gzip, or FILE#FIELD of JSON lines "
            "or Parquet) or a Hub data set written hub:NAME[/CONFIG][:SPLIT][#FIELD]"
        )
    content = read_bytes(path, MOST_TEXT, compressed=True, pipe=True, name=source)
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LmscoutError(
            f"{source}: is not text in UTF-8 (byte {error.start}); give a text file"
        ) from None
    if "\0" in decoded:
        raise LmscoutError(f"{source}: is a binary file; give a text file in UTF-8")
    return decoded
