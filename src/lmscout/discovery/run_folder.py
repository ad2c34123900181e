"""What a run leaves behind: one folder that is there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lmscout.errors import LmscoutError
from lmscout.files import as_json, atomic_folder, check_folder, write_file


def default_run_folder(label: str) -> Path:
    """runs/LABEL-TIME under the current directory, with a UTC time to the second."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip("-.")
    return Path("runs") / f"{safe}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def check_run_folder(folder: Path) -> None:
    """Refuse a folder that a run could not be written to, before any work is done.

    Raises:
        LmscoutError: it holds something already, or cannot be created.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LmscoutError(f"run folder {folder} is not empty: name another with --out")
    check_folder(folder, f"run folder {folder}", "name another with --out", make=False)


@contextmanager
def run_folder(folder: Path) -> Iterator[Path]:
    """A folder to write a run into, which becomes `folder` once the block ends without error.

    Raises:
        LmscoutError: as `check_run_folder`.
    """
    name = f"run folder {folder}"
    with atomic_folder(folder, name=name, remedy="name another with --out") as draft:
        yield draft


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write one JSON object, indented, without NaN; the file is there whole or not at all."""
    write_file(path, as_json(value))
