"""Origin of a model: its name on the Hub, its licence, the digest of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from lmscout.errors import LmscoutError
from lmscout.reading import parse_yaml

CARD = "README.md"

_OF_A_RUN = ("settings.json", "result.json", "lmscout.json", "scores.parquet", "ledger.db")
_TEMPLATES = "additional_chat_templates"  # the folder within a model's folder that is read
_PIECE = 1 << 22  # bytes
_MOST = 1 << 16  # characters of a card or record that are read
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WORD = re.compile(r"[\w][\w.+-]{0,99}")
_LINK = re.compile(r"https?://[\w./%?=&+#~:-]{1,300}")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # a folder of the Hub's own cache


@dataclass(frozen=True)
class Origin:
    """Origin of a model, for the card of one that is made from it.

    Attributes:
        name: on the Hub; None if neither the source nor its folder names one.
        source: a Hub name, or the last part of a path; never a whole path.
        license: identifier of the licence, as the Hub writes it; None if the card names none.
        license_name: of a licence without an identifier.
        license_link: of a licence without an identifier.
    """

    name: str | None
    source: str
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a model's folder, and of the folder in it that transformers reads."""
    yield from folder.iterdir()
    if (folder / _TEMPLATES).is_dir():
        yield from (folder / _TEMPLATES).iterdir()


def model_fingerprint(source: object) -> str | None:
    """A digest of the files in a model's folder: names, sizes and content.

    All are read, about a second per gigabyte, except cards and the files of a run.

    Args:
        source: the folder, or a name on the Hub; or a model in memory.

    Returns:
        SHA-256, shortened; None for what is no folder.  For a model in memory, whose weights and
        code may have been changed, a text that no other call returns.
    """
    if not isinstance(source, str):
        return f"in memory, {uuid4().hex[:8]}"
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(files_of(folder)):
        if not path.is_file() or path.name in _OF_A_RUN or path.suffix in (".md", ".part"):
            continue
        name = path.relative_to(folder)
        digest.update(f"{name} {path.stat().st_size} ".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()[:16]


def read_origin(source: str, folder: Path | None) -> Origin:
    """Read where a model comes from; malformed entries are ignored.

    Args:
        source: a folder or a Hub name, as it was given.
        folder: of the model's files; None if there is none.
    """
    path = Path(source).expanduser()
    card = {} if folder is None else _card(folder)
    license, title = (_matching(_WORD, card.get(one)) for one in ("license", "license_name"))
    if not path.exists():
        return Origin(source, source, license, title, _link(card.get("license_link"), source))
    name = _cached_name(path) or _recorded_name(path) or card.get("base_model")
    return Origin(
        _matching(_REPOSITORY, name),
        path.resolve().name or "model",
        license,
        title,
        _link(card.get("license_link"), name),
    )


def _cached_name(path: Path) -> str | None:
    found = next(filter(None, map(_CACHED.fullmatch, path.resolve().parts)), None)
    return found and f"{found[1]}/{found[2]}"


def _recorded_name(folder: Path) -> str | None:
    """The name that an earlier run of lmscout, or transformers, recorded in the folder."""
    for file, entry in (("lmscout.json", "base_model"), ("config.json", "_name_or_path")):
        try:
            content = json.loads(_start_of(folder / file))
        except (OSError, ValueError, RecursionError):
            continue
        found = _matching(_REPOSITORY, content.get(entry) if isinstance(content, dict) else None)
        if found and not Path(found).exists():
            return found
    return None


def _card(folder: Path) -> dict[str, Any]:
    """Entries of a card's front matter; of a list the first one."""
    try:
        text = _start_of(folder / CARD).removeprefix("\ufeff")
        if not text.startswith("---\n") or "\n---" not in text[3:]:
            return {}
        entries = parse_yaml(text[4:].partition("\n---")[0], CARD)
    except (OSError, LmscoutError):
        return {}
    return {
        name: value[0] if isinstance(value, list) and value else value
        for name, value in entries.items()
    }


def _link(given: object, name: object) -> str | None:
    """An address, or that of a file in the model's repository."""
    if _matching(_REPOSITORY, name) and _matching(_WORD, given):
        return f"https://huggingface.co/{name}/blob/main/{given}"
    return _matching(_LINK, given)


def _matching(form: re.Pattern[str], given: object) -> str | None:
    return given if isinstance(given, str) and form.fullmatch(given) else None


def _start_of(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(_MOST)
