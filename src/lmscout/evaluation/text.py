"""Texts to calibrate and report on: files, rows of files, folders, and data sets of the Hub.

Rows and files of a folder are joined by blank lines; an empty row stays a row, so that a
perplexity is that of the same rows on the Hub.  Rows may be chats.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmscout.errors import LmscoutError, first_line
from lmscout.evaluation.chats import Chat, chat_of
from lmscout.evaluation.quiet import quiet
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
_MOST_FILES = 100_000  # of a folder

_Row = str | Chat | None


@dataclass(frozen=True)
class Text:
    """A text and its origin.

    Attributes:
        source: the file or the Hub address as it was given.
        content: exactly what the source holds; neither lines nor blanks are changed.  Of chats,
            JSON lines of role and content.
        sha256: of `content` in UTF-8, whatever the file's compression.
        chats: conversations, which a tokenizer's template renders; empty for a plain text.
    """

    source: str
    content: str
    sha256: str
    chats: tuple[Chat, ...] = ()


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
            of JSON lines (.jsonl, .jsonl.gz) or Parquet (.parquet), a folder of files of one of
            these kinds, `FOLDER/` or `FOLDER/#FIELD`, or `hub:NAME[/CONFIG][:SPLIT][#FIELD]`.  A
            field may hold chats: lists of messages with role and content.

    Raises:
        LmscoutError: it cannot be read, is not text, or is empty.
    """
    rows = row_file(source)
    found: Iterable[_Row]
    if source.startswith(HUB):
        found = _dataset_rows(source)
    elif rows is not None:
        found = _rows(rows)
    elif (folder := _folder(source)) is not None:
        found = _folder_rows(source, *folder)
    else:
        found = [_file(source)]
    texts, chats = _held(found, source)
    content = _BLANK_LINE.join(texts)
    if chats:
        content = "\n".join(json.dumps(chat, ensure_ascii=False) for chat in chats)
    if not content.strip():
        raise LmscoutError(f"{source}: holds no text; give another file")
    return Text(source, content, hashlib.sha256(content.encode()).hexdigest(), chats)


def same_text(one: Text, other: Text) -> bool:
    """Whether two texts are equal except for white space."""
    return one.content.split() == other.content.split()


def _held(rows: Iterable[_Row], source: str) -> tuple[list[str], tuple[Chat, ...]]:
    """Rows of text or of chats, before they fill the memory; an absent one is an empty text."""
    texts: list[str] = []
    chats: list[Chat] = []
    size = 0
    for row in rows:
        if isinstance(row, tuple):
            chats.append(row)
            size += sum(len(role) + len(content) for role, content in row)
        else:
            texts.append(row or "")
            size += len(texts[-1]) + len(_BLANK_LINE)
        if chats and any(texts[-1:]):
            raise LmscoutError(
                f"{source}: holds texts and chats, of mixed types; give rows of one of them"
            )
        if size > MOST_TEXT:
            raise LmscoutError(
                f"{source}: holds too much text (more than {MOST_TEXT // MIB} MiB); give a smaller "
                f"file, or a part of the data set, as {HUB}NAME:train[:1%]"
            )
    return texts, tuple(chats)


def _folder(source: str) -> tuple[Path, str | None] | None:
    """A folder and the field that is read in its files; None if there is no such folder."""
    whole = expanded(source)
    if whole.is_dir():
        return whole, None
    name, sign, field = source.rpartition("#")
    folder = expanded(name) if sign and name and field else None
    return (folder, field) if folder is not None and folder.is_dir() else None


def _folder_rows(source: str, folder: Path, field: str | None) -> Iterator[_Row]:
    """The files of a folder and those within it, by name; all are of one kind."""
    files: list[Path] = []
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        files += [Path(path, one) for one in sorted(names) if not one.startswith(".")]
        if len(files) > _MOST_FILES:
            raise LmscoutError(f"{source}: holds too many files (more than {_MOST_FILES:,})")
    if not files:
        raise LmscoutError(f"{source}: is an empty directory; name one that holds text")
    kinds = {_kind(one): one for one in reversed(files)}
    if len(kinds) > 1:
        both = " and ".join(f"{kind} ({one.name})" for kind, one in sorted(kinds.items()))
        raise LmscoutError(f"{source}: holds files of mixed types, {both}; give one type alone")
    if field is not None and "text" in kinds:
        raise LmscoutError(
            f"{source}: {files[0].name} is plain text without fields; leave out #{field}"
        )
    for one in files:
        if "text" in kinds:
            yield _file(str(one))
        else:
            yield from _rows(RowFile(str(one), one, field))


