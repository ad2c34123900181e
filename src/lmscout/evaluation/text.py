"""Texts to calibrate and report on: files, rows of files, folders, and data sets of the Hub.

Rows and files of a folder are joined by blank lines; an empty row stays a row, so that a
perplexity is that of the same rows on the Hub.  Rows may be chats, which a tokenizer's template
renders.  In windows that recovery trains on, a token that carries no loss is coded as a negative
number, -1 - token; see `coded`.
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
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lmscout.errors import LmscoutError, brief, first_line
from lmscout.evaluation.quiet import quiet
from lmscout.progress import is_terminal
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

Chat = tuple[tuple[str, str], ...]
"""The turns of a conversation: role and content."""

ASSISTANT = "assistant"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_Row = str | Chat | None


@dataclass(frozen=True)
class Text:
    """A text and its origin."""

    source: str  # the file or the Hub address as it was given
    # exactly what the source holds; neither lines nor blanks are changed.  Of chats, JSON lines of
    # role and content
    content: str
    sha256: str  # of `content` in UTF-8, whatever the file's compression
    # conversations, which a tokenizer's template renders; empty for a plain text
    chats: tuple[Chat, ...] = ()


@dataclass(frozen=True)
class RowFile:
    """A file of JSON lines or Parquet."""

    source: str  # as it was given, `FILE` or `FILE#FIELD`
    path: Path  # the file
    # field or column of the text; None for `text`, or for the only one of strings
    field: str | None

    def absolute(self) -> str:
        """The source with an absolute path."""
        return f"{self.path.resolve()}{'' if self.field is None else f'#{self.field}'}"


def row_file(source: str) -> RowFile | None:
    """Parse `FILE` or `FILE#FIELD` by the file's suffix; None if it names no file of rows.

    A file whose whole name is the source is that file, whatever follows a `#` in it.
    """
    match = _ROWS.fullmatch(source)
    if match is None or (match["field"] and expanded(source).is_file()):
        return None
    return RowFile(source, expanded(match["file"]), match["field"])


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
    where: str, wanted: str | None, strings: Sequence[str], example: str, chats: Sequence[str] = ()
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
            if not is_terminal(sys.stderr):
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


def chat_of(value: object, where: str) -> Chat:
    """Check a list of messages.

    Raises:
        LmscoutError: it is empty, or a message is no object with a role and a text as content.
    """
    messages = value if isinstance(value, list) else []
    turns = [
        (one.get("role"), one.get("content")) if isinstance(one, dict) else (None, None)
        for one in messages
    ]
    for number, turn in enumerate(turns, start=1):
        if not all(isinstance(part, str) for part in turn):
            raise LmscoutError(
                f"{where}: message {number} has no role and content of text (got "
                f"{brief(messages[number - 1])}): give objects with role and content"
            )
    if not turns:
        raise LmscoutError(f"{where}: holds no list of messages (got {brief(value)})")
    return tuple((str(role), str(content)) for role, content in turns)


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    source: str,
    *,
    limit: int | None = None,
    masks: bool = False,
) -> tuple[Tensor, Tensor]:
    """Render conversations one after the other by the tokenizer's chat template.

    Args:
        tokenizer: the model's.
        chats: the conversations.
        source: their origin, for errors.
        limit: maximum number of tokens.
        masks: whether the tokens of assistant turns are found.  A template with generation blocks
            says which they are; else a turn is what the template adds to the conversation before
            it with its generation prompt (all of it, if it is the first turn).

    Returns:
        [tokens] int64, and whether each is of an assistant turn, [tokens] bool; all without
        `masks`.

    Raises:
        LmscoutError: the tokenizer has no template, it refuses a conversation, the turns that it
            renders are not found again, or there is no assistant turn.
    """
    if not tokenizer.chat_template:
        raise LmscoutError(
            f"{source}: chats need a chat template, and the model's tokenizer has none: give a "
            "field of text, or a model with chat_template.jinja"
        )
    ids: list[int] = []
    learned: list[bool] = []
    for number, chat in enumerate(chats, start=1):
        where = f"{source}, chat {number}"
        try:
            tokens, own = _rendered(tokenizer, chat, where, masks)
        except LmscoutError:
            raise
        except Exception as error:  # templates are programs
            raise LmscoutError(
                f"{where}: the chat template refuses it ({first_line(error)}): change the "
                "conversation, or give text"
            ) from error
        ids += tokens
        learned += own
        if limit is not None and len(ids) >= limit:
            break
    if masks and not any(learned):
        raise LmscoutError(
            f"{source}: no chat has a turn of the role {ASSISTANT}, so nothing carries a loss: "
            "give other text"
        )
    return (
        torch.tensor(ids[:limit], dtype=torch.int64),
        torch.tensor(learned[:limit], dtype=torch.bool),
    )


def _rendered(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, where: str, masks: bool
) -> tuple[list[int], list[bool]]:
    template: Any = tokenizer.apply_chat_template
    messages = [{"role": role, "content": content} for role, content in chat]
    if masks and _GENERATION.search(str(tokenizer.chat_template)):
        found = template(messages, return_dict=True, return_assistant_tokens_mask=True)
        return list(found["input_ids"]), list(map(bool, found["assistant_masks"]))
    text = template(messages, tokenize=False)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=masks, verbose=False)
    tokens = list(found["input_ids"])
    if not masks:
        return tokens, [True] * len(tokens)
    spans = list(_spans(template, messages, text, where))
    own = found["offset_mapping"]
    return tokens, [any(low < to and start < high for low, high in spans) for start, to in own]


def _spans(
    template: Any, messages: list[dict[str, str]], text: str, where: str
) -> Iterator[tuple[int, int]]:
    """Characters of assistant turns: from the generation prompt before one to its end."""
    for number, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = ""
        if number:
            before = template(messages[:number], tokenize=False, add_generation_prompt=True)
        upto = template(messages[: number + 1], tokenize=False)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise LmscoutError(
                f"{where}: the chat template renders turn {number + 1} otherwise once others "
                "follow, so its tokens are not known: give a template with generation blocks"
            )
        yield len(before), len(upto)


def coded(tokens: Tensor, learned: Tensor) -> Tensor:
    """Tokens with those that carry no loss as negative numbers."""
    return torch.where(learned, tokens, -1 - tokens)


def without_codes(tokens: Tensor) -> Tensor:
    """All tokens as they are, whether they carry a loss or not."""
    return torch.where(tokens < 0, -1 - tokens, tokens)
