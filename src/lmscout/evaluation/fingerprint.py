"""A cheap digest of a model's folder, by which a run knows its model again."""

from __future__ import annotations

import hashlib
from pathlib import Path

TEMPLATES = ("additional_chat_templates",)
"""Folders within a model's folder that transformers reads."""

_OF_A_RUN = ("settings.json", "result.json", "lmscout.json", "scores.parquet", "ledger.db")
_PIECE = 1 << 22  # bytes


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
    folders = (folder, *(folder / name for name in TEMPLATES))
    for path in sorted(path for one in folders if one.is_dir() for path in one.iterdir()):
        if not path.is_file() or path.name in _OF_A_RUN or path.suffix in (".md", ".part"):
            continue
        name = path.relative_to(folder)
        digest.update(f"{name} {path.stat().st_size} ".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()[:16]