def _kind(path: Path) -> str:
    if row_file(path.name) is None:
        return "text"
    return "Parquet" if path.suffix.lower() == ".parquet" else "JSON lines"


def _rows(rows: RowFile) -> Iterator[_Row]:
    return _parquet_rows(rows) if _kind(rows.path) == "Parquet" else _json_rows(rows)


def _file(source: str) -> str:
    path = expanded(source)
    if not os.path.lexists(path):
        raise LmscoutError(
            f"{source}: no such file; a text is a file (plain, gzip, or FILE#FIELD of JSON lines "
            "or Parquet), a folder of files, or a Hub data set written "
            "hub:NAME[/CONFIG][:SPLIT][#FIELD]"
        )
    content = read_bytes(path, MOST_TEXT, compressed=True, pipe=True, name=source)
    text = decoded(content, source)
    if "\0" in text:
        raise LmscoutError(f"{source}: is a binary file; give a text file in UTF-8")
    return text


def _json_rows(rows: RowFile) -> Iterator[_Row]:
    name = rows.field
    for number, row in parse_json_lines(_file(str(rows.path)), rows.source):
        where = f"{rows.source}, line {number}"
        if not isinstance(row, dict):
            raise LmscoutError(
                f"{where}: is no JSON object; give one object a line, or rename the file to read "
                "it as plain text"
            )
        strings = [key for key, value in row.items() if isinstance(value, str)]
        chats = [key for key, value in row.items() if _is_chat(value)]
        if name is None or row.get(name, name) is not None:
            name = _field(where, name, strings, f"{rows.path}#FIELD", chats)
        value = row[name]
        yield chat_of(value, where) if name in chats else value


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and isinstance(next(iter(value), None), dict)


def _parquet_rows(rows: RowFile) -> Iterator[_Row]:
    try:
        with pq.ParquetFile(rows.path) as file:
            strings = [one.name for one in file.schema_arrow if _is_text(one.type)]
            chats = [one.name for one in file.schema_arrow if _is_messages(one.type)]
            name = _field(rows.source, rows.field, strings, f"{rows.path}#FIELD", chats)
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH, columns=[name]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    is_chat = name in chats and value is not None
                    yield chat_of(value, f"{rows.source}, row {number}") if is_chat else value
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


def _is_messages(kind: pa.DataType) -> bool:
    return bool(
        (pa.types.is_list(kind) or pa.types.is_large_list(kind))
        and pa.types.is_struct(kind.value_type)
    )


def _field(
    where: str,
    wanted: str | None,
    strings: Sequence[str],
    example: str,
    chats: Sequence[str] = (),
) -> str:
    """The wanted field; by default `text`, or the only one that holds strings, or chats."""
    default = _DEFAULT_FIELD
    if default not in strings and len(strings or chats) == 1:
        (default,) = strings or chats
    if (wanted or default) in (*strings, *chats):
        return wanted or default
    problem = f"has no text in field {wanted!r}" if wanted else "has no single field of text"
    more = f" and {len(strings) - 20} more" if len(strings) > 20 else ""
    lists = f", of chats {', '.join(chats[:20])}" if chats else ""
    raise LmscoutError(
        f"{where}: {problem}; fields of text are {', '.join(strings[:20]) or 'none'}{more}{lists}: "
        f"name one, as {example}"
    )


def _dataset_rows(source: str) -> Iterator[_Row]:
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
    chats = [str(name) for name, feature in data.features.items() if _is_chat_feature(feature)]
    name = _field(source, match["field"], strings, f"{HUB}NAME:SPLIT#FIELD", chats)
    for number, value in enumerate(data[name], start=1):
        yield chat_of(value, f"{source}, row {number}") if name in chats else value


def _is_chat_feature(feature: Any) -> bool:
    """Whether a feature of the datasets library is a list of objects."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    return isinstance(inner, dict) and {"role", "content"} <= inner.keys()
