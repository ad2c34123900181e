"""The files of a built benchmark: a row for each model that was trained, and the settings.

- ``settings.json``: what decides the numbers: space, recipe, tokens, seeds.
- ``rows/``: one file a trained model, while the benchmark is being built.
- ``table.jsonl``: all rows, one a line, once the last of them is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lmscout.benchmarks.rows import Row, checked
from lmscout.errors import LmscoutError
from lmscout.files import remove_drafts, write_file
from lmscout.reading import parse_json_lines, read_json, read_json_object, read_text
from lmscout.runs import SETTINGS

ROWS, TABLE = "rows", "table.jsonl"
MOST_LOSS = 1e6  # nats/token, up or down: sums of squares of such losses are finite


Loss = Annotated[float, Field(ge=-MOST_LOSS, le=MOST_LOSS)]


class TrainedRow(Row):
    """One trained model.

    Attributes:
        architecture: its number in the benchmark; rows of one number differ in the seed.
        seed: of weights and order.
        spec: what `ArchitectureSpec.to_dict` gave.
        parameters: how many.
        validation_loss: on the way, the last one at the end, nats a token; None where it was
            not finite.
        seconds: of training.
        device: what trained it.
    """

    architecture: Annotated[int, Field(ge=0)]
    seed: int
    spec: dict[str, Any]
    parameters: int
    validation_loss: Annotated[list[Loss | None], Field(min_length=1)]
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    device: str


def row_path(folder: Path, architecture: int, seed: int) -> Path:
    """Where the row of one trained model is."""
    return folder / ROWS / f"{architecture:05d}-{seed}.json"


def write_row(folder: Path, row: TrainedRow) -> None:
    """Put a row on disk, whole and for good."""
    write_file(row_path(folder, row.architecture, row.seed), _line(row))


def read_rows(folder: Path) -> dict[tuple[int, int], TrainedRow]:
    """The rows that are there, by architecture and seed; a damaged one counts as absent."""
    rows = {}
    for path in sorted((folder / ROWS).glob("*.json")):
        try:
            row = checked(TrainedRow, read_json(path), str(path))
        except LmscoutError:
            continue
        rows[row.architecture, row.seed] = row
    return rows


def write_table(folder: Path, rows: Iterable[TrainedRow]) -> Path:
    """Put all rows into one file, by architecture and seed."""
    ordered = sorted(rows, key=lambda row: (row.architecture, row.seed))
    path = folder / TABLE
    write_file(path, "".join(map(_line, ordered)))
    remove_drafts(folder / ROWS)
    return path


def read_table(folder: Path) -> list[TrainedRow]:
    """All rows of a finished benchmark.

    Raises:
        LmscoutError: it is not there, not finished, or a line is damaged.
    """
    path = folder / TABLE
    if not path.exists():
        unfinished = (folder / SETTINGS).exists()
        raise LmscoutError(
            f"{folder}: its building is not finished; start the same lmscout bench build again"
            if unfinished
            else f"{folder}: no {TABLE}; expected a folder that lmscout bench build wrote"
        )
    text = read_text(path)
    if text.lstrip().startswith("["):
        raise LmscoutError(f"{path}: is a JSON array; expected JSON lines, one row a line")
    rows = [
        checked(TrainedRow, values, f"{path}, line {number}")
        for number, values in parse_json_lines(text, str(path))
    ]
    if not rows:
        raise LmscoutError(f"{path}: holds no rows")
    return rows


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a benchmark.

    Raises:
        LmscoutError: they are not there, not JSON or no object.
    """
    return read_json_object(folder / SETTINGS)


def _line(row: TrainedRow) -> str:
    return json.dumps(row.model_dump(), allow_nan=False) + "\n"
