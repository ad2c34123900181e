"""Run folders: what a command was asked for, and what it has found.

- ``settings.json``: the command, its settings, and the versions and the machine it ran with.
- ``result.json``: the result, once the run has finished: as ``--json`` prints it, and under
  ``fields`` all that is needed to show it again.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from lmscout.errors import LmscoutError, brief, shown
from lmscout.files import as_json, atomic_folder, check_folder, encoded, remove_drafts, write_file
from lmscout.reading import read_json_object
from lmscout.results import FIELDS, SCHEMA
from lmscout.version import __version__

SETTINGS, RESULT = "settings.json", "result.json"
_REMEDY = "name another with --out"
_LONGEST = 60  # characters of a setting in an error message


class Reported(Protocol):
    """A result as the command line prints it, and with all its fields."""

    def to_json(self) -> dict[str, object]:
        """As the command line prints it."""

    def to_dict(self) -> dict[str, Any]:
        """Every field by name."""

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The result in a file."""


Of = TypeVar("Of", bound=Reported)


@dataclass(frozen=True)
class Run:
    """A run of a command and its folder, see `open_run`.

    Attributes:
        folder: of the run.
        command: such as "rank".
        settings: all on which the result depends, as JSON data.
        begun: whether the folder held this run already.
        finished: whether it holds the result.
    """

    folder: Path
    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    begun: bool = False
    finished: bool = False

    @property
    def name(self) -> str:
        """The folder in error messages."""
        return f"run folder {self.folder}"

    def load(self, kind: type[Of]) -> Of:
        """The result of a finished run.

        Raises:
            LmscoutError: it cannot be read.
        """
        remedy = f"{_REMEDY}, or remove the file to run again"
        try:
            found = kind.load(self.folder / RESULT)
        except LmscoutError as error:
            raise LmscoutError(f"{error}: {remedy}") from error
        try:
            found.to_json()  # whose figures follow from the fields
        except Exception as error:
            raise LmscoutError(
                f"{self.folder / RESULT}: damaged result ({error}): {remedy}"
            ) from error
        return found

    def begin(self, **more: object) -> None:
        """Write the settings, before the work; the folder is made.

        Args:
            more: what else to note.

        Raises:
            LmscoutError: the folder cannot be written.
        """
        check_folder(self.folder, self.name, _REMEDY, make=True)
        write_file(self.folder / SETTINGS, self._settings_json(more), remedy=_REMEDY)

    def end(self, result: Reported) -> None:
        """Write the result into the folder that `begin` made.

        Raises:
            LmscoutError: the folder cannot be written.
        """
        write_file(self.folder / RESULT, self._result_json(result), remedy=_REMEDY)

    @contextmanager
    def saving(self, result: Reported, **more: object) -> Iterator[Path]:
        """A draft of the folder for further files, which is saved with settings and result.

        Args:
            result: what was found.
            more: what else to note among the settings.

        Raises:
            LmscoutError: the folder cannot be written, and nothing is left behind; or another run
                was saved there meanwhile, and the message says where this one is.
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

    def save(self, result: Reported) -> None:
        """Write settings and result of a run that has nothing else to keep.

        Raises:
            LmscoutError: the folder cannot be written; nothing is left behind.
        """
        with self.saving(result):
            pass

    def _settings_json(self, more: Mapping[str, object]) -> str:
        head = {"schema": SCHEMA, "command": self.command, "environment": environment()}
        return as_json({**head, **self.settings, **more})

    def _result_json(self, result: Reported) -> str:
        head = {"schema": SCHEMA, "command": self.command, "environment": environment()}
        return as_json({**head, **result.to_json(), FIELDS: result.to_dict()})


def open_run(
    folder: Path,
    command: str,
    settings: Mapping[str, object],
    *,
    foreign: bool = False,
    continues: bool = False,
) -> Run:
    """Look at a run folder before any work: new, begun, or finished by the same command.

    Drafts that killed processes have left behind are removed.

    Args:
        folder: of the run; need not exist.
        command: such as "rank".
        settings: all on which the result depends.
        foreign: whether the folder may hold files without ``settings.json``.
        continues: whether an unfinished run may go on with other settings; else these are
            refused as those of a finished run are.

    Returns:
        The run; nothing is written.

    Raises:
        LmscoutError: the folder holds another run or something else, or cannot be written.
    """
    remove_drafts(folder.parent, folder.name)
    remove_drafts(folder)
    wanted = json.loads(encoded(as_json(settings)))
    run = Run(folder, command, wanted)
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
        found = brief(there.get("schema"))
        raise LmscoutError(
            f"{run.name} holds a run of schema {found}, expected {SCHEMA}: {_REMEDY}"
        )
    finished = (folder / RESULT).is_file()
    if finished or not continues:
        _compare(run.name, there, wanted)
    if not finished:
        check_folder(folder, run.name, _REMEDY, make=False)
    return Run(folder, command, wanted, begun=True, finished=finished)


def optional_run(folder: Path | None, command: str, settings: Mapping[str, object]) -> Run:
    """The run of a command that keeps its result only if a folder is given.

    Args:
        folder: of the run; if None, the run has a new folder under runs/, which nothing is
            written to unless `Run.save` is called.
        command: such as "eval".
        settings: all on which the result depends.

    Raises:
        LmscoutError: as `open_run`.
    """
    if folder is not None:
        return open_run(folder, command, settings)
    return Run(default_run_folder(command), command, json.loads(encoded(as_json(settings))))


def kept_result(
    folder: Path | None,
    command: str,
    settings: Mapping[str, object],
    kind: type[Of],
    compute: Callable[[], Of],
    save: Callable[[Run, Of], None] = Run.save,
) -> Of:
    """The result of a finished run in a folder; else compute it, and keep it there.

    Args:
        folder: of the run; None to keep nothing.
        command: such as "rank".
        settings: all on which the result depends.
        kind: type of the result.
        compute: computes it.
        save: writes the run folder.

    Raises:
        LmscoutError: as `open_run`, or the folder cannot be written.
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
    """The settings of a run; None if there are none that can be read."""
    try:
        return read_json_object(folder / SETTINGS, surrogates=True)
    except LmscoutError:
        return None


def same_settings(there: Mapping[str, Any] | None, settings: Mapping[str, object]) -> bool:
    """Whether a folder's settings are these."""
    wanted = json.loads(encoded(as_json(settings)))
    return there is not None and all(there.get(name) == wanted[name] for name in wanted)


def default_run_folder(label: str) -> Path:
    """runs/LABEL-TIME under the current directory, with a UTC time to the microsecond.

    So runs that start in one second, as a shell's loop starts them, have folders of their own.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip("-.")
    return Path("runs") / f"{safe}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"


def environment() -> dict[str, object]:
    """Versions, platform and threads that a run has."""
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


def _compare(name: str, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for setting, value in wanted.items():
        found = there.get(setting)
        if found != value:
            kept, asked = _shown(found), _shown(value)
            both = f"{setting} {kept}, not {asked}"
            if max(len(kept), len(asked)) > _LONGEST or kept == asked:
                both = f"another {setting}"
            raise LmscoutError(f"{name} holds a run with {both}: {_REMEDY}")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value)) or "none"
    return "none" if value is None else str(value)
