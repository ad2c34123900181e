"""Files that are there whole or not at all, whoever looks and whenever."""

from __future__ import annotations

import os
from pathlib import Path

from lmscout.errors import LmscoutError

PART = ".part"
"""The end of a name under which a file is being written."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that whoever looks sees all of it or the one before, at any moment.

    Args:
        path: the file, in a folder that exists.
        content: text is written as UTF-8.

    Raises:
        LmscoutError: it cannot be written; nothing is left behind.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        try:
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise LmscoutError(f"{path} cannot be written ({error.strerror}): make room") from None
