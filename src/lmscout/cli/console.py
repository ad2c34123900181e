"""What the commands share of the terminal: progress on stderr, results on stdout."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lmscout.errors import LmscoutError
from lmscout.files import as_json, check_file, encoded, write_file

if TYPE_CHECKING:
    from lmscout.discovery import Assessment
    from lmscout.metrics import Agreement, Interval
    from lmscout.runs import Reported, Run

STDOUT = "-"
_OF_RUN = (
    *("settings.json", "result.json", "lmscout.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", ".db", ".safetensors", ".parquet", ".py", ".md"),
)
_WIDE = 100  # characters, from which on an assessment is shown whole
_WHERE_WIDE = (3, 4, 6)  # places among its figures of those that are shown then alone
SEEN = " †"  # behind what a search found on a part of the benchmark
FLATTERED = (
    "Found by a search that saw a part of this benchmark, so the figures flatter it: what it is "
    "worth elsewhere is in docs/transfer.md."
)
NO_BASELINE = "The configuration tells none of these architectures from another."


def table_console() -> Console:
    """The console for tables: as wide as the terminal, or wide enough when there is none."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def check_json_target(target: str | None) -> None:
    """Refuse a --json target that could not be written, before any work is done.

    Raises:
        LmscoutError: its folder does not exist.
    """
    if target not in (None, STDOUT):
        check_file(Path(str(target)), "--json")


def write_result(target: str | None, result: Reported, run: Run) -> None:
    """Write a result as exactly one JSON object to stdout ("-") or to a file.

    Args:
        target: as given with --json.
        result: what was found.
        run: whose folder holds the result; one that does not yet gets it if the target cannot be
            written.

    Raises:
        LmscoutError: the target cannot be written; says where the result is.
    """
    from lmscout.runs import RESULT

    if target not in (None, STDOUT) and _is_of_run(Path(str(target)), run.folder):
        if not (run.folder / RESULT).is_file():
            run.save(result)
        raise LmscoutError(
            f"--json {target}: is a file of the run: name another file; the result is in "
            f"{run.folder / RESULT}"
        )
    try:
        write_values(target, result.to_json())
    except LmscoutError as error:
        if not (run.folder / RESULT).is_file():
            run.save(result)
        raise LmscoutError(f"{error}; the result is in {run.folder / RESULT}") from error


def _is_of_run(target: Path, folder: Path) -> bool:
    """Whether a file would take the place of one that a run folder, or a model in it, needs."""
    inside = target.resolve().is_relative_to(folder.resolve())
    return inside and (target.name in _OF_RUN or target.suffix in _OF_RUN)


def write_values(target: str | None, values: Mapping[str, object]) -> None:
    """Write exactly one JSON object to stdout ("-") or to a file.

    Raises:
        LmscoutError: the target cannot be written.
    """
    if target is None:
        return
    if target == STDOUT:
        _print_utf8(as_json(values))
    else:
        write_file(
            Path(target), as_json(values), name=f"--json {target}", remedy="name another file"
        )


def _print_utf8(text: str) -> None:
    """Print JSON, which is UTF-8 whatever the locale."""
    if sys.stdout is None:
        raise LmscoutError(f"--json {STDOUT}: standard output is closed: name a file")
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


def assessment_table() -> Table:
    """A table for `assessment_cells`, with a first column for what was assessed."""
    table = Table(caption="intervals: 95 % bootstrap over architectures")
    add_name_column(table)
    for column in fitting(("ρ", "95 %", "τ", "95 %", "in cell", "given size", "top tenth")):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def add_name_column(table: Table, title: str = "") -> None:
    """A column of names or formulas: long ones go on below, as nothing else tells rows apart."""
    table.add_column(title, overflow="fold", min_width=len("body-parameters"))


def assessment_cells(one: Assessment) -> list[str]:
    """Cells of a table row: ρ, its interval, τ, its interval, in cell, given size, top tenth.

    Without the second interval, in cell and top tenth where the screen is narrow.
    """
    cells = agreement_cells(one.agreement)
    cells += [number(one.within_cell), number(one.given_params)]
    cells.append(number(one.recall_top_tenth, 2))
    return fitting(cells)


def fitting(figures: Sequence[str]) -> list[str]:
    """Those of the figures of an assessment, or of their headings, for which there is room."""
    narrow = table_console().width < _WIDE
    return [one for place, one in enumerate(figures) if not (narrow and place in _WHERE_WIDE)]


def agreement_cells(one: Agreement) -> list[str]:
    """Cells of a table row: ρ, its interval, τ, its interval."""
    cells = []
    for interval in (one.spearman, one.kendall):
        cells += [number(interval.value), f"{number(interval.low)} … {number(interval.high)}"]
    return cells


def difference(ahead: Interval) -> str:
    """A difference of two ρ behind a figure, and whether it may be chance; "" if undefined."""
    if not math.isfinite(ahead.value):
        return ""
    chance = "; that may be chance" if ahead.low <= 0 <= ahead.high else ""
    return f": {ahead.value:+.3f} (95 % {ahead.low:+.3f} to {ahead.high:+.3f}){chance}"


def number(value: float, digits: int = 3) -> str:
    """A figure for a table; a dash where it is not defined."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
