"""Benchmarks that lmscout built: a user's own, and `pico`, which is one of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path

import numpy as np

from lmscout.architectures import ArchitectureSpec, spec_from_dict
from lmscout.benchmarks.benchmark import Benchmark, require_few
from lmscout.benchmarks.rows import Row, checked
from lmscout.benchmarks.table import TABLE, TrainedRow, read_settings, read_table
from lmscout.errors import LmscoutError
from lmscout.reading import expanded
from lmscout.runs import SETTINGS

PICO = "pico"
OWN = "bench:"


class RecipePart(Row):
    """What of the recipe says what quality is."""

    tokens: int


class SettingsPart(Row):
    """What of the settings is read again."""

    recipe: RecipePart


@dataclass(frozen=True)
class Replicates:
    """One architecture, and its validation loss at the end of each of its trainings.

    Attributes:
        number: of the architecture in the benchmark.
        spec: the architecture.
        losses: one a seed, nats a token; None where a training ended with none.
    """

    number: int
    spec: ArchitectureSpec
    losses: tuple[float | None, ...]

    @property
    def identifier(self) -> str:
        """Its number, with what it is."""
        return f"{self.number:03d}-{self.spec.kind}-{self.spec.depth}x{self.spec.width}"


def built_folder(name: str) -> Path:
    """The folder of a built benchmark: ``pico`` is lmscout's own, ``bench:DIR`` a user's."""
    if name == PICO:
        return Path(str(files("lmscout.benchmarks"))) / "data" / PICO
    return expanded(name.removeprefix(OWN))


def table_digest(folder: Path) -> str | None:
    """SHA-256 of a built benchmark's rows; None if there is no table."""
    path = folder / TABLE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_built(name: str) -> Benchmark:
    """A built benchmark; quality is the negated final loss, the mean over seeds.

    An architecture of which a training ended without a finite loss is left out.

    Args:
        name: ``pico`` or ``bench:DIR``.

    Raises:
        LmscoutError: the folder holds no finished benchmark, or a damaged one.
    """
    folder = built_folder(name)
    kept = finished(replicates(folder))
    if not kept:
        raise LmscoutError(f"{folder}: no architecture was trained to a finite loss")
    settings = checked(SettingsPart, read_settings(folder), str(folder / SETTINGS))
    return Benchmark(
        name=name,
        specs=tuple(one.spec for one in kept),
        quality=-np.array([mean_loss(one) for one in kept]),
        metric=f"negated validation loss after {settings.recipe.tokens:,} tokens",
        identifiers=tuple(one.identifier for one in kept),
        source=str(folder),
    )


def replicates(folder: Path) -> list[Replicates]:
    """The architectures of a built benchmark, each with its trainings, by number.

    Raises:
        LmscoutError: the folder holds no finished benchmark, or a damaged one.
    """
    rows = read_table(folder)
    require_few(len({row.architecture for row in rows}), str(folder / TABLE))
    groups = groupby(sorted(rows, key=_number), _number)
    return [_replicates(folder, number, list(group)) for number, group in groups]


def finished(architectures: list[Replicates]) -> list[Replicates]:
    """Those whose every training ended with a finite loss."""
    return [one for one in architectures if None not in one.losses]


def mean_loss(architecture: Replicates) -> float:
    """Mean over the seeds of an architecture whose losses are all finite."""
    return float(np.mean([loss for loss in architecture.losses if loss is not None]))


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
