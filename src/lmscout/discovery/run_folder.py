"""What a run leaves behind: one folder that is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lmscout.errors import LmscoutError
from lmscout.whole_file import write_whole


def default_run_folder(label: str) -> Path:
    """runs/LABEL-TIME under the current directory, with a UTC time to the second."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip("-.")
    return Path("runs") / f"{safe}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def check_run_folder(folder: Path) -> None:
    """Refuse a folder that a run could not be written to, before any work is done.

    Raises:
        LmscoutError: it holds something already, or cannot be created.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise LmscoutError(f"run folder {folder} is not empty: name another with --out")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise LmscoutError(
            f"run folder {folder} cannot be written ({error.strerror}): name another with --out"
        ) from error


@contextmanager
def run_folder(folder: Path) -> Iterator[Path]:
    """A folder to write a run into, which becomes `folder` once the block ends without error.

    Raises:
        LmscoutError: as `check_run_folder`.
    """
    check_run_folder(folder)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield draft
        draft.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()  # empty: checked above
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write one JSON object, indented, without NaN; the file is there whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
