"""Where a model comes from: its name on the Hub, its licence, the digest of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OF_A_RUN = ("settings.json", "result.json", "lmscout.json", "scores.parquet", "ledger.db")
_TEMPLATES = "additional_chat_templates"  # the folder within a model's folder that is read
_PIECE = 1 << 22  # bytes


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a model's folder, and of the folder in it that transformers reads."""
    yield from folder.iterdir()
    if (folder / _TEMPLATES).is_dir():
        yield from (folder / _TEMPLATES).iterdir()


def model_fingerprint(source: str) -> str | None:
    """A digest of the files in a model's folder: names, sizes and content.

    All of them are read, about a second per gigabyte, except those that a run wrote beside them.

    Args:
        source: the folder, or a name on the Hub.

    Returns:
        SHA-256, shortened; None for what is no folder.
    """
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


CARD = "README.md"

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WORD = re.compile(r"[\w][\w.+-]{0,99}")
_LINK = re.compile(r"https?://[\w./%?=&+#~:-]{1,300}")
_ENTRY = re.compile(
    r"^(license|license_name|license_link|base_model):[ \t]*([^\n]*)(?:\n[ \t]*-[ \t]*([^\n]*))?",
    re.MULTILINE,
)
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # a folder of the Hub's own cache
_MOST = 1 << 16  # characters of a card or record that are read


@dataclass(frozen=True)
class Origin:
    """What a model that is made of another one has to say of it.

    Attributes:
        name: on the Hub; None if neither the source nor its folder names one.
        source: a Hub name, or the last part of a path; never a whole path.
        license: identifier of the licence, as the Hub writes it; None if the card names none.
        license_name: of a licence that has no identifier; None without.
        license_link: where that one is; None without.
    """

    name: str | None
    source: str
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None


def read_origin(source: str, folder: Path | None) -> Origin:
    """Read where a model comes from.

    Args:
        source: a folder or a Hub name, as it was given.
        folder: that holds the model's files; None if there is none.

    Returns:
        What could be found; nothing that is malformed.
    """
    path = Path(source).expanduser()
    local = path.exists()
    card = _card(folder) if folder is not None else {}
    name = None if local else source
    if local:
        name = _cached_name(path) or _recorded_name(path) or card.get("base_model")
    return Origin(
        name if name and (_REPOSITORY.fullmatch(name) or not local) else None,
        (path.resolve().name or "model") if local else source,
        _matching(_WORD, card.get("license")),
        _matching(_WORD, card.get("license_name")),
        _link(card.get("license_link"), name),
    )


def _cached_name(path: Path) -> str | None:
    for part in path.resolve().parts:
        if found := _CACHED.fullmatch(part):
            return f"{found[1]}/{found[2]}"
    return None


def _recorded_name(folder: Path) -> str | None:
    """What an earlier run of lmscout, or transformers, wrote down in the folder."""
    for file, entry in (("lmscout.json", "base_model"), ("config.json", "_name_or_path")):
        try:
            content = json.loads(_beginning(folder / file))
        except (OSError, ValueError, RecursionError):
            continue
        named = content.get(entry) if isinstance(content, dict) else None
        found = _matching(_REPOSITORY, named)
        if found and not Path(found).exists():
            return found
    return None


def _card(folder: Path) -> dict[str, str]:
    """Entries of a card's front matter, each as one word."""
    try:
        text = _beginning(folder / CARD)
    except OSError:
        return {}
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not lines.startswith("---\n") or "\n---" not in lines[3:]:
        return {}
    front = lines[4:].partition("\n---")[0]
    entries: dict[str, str] = {}
    for name, inline, first in _ENTRY.findall(front):
        entries.setdefault(name, _word(inline or first))
    return entries


def _word(value: str) -> str:
    """A YAML scalar, or the first one of a list in brackets."""
    first = value.partition(" #")[0].strip().removeprefix("[").removesuffix("]").partition(",")[0]
    return first.strip().strip("\"'")


def _link(given: str | None, name: str | None) -> str | None:
    """An address, or that of a file in the model's repository."""
    link = _matching(_LINK, given)
    if link is None and name and _REPOSITORY.fullmatch(name) and _matching(_WORD, given):
        return f"https://huggingface.co/{name}/blob/main/{given}"
    return link


def _matching(form: re.Pattern[str], given: object) -> str | None:
    return given if isinstance(given, str) and form.fullmatch(given) else None


def _beginning(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(_MOST)
