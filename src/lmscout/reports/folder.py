"""Reading a run folder for its report, also of a run that has not finished or was damaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscout.errors import LmscoutError, brief, shown
from lmscout.loading import load_result
from lmscout.reading import expanded, read_json_object
from lmscout.results import SCHEMA, Result
from lmscout.runs import RESULT, SETTINGS

NOT_FINISHED = "it has not finished"
_MOST_ITEMS, _LONGEST, _MOST_SETTINGS = 12, 300, 200


@dataclass(frozen=True)
class RunFolder:
    """What a run folder, or the file of a result, holds."""

    path: Path  # the folder or the file
    command: str  # such as "prune"; "" of a file
    settings: Mapping[str, Any]  # of the run, with the environment; empty of a file
    result: Result | None  # None if the run has not finished, or its result is damaged
    problem: str = ""  # why there is no result; "" if there is one

    @property
    def folder(self) -> Path | None:
        """The folder; None if it is the file of a result."""
        return self.path if self.path.is_dir() else None


def read_run(path: Path | str) -> RunFolder:
    """Read a run folder, or a file that `Result.save` wrote.

    Raises:
        LmscoutError: there is none, it is of another program or schema, or a file that it needs is
            damaged.
    """
    path = expanded(str(path))
    if path.is_file():
        return RunFolder(path, "", {}, load_result(path))
    if not path.is_dir():
        raise LmscoutError(f"{path}: there is no such run folder")
    if not (path / SETTINGS).is_file():
        raise LmscoutError(
            f"{path}: is no run folder (it holds no {SETTINGS}); name the --out of a command"
        )
    settings = read_json_object(path / SETTINGS, surrogates=True)
    command = settings.get("command")
    if not isinstance(command, str):
        raise LmscoutError(f"{path / SETTINGS}: names no command of lmscout; name another folder")
    if settings.get("schema") != SCHEMA:
        raise LmscoutError(
            f"{path}: holds a run of schema {brief(settings.get('schema'))}, expected {SCHEMA}: "
            "report it with the version of lmscout that made it, or run it again"
        )
    if not (path / RESULT).is_file():
        return RunFolder(path, command, settings, None, NOT_FINISHED)
    try:
        return RunFolder(path, command, settings, load_result(path))
    except LmscoutError as error:
        return RunFolder(path, command, settings, None, str(error))


def shown_settings(run: RunFolder) -> list[tuple[str, str]]:
    """Names and values of the settings, nested ones flat."""
    rows: list[tuple[str, str]] = []

    def add(name: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, one in value.items():
                add(f"{name}.{key}" if name else str(key), one)
        elif isinstance(value, list) and len(value) <= _MOST_ITEMS:
            rows.append((name, ", ".join(map(str, value)) or "none"))
        elif isinstance(value, list):
            rows.append((name, f"{len(value)} values"))
        elif value is not None and value != {}:
            rows.append((name, str(value)))

    add("", dict(run.settings))
    return [
        (shown(name), text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
        for name, text in rows[:_MOST_SETTINGS]
    ]
