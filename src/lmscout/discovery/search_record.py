"""The loop of a symbolic search, and its record on disk, from which the search continues.

A search is deterministic given the candidates evaluated before, so the record is its checkpoint:
engine and filters are restored by replaying it.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmscout.discovery.engines import Candidate, Engine, fittest
from lmscout.discovery.filters import Filters
from lmscout.errors import LmscoutError
from lmscout.files import check_folder, write_file
from lmscout.progress import StageProgress
from lmscout.proxies import format_expression, parse

HALL = 50  # candidates of the hall of fame
BATCH = 12  # candidates proposed at a time: few, as racing improves from batch to batch
EVALUATIONS, HALL_OF_FAME = "evaluations", "hall_of_fame.csv"

_SAVE_EVERY = 2.0  # seconds: a file costs more than a batch
_PATIENCE = 100  # candidates proposed per evaluation, at most
_FIGURES = ("fitness", "discarded", "order", "estimate")  # of a candidate
_SCHEMA = pa.schema(
    [
        ("batch", pa.int32()),
        ("proxy", pa.string()),
        ("size", pa.int32()),
        ("fitness", pa.float64()),  # null if it was discarded
        ("discarded", pa.dictionary(pa.int32(), pa.string())),
        ("order", pa.int64()),
        ("estimate", pa.float64()),  # null unless racing dropped it
    ]
)


class Record:
    """The batches of one search in a folder, some of them in each file."""

    def __init__(
        self, folder: Path, search: int = 0, others: Sequence[Candidate] | None = ()
    ) -> None:
        """Open the record of one search of a run, new or begun.

        The hall of fame holds the best candidates of the searches before it, too; without them
        (None) it is not written.  LmscoutError if the folder cannot be written.
        """
        self._folder, self._search, self._others = folder, search, others
        self._waiting: list[dict[str, Any]] = []
        self._files, self._saved = 0, time.monotonic()
        evaluations = folder / EVALUATIONS
        check_folder(evaluations, f"run folder {folder}", "name another folder", make=True)

    def batches(self) -> Iterator[list[Candidate]]:
        """The recorded batches, up to the first missing file; LmscoutError if one is damaged."""
        while (path := self._path(self._files)).is_file():
            try:
                rows = pq.read_table(io.BytesIO(path.read_bytes())).cast(_SCHEMA).to_pylist()
            except (OSError, ValueError, pa.ArrowException) as error:
                raise LmscoutError(
                    f"{path} cannot be read ({error}): remove it and those after it, and they are "
                    "evaluated again"
                ) from error
            self._files += 1
            for _, batch in groupby(rows, itemgetter("batch")):
                yield [
                    Candidate(parse(row["proxy"]), **{name: row[name] for name in _FIGURES})
                    for row in batch
                ]

    def add(self, number: int, evaluated: Sequence[Candidate]) -> None:
        """Add a batch after those recorded, which `save` writes."""
        self._waiting += [
            {
                "batch": number,
                "proxy": format_expression(one.node),
                "size": one.node.size,
                **{name: getattr(one, name) for name in _FIGURES},
            }
            for one in evaluated
        ]

    def save(self, best: Sequence[Candidate], *, now: bool = True) -> None:
        """Write the batches that were added and `show` the best; unless `now`, at intervals."""
        if not now and time.monotonic() - self._saved < _SAVE_EVERY:
            return
        if self._waiting:
            sink = io.BytesIO()
            table = pa.Table.from_pylist(self._waiting, schema=_SCHEMA)
            pq.write_table(table, sink, compression="zstd")
            write_file(self._path(self._files), sink.getvalue())
            self._files, self._waiting = self._files + 1, []
        self.show(best)
        self._saved = time.monotonic()

    def show(self, best: Sequence[Candidate]) -> None:
        """Write the hall of fame of this search and those before it, fittest first."""
        if self._others is None:
            return
        every = {one.node: one for one in (*self._others, *best)}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["fitness", "size", "proxy"])
        for one in fittest(every.values(), HALL):
            writer.writerow([f"{one.fitness:.6f}", one.node.size, format_expression(one.node)])
        write_file(self._folder / HALL_OF_FAME, text.getvalue())

    def _path(self, number: int) -> Path:
        return self._folder / EVALUATIONS / f"{self._search}-{number:05}.parquet"


@dataclass(frozen=True)
class Evolution:
    """The result of one search."""

    hall: tuple[Candidate, ...]  # the fittest, fittest first
    front: tuple[Candidate, ...]  # Pareto front of fitness and size, shortest first
    evaluations: int  # candidates evaluated on every search architecture
    proposed: int  # candidates proposed
    discarded: dict[str, int]  # number of candidates that each rule discarded


def evolve(
    engine: Engine,
    filters: Filters,
    *,
    evaluations: int,
    record: Record | None = None,
    progress: StageProgress | None = None,
) -> Evolution:
    """Search until enough candidates were evaluated in full, or nearly every one is discarded.

    The search continues that of the record; the result is the same with and without interruption.
    """
    hall: list[Candidate] = []
    proposed = number = 0

    def add(evaluated: list[Candidate]) -> None:
        nonlocal hall, proposed, number
        engine.tell(evaluated)
        known = {one.node for one in hall}
        hall = fittest([*hall, *(one for one in evaluated if one.node not in known)], HALL)
        proposed += len(evaluated)
        number += 1
        if progress:
            progress(min(filters.evaluations, evaluations), evaluations)

    def unfinished() -> bool:
        return filters.evaluations < evaluations and proposed < _PATIENCE * evaluations

    for evaluated in record.batches() if record else ():
        if not unfinished():
            break
        engine.ask(BATCH)  # advances its random state
        filters.recall(evaluated)
        add(evaluated)
    try:
        while unfinished() and (trees := engine.ask(BATCH)):
            evaluated = filters.evaluate(trees)
            if record:
                record.add(number, evaluated)
            add(evaluated)
            if record:
                record.save(hall, now=False)
    finally:
        if record:
            record.save(hall)
    return Evolution(
        tuple(hall), tuple(filters.best), filters.evaluations, proposed, dict(filters.discarded)
    )
