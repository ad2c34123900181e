"""Benchmarks that lmscout built, a user's own, `pico` and `iso`: their files, and reading them.

- ``settings.json``: space, recipe, tokens and seeds, on which all numbers depend.
- ``rows/``: one file a trained model, while the benchmark is being built.
- ``table.jsonl``: all rows, one a line, once the last of them is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AliasPath, Field

from lmscout.benchmarks.benchmark import Benchmark, Row, checked, require_few
from lmscout.errors import LmscoutError
from lmscout.files import remove_drafts, write_file
from lmscout.models import ArchitectureSpec, spec_from_dict
from lmscout.reading import expanded, parse_json_lines, read_json, read_json_object, read_text
from lmscout.runs import SETTINGS

SHIPPED = ("pico", "iso")
OWN = "bench:"
ROWS, TABLE = "rows", "table.jsonl"

MOST_LOSS = 1e6  # nats/token, up or down: sums of squares of such losses are finite
Loss = Annotated[float, Field(ge=-MOST_LOSS, le=MOST_LOSS)]


class TrainedRow(Row):
    """One trained model; rows of one architecture differ in the seed."""

    architecture: Annotated[int, Field(ge=0)]  # its number in the benchmark
    seed: int  # of weights and order
    spec: dict[str, Any]  # values of `ArchitectureSpec.to_dict`
    parameters: int
    validation_loss: Annotated[list[Loss | None], Field(min_length=1)]  # the last one at the end
    seconds: Annotated[float, Field(ge=0, le=1e9)]  # of training
    device: str


class _Settings(Row):
    tokens: int = Field(validation_alias=AliasPath("recipe", "tokens"))


def row_file(folder: Path, architecture: int, seed: int) -> Path:
    """The file of one trained model."""
    return folder / ROWS / f"{architecture:05d}-{seed}.json"


def write_row(folder: Path, row: TrainedRow) -> None:
    """Write a row atomically."""
    write_file(row_file(folder, row.architecture, row.seed), _line(row))


def read_rows(folder: Path) -> dict[tuple[int, int], TrainedRow]:
    """The rows of a build so far, by architecture and seed; a damaged one counts as absent."""
    rows = {}
    for path in sorted((folder / ROWS).glob("*.json")):
        try:
            row = checked(TrainedRow, read_json(path), str(path))
        except LmscoutError:
            continue
        rows[row.architecture, row.seed] = row
    return rows


def write_table(folder: Path, rows: Iterable[TrainedRow]) -> None:
    """Write all rows into one file, by architecture and seed."""
    ordered = sorted(rows, key=lambda row: (row.architecture, row.seed))
    write_file(folder / TABLE, "".join(map(_line, ordered)))
    remove_drafts(folder / ROWS)


def _line(row: TrainedRow) -> str:
    return json.dumps(row.model_dump(), allow_nan=False) + "\n"


def read_table(folder: Path) -> list[TrainedRow]:
    """All rows of a benchmark; LmscoutError if it is absent, unfinished, or a line is damaged."""
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


@dataclass(frozen=True)
class Replicates:
    """One architecture, and its validation loss at the end of each of its trainings."""

    number: int  # of the architecture in the benchmark
    spec: ArchitectureSpec  # the architecture
    losses: tuple[float | None, ...]  # one a seed, nats/token; None if a training ended with none

    @property
    def identifier(self) -> str:
        """Number, kind, depth and width."""
        return f"{self.number:03d}-{self.spec.kind}-{self.spec.depth}x{self.spec.width}"

    @property
    def mean_loss(self) -> float:
        """Mean over the seeds, if all losses are finite."""
        return float(np.mean([loss for loss in self.losses if loss is not None]))


def built_folder(name: str) -> Path:
    """The folder of a built benchmark: one of the `SHIPPED`, or a user's ``bench:DIR``."""
    if name in SHIPPED:
        return Path(str(files("lmscout.benchmarks"))) / "data" / name
    return expanded(name.removeprefix(OWN))


def table_digest(folder: Path) -> str | None:
    """SHA-256 of a built benchmark's rows; None if there is no table."""
    path = folder / TABLE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_built(name: str) -> Benchmark:
    """The benchmark ``pico``, ``iso`` or ``bench:DIR``; LmscoutError unless finished and whole.

    Quality is the negated final loss, the mean over seeds.  An architecture of which a training
    ended without a finite loss is left out.
    """
    folder = built_folder(name)
    kept = finished(replicates(folder))
    if not kept:
        raise LmscoutError(f"{folder}: no architecture was trained to a finite loss")
    settings = read_json_object(folder / SETTINGS)
    tokens = checked(_Settings, settings, str(folder / SETTINGS)).tokens
    return Benchmark(
        name=name,
        specs=tuple(one.spec for one in kept),
        quality=-np.array([one.mean_loss for one in kept]),
        metric=f"negated validation loss after {tokens:,} tokens",
        identifiers=tuple(one.identifier for one in kept),
        source=str(folder),
    )


def replicates(folder: Path) -> list[Replicates]:
    """The architectures of a built benchmark, each with its trainings, by number.

    LmscoutError if the folder holds no finished benchmark, or a damaged one.
    """
    rows = sorted(read_table(folder), key=_number)
    require_few(len({row.architecture for row in rows}), str(folder / TABLE))
    return [_replicates(folder, number, list(group)) for number, group in groupby(rows, _number)]


def finished(architectures: list[Replicates]) -> list[Replicates]:
    """Those whose every training ended with a finite loss."""
    return [one for one in architectures if None not in one.losses]


def _replicates(folder: Path, number: int, rows: list[TrainedRow]) -> Replicates:
    where = f"{folder / TABLE}: architecture {number}"
    if any(row.spec != rows[0].spec for row in rows):
        raise LmscoutError(f"{where}: its rows have different specs; the file is damaged")
    if len({row.seed for row in rows}) < len(rows):
        raise LmscoutError(f"{where}: two of its rows have one seed; the file is damaged")
    try:
        spec = spec_from_dict(rows[0].spec)
    except LmscoutError as error:
        raise LmscoutError(f"{where}: {error}") from None
    return Replicates(number, spec, tuple(row.validation_loss[-1] for row in rows))


def _number(row: TrainedRow) -> int:
    return row.architecture
