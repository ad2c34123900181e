"""The loop of a symbolic search and its record, from which it continues.

The record of searches: every candidate as Parquet, batch by batch, and the hall of fame.

A search is deterministic given what it was told, so the record is its checkpoint: told again,
engine and screen are where they were.

The loop: an engine asks, the screen objectives, the record keeps, until enough was evaluated.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lmscout.discovery.engines import Candidate, Engine, fittest
from lmscout.discovery.filters import FilterChain
from lmscout.errors import LmscoutError
from lmscout.files import check_folder, write_file
from lmscout.proxies import format_expression, parse

HALL = 50  # candidates of the hall of fame
EVALUATIONS, HALL_OF_FAME = "evaluations", "hall_of_fame.csv"
_SCHEMA = pa.schema(
    [
        ("proxy", pa.string()),
        ("size", pa.int32()),
        ("fitness", pa.float64()),  # null where it was discarded
        ("discarded", pa.dictionary(pa.int32(), pa.string())),
        ("order", pa.int64()),
        ("estimate", pa.float64()),  # null where it was not dropped by the race
    ]
)


class Record:
    """One search's batches in a folder; a batch is there whole or not at all."""

    def __init__(self, folder: Path, search: int = 0, others: Sequence[Candidate] = ()) -> None:
        """Open a record, new or begun.

        Args:
            folder: of all searches.
            search: the number of this one.
            others: what the searches before it found, for the hall of fame.

        Raises:
            LmscoutError: the folder cannot be written.
        """
        self._folder, self._search, self._others = folder, search, others
        evaluations = folder / EVALUATIONS
        check_folder(evaluations, f"run folder {folder}", "name another with --out", make=True)

    def batches(self) -> Iterator[list[Candidate]]:
        """What was judged before, batch by batch, up to the first that is missing.

        Raises:
            LmscoutError: a batch cannot be read.
        """
        number = 0
        while (path := self._path(number)).is_file():
            try:
                rows = pq.read_table(io.BytesIO(path.read_bytes())).to_pylist()
            except (OSError, pa.ArrowException) as error:
                raise LmscoutError(
                    f"{path} cannot be read ({error}): remove it and those after it, and they are "
                    "evaluated again"
                ) from error
            yield [
                Candidate(
                    parse(row["proxy"]),
                    row["fitness"],
                    row["discarded"],
                    row["order"],
                    row["estimate"],
                )
                for row in rows
            ]
            number += 1

    def add(self, number: int, evaluated: Sequence[Candidate]) -> None:
        """Keep a batch."""
        columns = {
            "proxy": [format_expression(one.node) for one in evaluated],
            "size": [one.node.size for one in evaluated],
            "fitness": [one.fitness for one in evaluated],
            "discarded": [one.discarded for one in evaluated],
            "order": [one.order for one in evaluated],
            "estimate": [one.estimate for one in evaluated],
        }
        table = pa.table(columns, schema=_SCHEMA)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        write_file(self._path(number), sink.getvalue())

    def show(self, best: Sequence[Candidate]) -> None:
        """Write the hall of fame of this search and those before it, fittest first."""
        every = {one.node: one for one in (*self._others, *best)}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["fitness", "size", "proxy"])
        for one in fittest(every.values(), HALL):
            writer.writerow([f"{one.fitness:.6f}", one.node.size, format_expression(one.node)])
        write_file(self._folder / HALL_OF_FAME, text.getvalue())

    def _path(self, number: int) -> Path:
        return self._folder / EVALUATIONS / f"{self._search}-{number:05}.parquet"


BATCH = 12  # candidates asked for at a time: few, as the race learns from batch to batch
_PATIENCE = 100  # candidates asked for each evaluation that is wanted, at most

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evolution:
    """What a search found.

    Attributes:
        hall: the fittest, fittest first.
        front: the fittest of every size, shortest first.
        evaluations: candidates evaluated on every search architecture.
        asked: candidates proposed.
        discarded: how many fell to which rule.
    """

    hall: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    evaluations: int
    asked: int
    discarded: dict[str, int]


def evolve(
    engine: Engine,
    filter_chain: FilterChain,
    *,
    evaluations: int,
    record: Record | None = None,
    progress: Progress | None = None,
) -> Evolution:
    """Search until so many candidates were evaluated in full.

    Args:
        engine: proposes candidates.
        filter_chain: objectives them.
        evaluations: when to stop, after the batch that reaches it; sooner where nearly
            everything that is asked is discarded.
        record: of a search that this one continues, and adds to.
        progress: called with evaluations done and wanted.

    Returns:
        What was found; the same whether the search was interrupted or not.
    """
    hall: list[Candidate] = []
    asked = number = 0

    def learn(evaluated: list[Candidate]) -> None:
        nonlocal hall, asked, number
        engine.tell(evaluated)
        known = {one.node for one in hall}
        hall = fittest([*hall, *(one for one in evaluated if one.node not in known)], HALL)
        asked += len(evaluated)
        number += 1
        if progress:
            progress(min(filter_chain.evaluations, evaluations), evaluations)

    def going_on() -> bool:
        return filter_chain.evaluations < evaluations and asked < _PATIENCE * evaluations

    for evaluated in record.batches() if record else ():
        if not going_on():
            break
        engine.ask(BATCH)  # so that its chance goes on from where it was
        filter_chain.recall(evaluated)
        learn(evaluated)
    if record and hall:  # what was stopped may have kept a batch without showing it
        record.show(hall)
    while going_on() and (trees := engine.ask(BATCH)):
        evaluated = filter_chain.evaluate(trees)
        if record:
            record.add(number, evaluated)
            record.show(fittest([*hall, *evaluated], HALL))
        learn(evaluated)
    return Evolution(
        tuple(hall),
        tuple(filter_chain.best),
        filter_chain.evaluations,
        asked,
        dict(filter_chain.discarded),
    )
