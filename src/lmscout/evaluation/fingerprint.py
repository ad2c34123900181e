"""The files of a model's folder, and their digest, by which a run knows its model again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

_OF_A_RUN = ("settings.json", "result.json", "lmscout.json", "scores.parquet", "ledger.db")
_TEMPLATES = "additional_chat_templates"  # the folder within a model's folder that is read
_PIECE = 1 << 22  # bytes


def files_of(folder: Path) -> Iterator[Path]:
    """What lies in a model's folder, and in the folder within it that transformers reads."""
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
