"""Text to calibrate on and to report on: files, plain, gzip or in rows, and Hub data sets."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from lmscout.errors import LmscoutError
from lmscout.evaluation.hub import HUB, dataset_text
from lmscout.evaluation.text_rows import json_lines_text, parquet_text, row_file
from lmscout.reading import MOST_TEXT, expanded, read_bytes

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
