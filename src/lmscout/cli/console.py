"""Output of the commands: tables of one style, results on stdout, JSON to a file or stdout."""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmscout.errors import LmscoutError
from lmscout.files import as_json, check_file, encoded, write_file
from lmscout.progress import is_terminal

if TYPE_CHECKING:
    from lmscout.discovery import Assessment
    from lmscout.metrics import Agreement
    from lmscout.results import Result
    from lmscout.runs import Run

STDOUT = "-"
WIDTH = 80  # columns of a table, at most
_OF_RUN = (
    *("settings.json", "result.json", "lmscout.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", ".db", ".safetensors", ".parquet", ".py", ".md"),
)
_lock = threading.Lock()  # standard output is the process's
SEEN = " †"
FLATTERED = (
    "found by a search on part of this benchmark, so these figures are optimistic; "
    "docs/transfer.md has those on other benchmarks"
)
ASSESSMENT = ("ρ", "95 %", "τ", "in\ncell", "given\nsize", "top\ntenth")
"""Columns of `assessment_cells`."""


def summary(result: Result) -> str:
    """What the command prints of a result, without colours; prose is not wrapped."""
    from lmscout.arguments import command_of

    module = import_module(f"lmscout.cli.{command_of(result).split()[0]}")
    text = io.StringIO()
    with _lock, redirect_stdout(text):
        module.show(result)
    return text.getvalue()


def table_console() -> Console:
    """The console for tables, as wide as the terminal, but alike on all that are wide enough."""
    return _console(min(WIDTH, Console().width) if is_terminal(sys.stdout) else WIDTH)


def _console(width: int | None = None) -> Console:
    """A console on stdout; without colours where `Result.summary` captures the text.

    In a notebook rich would display the text rather than write it, and colours are forced there.
    """
    captured = isinstance(sys.stdout, io.StringIO)
    return Console(width=width, force_jupyter=False, force_terminal=False if captured else None)


def say(text: str, *, style: str | None = None, whole: bool = False) -> None:
    """Print a line with markup to stdout; without a terminal, or if `whole`, it is not wrapped."""
    whole = whole or not is_terminal(sys.stdout)
    _console().print(text, style=style, highlight=False, soft_wrap=whole)


def table(first: str, *columns: str, caption: str | None = None) -> Table:
    """A table of a column of names, which are folded if long, and columns of figures."""
    shown = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), caption=caption
    )
    shown.caption_justify = "left"
    shown.add_column(first, overflow="fold", vertical="bottom")
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    return shown


def print_table(shown: Table) -> None:
    """Print a table to stdout."""
    table_console().print(shown)


def print_benchmark(name: str, architectures: int, metric: str, more: str = "") -> None:
    """Print what a result was computed on."""
    say(f"[bold]{escape(name)}[/bold]: {architectures} architectures{more}; quality is {metric}")


def assessment_cells(one: Assessment) -> list[str]:
    """Cells of a table row, see `ASSESSMENT`."""
    return [
        *agreement_cells(one.agreement)[:3],
        number(one.within_cell),
        number(one.given_params),
        number(one.recall_top_tenth, 2),
    ]


def agreement_cells(one: Agreement) -> list[str]:
    """Cells of a table row: ρ, its interval, τ, its interval."""
    return [
        text
        for interval in (one.spearman, one.kendall)
        for text in (number(interval.value), f"{number(interval.low)} … {number(interval.high)}")
    ]


def number(value: float, digits: int = 3) -> str:
    """A figure for a table; a dash if it is undefined."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def check_json_target(target: str | None) -> None:
    """Raise LmscoutError, before any work, for a --json target that cannot be written."""
    if target not in (None, STDOUT):
        check_file(Path(str(target)), "--json")


def finish(
    result: Result, show: Callable[[Any], None], json: str | None, run: Run, *, kept: bool = False
) -> None:
    """Print a result, unless its JSON goes to stdout, and write it as given with --json.

    If that cannot be written, the result is saved in the run's folder unless it is there already,
    and an LmscoutError names the place.  `kept` says whether to print the run folder.
    """
    from lmscout.runs import RESULT

    if json != STDOUT:
        show(result)
        if kept:
            print(f"run folder: {run.folder}")
    try:
        if json not in (None, STDOUT) and _is_of_run(Path(str(json)), run.folder):
            raise LmscoutError(f"--json {json}: is a file of the run: name another file")
        write_values(json, result.to_json())
    except LmscoutError as error:
        if not (run.folder / RESULT).is_file():
            run.save(result)
        raise LmscoutError(f"{error}; the result is in {run.folder / RESULT}") from error


def _is_of_run(target: Path, folder: Path) -> bool:
    """Whether writing the target would replace a file of a run folder or of a model in it."""
    inside = target.resolve().is_relative_to(folder.resolve())
    return inside and (target.name in _OF_RUN or target.suffix in _OF_RUN)


def write_values(target: str | None, values: Mapping[str, object]) -> None:
    """Write one JSON object to stdout ("-") or a file; LmscoutError if it cannot be written."""
    if target is None:
        return
    if target != STDOUT:
        write_file(
            Path(target), as_json(values), name=f"--json {target}", remedy="name another file"
        )
        return
    if sys.stdout is None:
        raise LmscoutError(f"--json {STDOUT}: standard output is closed: name a file")
    text = as_json(values)  # printed in UTF-8 in any locale
    try:
        sys.stdout.flush()
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(encoded(text))
        else:
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise LmscoutError(
            f"--json {STDOUT}: standard output cannot be written ({error.strerror}): name a file"
        ) from error


def print_formulas(
    title: str, headings: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]
) -> None:
    """Print a list of figures and a formula per line, unbroken, so that it can be pasted."""
    say(f"\n{title}:")
    for figures, formula in [(headings, "formula"), *rows]:
        line = "".join(f"{figure:>8}  " for figure in figures) + formula
        table_console().print(line, soft_wrap=True, highlight=False, markup=False)
