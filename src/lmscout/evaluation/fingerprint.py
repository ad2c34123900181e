"""A cheap digest of a model's folder, by which a run knows its model again."""

from __future__ import annotations

import hashlib
from pathlib import Path

_READ = ("config.json", "tokenizer*", "*.safetensors", "*.bin")
_PIECE = 1 << 16  # bytes from the beginning, the middle and the end of a large file


def model_fingerprint(source: str) -> str | None:
    """A digest of the names, the sizes and parts of the files in a model's folder.

    Weights are not read as a whole, which would take minutes for a large model.

    Args:
        source: the folder, or a name on the Hub.

    Returns:
        SHA-256, shortened; None for what is no folder.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _READ for path in folder.glob(pattern)}):
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _PIECE)):
                file.seek(start)
                digest.update(file.read(_PIECE))
    return digest.hexdigest()[:16]
