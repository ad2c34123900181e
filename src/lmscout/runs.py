"""Run folders: the settings and the result of a command.

- ``settings.json``: the command, its settings, and the versions and the machine it ran with.
- ``result.json``: the result of a finished run: as ``--json`` prints it, and under ``fields``
  all fields, from which it is loaded.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from lmscout.errors import LmscoutError, brief, shown
from lmscout.files import as_json, atomic_folder, check_folder, encoded, remove_drafts, write_file
from lmscout.reading import read_json_object
from lmscout.results import FIELDS, SCHEMA, Result
from lmscout.version import __version__

SETTINGS, RESULT = "settings.json", "result.json"
_REMEDY = "name another folder"
_LONGEST = 60  # characters of a setting in an error message
_log = logging.getLogger("lmscout")

Of = TypeVar("Of", bound=Result)


@dataclass(frozen=True)
class Run:
    """A run of a command and its folder, see `open_run`."""

    folder: Path
    command: str  # such as "rank"
    settings: Mapping[str, Any] = field(default_factory=dict)  # all on which the result depends
    begun: bool = False  # whether the folder held this run already
    finished: bool = False  # whether it holds the result

    @property
    def name(self) -> str:
        """The folder in error messages."""
        return f"run folder {self.folder}"

    def load(self, kind: type[Of]) -> Of:
        """Load the result of a finished run; one line on stderr says that nothing is computed."""
        path = self.folder / RESULT
        remedy = f"{_REMEDY}, or remove the file to run again"
        try:
            found = kind.load(path)
        except LmscoutError as error:
            raise LmscoutError(f"{error}: {remedy}") from error
        try:
            found.to_json()  # computes figures from the fields
        except Exception as error:
            raise LmscoutError(f"{path}: damaged result ({error}): {remedy}") from error
        _log.warning(
            "lmscout: %s: holds a finished run with these settings, so its result is loaded and "
            "nothing is computed; to run again, %s or remove %s",
            *(self.name, _REMEDY, path),
        )
        return found

    def begin(self, **more: object) -> None:
        """Make the folder and write the settings, with further entries, before the work."""
        check_folder(self.folder, self.name, _REMEDY, make=True)
        write_file(self.folder / SETTINGS, self._settings_json(more), remedy=_REMEDY)

    def end(self, result: Result) -> None:
        """Write the result into the folder that `begin` made."""
        write_file(self.folder / RESULT, self._result_json(result), remedy=_REMEDY)

    @contextmanager
    def saving(self, result: Result, **more: object) -> Iterator[Path]:
        """A draft of the folder for further files, saved with (more) settings and the result.

        LmscoutError if the folder cannot be written; or another run was saved there meanwhile, and
        the message names the folder of this one.
        """
        wanted = {"command": self.command, **self.settings}
        there = read_settings(self.folder) if (self.folder / SETTINGS).is_file() else wanted
        taken = not same_settings(there, wanted)
        folder = default_run_folder(self.folder.name) if taken else self.folder
        with atomic_folder(folder, last=RESULT, name=self.name, remedy=_REMEDY) as draft:
            yield draft
            write_file(draft / SETTINGS, self._settings_json(more))
            write_file(draft / RESULT, self._result_json(result))
        if taken:
            raise LmscoutError(
                f"{self.name} was filled by another run meanwhile: the result is in {folder}"
            )

    def save(self, result: Result) -> None:
        """Write the settings and the result of a run without other files; see `saving`."""
        with self.saving(result):
            pass

    def _settings_json(self, more: Mapping[str, object]) -> str:
        return as_json({**self._head(), **self.settings, **more})

    def _result_json(self, result: Result) -> str:
        return as_json({**self._head(), **result.to_json(), FIELDS: result.to_dict()})

    def _head(self) -> dict[str, object]:
        return {"schema": SCHEMA, "command": self.command, "environment": environment()}


def open_run(
    folder: Path,
    command: str,
    settings: Mapping[str, object],
    *,
    foreign: bool = False,
    continues: bool = False,
) -> Run:
    """Inspect a run folder before any work: new, begun, or finished by the same command.

    Drafts of killed processes are removed; nothing is written.  A `foreign` folder may hold files
    without ``settings.json``; if `continues`, an unfinished run may continue with other settings.
    LmscoutError if the folder holds another run or something else, or cannot be written.
    """
    remove_drafts(folder.parent, folder.name)
    remove_drafts(folder)
    run = Run(folder, command, _as_saved(settings))
    if not (folder / SETTINGS).is_file():
        if folder.exists() and not (folder.is_dir() and (foreign or not any(folder.iterdir()))):
            raise LmscoutError(f"{run.name} is not empty: {_REMEDY}")
        check_folder(folder, run.name, _REMEDY, make=False)
        return run
    there = read_settings(folder)
    if there is None:
        raise LmscoutError(f"{run.name} holds a damaged {SETTINGS}: {_REMEDY}")
    if there.get("command") != command:
        known = "command" in there
        program = f"lmscout {shown(there['command'])}" if known else "another program"
        raise LmscoutError(f"{run.name} holds a run of {program}: {_REMEDY}")
    if there.get("schema") != SCHEMA:
        raise LmscoutError(
            f"{run.name} holds a run of schema {brief(there.get('schema'))}, expected {SCHEMA}: "
            f"{_REMEDY}"
        )
    finished = (folder / RESULT).is_file()
    if finished or not continues:
        _compare(run.name, there, run.settings)
    if not finished:
        check_folder(folder, run.name, _REMEDY, make=False)
    return Run(folder, command, run.settings, begun=True, finished=finished)


def kept_result(
    folder: Path | None,
    command: str,
    settings: Mapping[str, object],
    kind: type[Of],
    compute: Callable[[], Of],
    save: Callable[[Run, Of], None] = Run.save,
) -> Of:
    """The result of a finished run in a folder, see `open_run`; else compute and save it.

    Without a folder nothing is kept.  LmscoutError as `open_run`, or if it cannot be written.
    """
    if folder is None:
        return compute()
    run = open_run(folder, command, settings)
    if run.finished:
        return run.load(kind)
    result = compute()
    save(run, result)
    return result


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of a run; None if they cannot be read."""
    try:
        return read_json_object(folder / SETTINGS, surrogates=True)
    except LmscoutError:
        return None


def same_settings(there: Mapping[str, Any] | None, settings: Mapping[str, object]) -> bool:
    """Whether the settings of a folder agree with these."""
    wanted = _as_saved(settings)
    return there is not None and all(there.get(name) == wanted[name] for name in wanted)


def default_run_folder(label: str) -> Path:
    """runs/LABEL-TIME under the current directory, with a UTC time to the microsecond."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip("-.")
    return Path("runs") / f"{safe}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"


def environment() -> dict[str, object]:
    """Versions, platform and number of threads."""
    torch: Any = sys.modules.get("torch")
    return {
        "lmscout": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "platform": platform.platform(),
        "threads": (os.cpu_count() or 1) if torch is None else torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _as_saved(settings: Mapping[str, object]) -> dict[str, Any]:
    """Settings as they are read again."""
    saved: dict[str, Any] = json.loads(encoded(as_json(settings)))
    return saved


def _compare(name: str, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for setting, value in wanted.items():
        if there.get(setting) != value:
            found, given = _shown(there.get(setting)), _shown(value)
            both = f"{setting} {found}, not {given}"
            if max(len(found), len(given)) > _LONGEST or found == given:
                both = f"another {setting}"
            raise LmscoutError(f"{name} holds a run with {both}: {_REMEDY}")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value)) or "none"
    return "none" if value is None else str(value)
