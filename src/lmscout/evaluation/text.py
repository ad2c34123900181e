"""Texts to calibrate and report on: files, rows of files, and data sets of the Hub.

Rows are joined by blank lines; an empty row stays a row, so that a perplexity is that of the
same rows on the Hub.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmscout.errors import LmscoutError
from lmscout.evaluation.quiet import first_line, quiet
from lmscout.reading import MIB, MOST_TEXT, decoded, expanded, parse_json_lines, read_bytes

HUB = "hub:"
_BLANK_LINE = "\n\n"
_DEFAULT_FIELD = "text"
_ROWS = re.compile(
    r"(?P<file>.+\.(?:parquet|(?:jsonl|ndjson)(?:\.gz)?))(?:#(?P<field>[^#]+))?",
    re.IGNORECASE | re.DOTALL,
)
_ADDRESS = re.compile(r"(?P<name>[^:#]+?)(:(?P<split>[^#]+))?(#(?P<field>.+))?")
_BATCH = 256  # rows of a Parquet file at a time


@dataclass(frozen=True)
class Text:
    """A text and its origin.

    Attributes:
        source: the file or the Hub address as it was given.
        content: exactly what the source holds; neither lines nor blanks are changed.
        sha256: of `content` in UTF-8, whatever the file's compression.
    """

    source: str
    content: str
    sha256: str


@dataclass(frozen=True)
class RowFile:
    """A file of JSON lines or Parquet.

    Attributes:
        source: as it was given, `FILE` or `FILE#FIELD`.
        path: the file.
        field: field or column of the text; None for `text`, or for the only one of strings.
    """

    source: str
    path: Path
    field: str | None

    def absolute(self) -> str:
        """The source with an absolute path."""
        return f"{self.path.resolve()}{'' if self.field is None else f'#{self.field}'}"


def row_file(source: str) -> RowFile | None:
    """Parse `FILE` or `FILE#FIELD` by the file's suffix; None if it names no file of rows.

    A file whose whole name is the source is that file, whatever follows a `#` in it.
    """
    match = _ROWS.fullmatch(source)
    if match is None or (match["field"] and Path(source).expanduser().is_file()):
        return None
    return RowFile(source, Path(match["file"]).expanduser(), match["field"])


def read_text(source: str) -> Text:
    """Read a text.

    Args:
        source: a file in UTF-8, plain or gzip (recognised by its first bytes), or `FILE#FIELD`
            of JSON lines (.jsonl, .jsonl.gz) or Parquet (.parquet), or
            `hub:NAME[/CONFIG][:SPLIT][#FIELD]`.

    Raises:
        LmscoutError: it cannot be read, is not text, or is empty.
    """
    rows = row_file(source)
    if source.startswith(HUB):
        content = _joined(_dataset_rows(source), source)
    elif rows is None:
        content = _file(source)
    elif rows.path.suffix.lower() == ".parquet":
        content = _joined(_parquet_rows(rows), source)
    else:
        content = _joined(_json_rows(rows), source)
    if not content.strip():
        raise LmscoutError(f"{source}: holds no text; give another file")
    return Text(source, content, hashlib.sha256(content.encode()).hexdigest())


def same_text(one: Text, other: Text) -> bool:
    """Whether two texts are equal except for white space."""
    return one.content.split() == other.content.split()


def _joined(rows: Iterable[str | None], source: str) -> str:
    """Rows joined by blank lines, before they fill the memory; an absent one is empty."""
    held, size = [], 0
    for row in rows:
        held.append(row or "")
        size += len(held[-1]) + len(_BLANK_LINE)
        if size > MOST_TEXT:
            raise LmscoutError(
                f"{source}: holds too much text (more than {MOST_TEXT // MIB} MiB); give a smaller "
                f"file, or a part of the data set, as {HUB}NAME:train[:1%]"
            )
    return _BLANK_LINE.join(held)


def _file(source: str) -> str:
    path = expanded(source)
    if not os.path.lexists(path):
        raise LmscoutError(
            f"{source}: no such file; a text is a file (plain, gzip, or FILE#FIELD of JSON lines "
            "or Parquet) or a Hub data set written hub:NAME[/CONFIG][:SPLIT][#FIELD]"
        )
    content = read_bytes(path, MOST_TEXT, compressed=True, pipe=True, name=source)
    text = decoded(content, source)
    if "\0" in text:
        raise LmscoutError(f"{source}: is a binary file; give a text file in UTF-8")
    return text


def _json_rows(rows: RowFile) -> Iterator[str | None]:
    name = rows.field
    for number, row in parse_json_lines(_file(str(rows.path)), rows.source):
        where = f"{rows.source}, line {number}"
        if not isinstance(row, dict):
            raise LmscoutError(
                f"{where}: is no JSON object; give one object a line, or rename the file to read "
                "it as plain text"
            )
        strings = [key for key, value in row.items() if isinstance(value, str)]
        if name is None or row.get(name, name) is not None:
            name = _field(where, name, strings, f"{rows.path}#FIELD")
        yield row[name]


def _parquet_rows(rows: RowFile) -> Iterator[str | None]:
    try:
        with pq.ParquetFile(rows.path) as file:
            strings = [one.name for one in file.schema_arrow if _is_text(one.type)]
            name = _field(rows.source, rows.field, strings, f"{rows.path}#FIELD")
            for batch in file.iter_batches(batch_size=_BATCH, columns=[name]):
                yield from batch.column(0).to_pylist()
    except FileNotFoundError:
        raise LmscoutError(f"{rows.path}: no such file; name a Parquet file") from None
    except (OSError, pa.ArrowException) as error:
        raise LmscoutError(
            f"{rows.path}: cannot be read as Parquet ({first_line(error)}); fetch it again or "
            "give another"
        ) from None


def _is_text(kind: pa.DataType) -> bool:
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held))


def _field(where: str, wanted: str | None, strings: Sequence[str], example: str) -> str:
    """The wanted field; by default `text`, or the only one that holds strings."""
    default = _DEFAULT_FIELD if _DEFAULT_FIELD in strings or len(strings) != 1 else strings[0]
    if (wanted or default) in strings:
        return wanted or default
    problem = f"has no text in field {wanted!r}" if wanted else "has no single field of text"
    more = f" and {len(strings) - 20} more" if len(strings) > 20 else ""
    raise LmscoutError(
        f"{where}: {problem}; fields of text are {', '.join(strings[:20]) or 'none'}{more}: name "
        f"one, as {example}"
    )


def _dataset_rows(source: str) -> Iterator[str | None]:
    match = _ADDRESS.fullmatch(source.removeprefix(HUB))
    parts = match["name"].split("/") if match else []
    if not match or not all(parts) or len(parts) > 3:
        raise LmscoutError(
            f"{source}: is not the address of a data set; write hub:OWNER/NAME/CONFIG:SPLIT#FIELD, "
            "as hub:Salesforce/wikitext/wikitext-2-raw-v1:test#text"
        )
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise LmscoutError(
            f"{source}: data sets of the Hub are read by the datasets library, which is not "
            "installed; pip install 'lmscout[hub]'"
        ) from None
    config = parts[2] if len(parts) == 3 else None
    try:
        with quiet():
            if not sys.stderr.isatty():
                datasets.utils.disable_progress_bars()
            data = datasets.load_dataset("/".join(parts[:2]), config, split=match["split"])
    except Exception as error:  # the library passes on whatever its file formats and network raise
        raise LmscoutError(
            f"{source}: cannot be had from the Hub ({first_line(error)}); check the address and "
            "the network, or give a file"
        ) from error
    if match["split"] is None:
        if len(data) != 1:
            raise LmscoutError(
                f"{source}: has the splits {', '.join(map(str, data))}; name one, as "
                f"{HUB}NAME:SPLIT"
            )
        (data,) = data.values()
    strings = [
        str(name)
        for name, feature in data.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    yield from data[_field(source, match["field"], strings, f"{HUB}NAME:SPLIT#FIELD")]
