"""The loop: an engine asks, the screen judges, the record keeps, until enough was evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmscout.discovery.deep.candidates import Candidate, fittest
from lmscout.discovery.deep.engines import Engine
from lmscout.discovery.deep.record import HALL, Record
from lmscout.discovery.deep.screen import Screen

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
    screen: Screen,
    *,
    evaluations: int,
    record: Record | None = None,
    progress: Progress | None = None,
) -> Evolution:
    """Search until so many candidates were evaluated in full.

    Args:
        engine: proposes candidates.
        screen: judges them.
        evaluations: when to stop, after the batch that reaches it; sooner where nearly
            everything that is asked is discarded.
        record: of a search that this one continues, and adds to.
        progress: called with evaluations done and wanted.

    Returns:
        What was found; the same whether the search was interrupted or not.
    """
    hall: list[Candidate] = []
    asked = number = 0

    def learn(judged: list[Candidate]) -> None:
        nonlocal hall, asked, number
        engine.tell(judged)
        known = {one.node for one in hall}
        hall = fittest([*hall, *(one for one in judged if one.node not in known)], HALL)
        asked += len(judged)
        number += 1
        if progress:
            progress(min(screen.evaluations, evaluations), evaluations)

    def going_on() -> bool:
        return screen.evaluations < evaluations and asked < _PATIENCE * evaluations

    for judged in record.batches() if record else ():
        if not going_on():
            break
        engine.ask(BATCH)  # so that its chance goes on from where it was
        screen.recall(judged)
        learn(judged)
    if record and hall:  # what was stopped may have kept a batch without showing it
        record.show(hall)
    while going_on() and (trees := engine.ask(BATCH)):
        judged = screen.judge(trees)
        if record:
            record.add(number, judged)
            record.show(fittest([*hall, *judged], HALL))
        learn(judged)
    return Evolution(
        tuple(hall), tuple(screen.best), screen.evaluations, asked, dict(screen.discarded)
    )
