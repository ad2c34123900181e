"""The report of a run: one HTML file that is made from its folder, or from a result, alone.

`page` renders sections, the other modules write the sections of each command.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmscout.arguments import command_of, load_result
from lmscout.benchmarks.build import Built
from lmscout.benchmarks.check import Check
from lmscout.discovery.design import Design
from lmscout.discovery.discover import Discovery
from lmscout.discovery.explain import Explanation, Forms
from lmscout.discovery.rank import RankResult
from lmscout.discovery.selection import Selection
from lmscout.discovery.symbolic_search import DeepDiscovery
from lmscout.errors import LmscoutError, brief, shown
from lmscout.evaluation import Evaluation
from lmscout.files import write_file
from lmscout.plots.pruning import pairs_of
from lmscout.pruning.results import Pruning
from lmscout.pruning.study_record import RecordedPairs
from lmscout.reading import expanded, read_json_object
from lmscout.reports import discovery, others, pruning
from lmscout.reports.page import Content, Page, Section, Table, Verdict, render
from lmscout.results import SCHEMA, Path_, Result
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

    LmscoutError if there is none, it is of another program or schema, or a file is damaged.
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


def write_report(run: Path_, out: Path_ | None = None, beside: Path_ | None = None) -> Path:
    """Write the report of a run folder, or of the file of a result; see `lmscout.report`."""
    read = read_run(Path(run))
    target = Path(out) if out is not None else _default_target(read)
    page = page_of(read, None if beside is None else Path(beside), target if out else None)
    write_file(target, render(page), name=f"report {target}", remedy="name another with --out")
    return target


def save_report(result: Result, path: Path | str) -> None:
    """Write the report of a result; see `lmscout.results.Result.save_report`."""
    name = command_of(result)
    page = page_of(RunFolder(Path(path), name, {}, result))
    write_file(Path(path), render(page), remedy="name another file")


def _default_target(read: RunFolder) -> Path:
    if read.folder is None:
        return read.path.with_suffix(".html")
    return read.folder / "report.html"


def page_of(read: RunFolder, beside: Path | None = None, out: Path | None = None) -> Page:
    """The page of a run, with the proxies of a `rank` run beside a discovered one.

    `out` is where it is written, if not in the run folder.  LmscoutError if there is nothing to
    show, or a file is damaged.
    """
    result = read.result
    if beside is not None and not isinstance(result, Discovery | DeepDiscovery):
        raise LmscoutError("--beside is for the report of a discover run: leave it out")
    state = ""
    if result is not None:
        try:
            content = _content(result, read.folder, beside)
        except (ArithmeticError, LookupError, ValueError) as error:
            raise LmscoutError(
                f"{read.path}: damaged result ({type(error).__name__}: {error}): run it again"
            ) from error
    else:
        content = _running(read)
        state = "not finished" if read.problem == NOT_FINISHED else "damaged"
        if state == "damaged":
            warning = Verdict(f"The result cannot be read: {read.problem}.", "bad")
            content = replace(content, verdicts=[warning])
    rows = shown_settings(read)
    if rows:
        table = Table("All settings", "setting; value:wide", rows)
        content = replace(content, sections=[*content.sections, Section("Settings", [table])])
    command = read.command or command_of(result)
    again = "result.save_report(path)"
    if read.settings or read.path.is_file():
        end = f" --out {shlex.quote(str(out))}" if out else ""
        again = f"lmscout report {shlex.quote(str(read.path))}{end}"
    return Page(
        command=command,
        title=_title(read),
        content=content,
        state=state,
        source=f"the run folder {read.path}" if read.folder else "a result",
        again=again,
    )


def _content(result: Result, folder: Path | None, beside: Path | None) -> Content:
    """What there is to say of a result."""
    match result:
        case Pruning():
            return pruning.content(result, _pairs(result, folder))
        case Discovery() | DeepDiscovery():
            return discovery.content(result, folder, beside)
        case Built():
            return others.build_content(folder or result.folder, result)
    simple: dict[type, Callable[[Any], Content]] = {
        Check: others.check_content,
        Design: others.design_content,
        Evaluation: others.eval_content,
        Explanation: discovery.explain_content,
        Forms: discovery.forms_content,
        RankResult: discovery.rank_content,
        Selection: others.selection_content,
    }
    if type(result) not in simple:
        raise LmscoutError(f"a {type(result).__name__} holds nothing that can be shown in a report")
    return simple[type(result)](result)


def _running(read: RunFolder) -> Content:
    """What there is to say of a run without a result."""
    assert read.folder is not None
    if read.command == "prune":
        return pruning.running(read.folder, read.problem)
    if read.command == "bench build":
        return others.build_content(read.folder, None, read.settings.get("n"))
    if read.command == "discover":
        return discovery.running(read.folder, read.problem)
    raise LmscoutError(f"{read.folder}: {read.problem}, and there is nothing to show yet")


def _pairs(result: Pruning, folder: Path | None) -> RecordedPairs | None:
    """The pairs in the run folder, or of a result alone in its SQLite file; None if unreadable."""
    try:
        return pairs_of(result if folder is None else folder)
    except LmscoutError:
        return None


def _title(read: RunFolder) -> str:
    """What the run is of."""
    one, result = read.settings, read.result
    if read.command == "prune" and one:
        return pruning.facts(one)
    for name in ("benchmark", "model", "folder", "space"):
        value = getattr(result, name, None)
        if isinstance(value, str | Path):
            proxy = getattr(result, "proxy", None) if name == "space" else None
            text = value.name if isinstance(value, Path) else value
            return f"{text}, by {proxy}" if proxy is not None else text
    benchmarks = one.get("benchmarks")
    if isinstance(benchmarks, list):
        return ", ".join(map(str, benchmarks))
    if isinstance(result, DeepDiscovery):
        return ", ".join(each.benchmark for each in result.findings)
    return str(one.get("benchmark") or one.get("model") or read.path.name)
