"""Progress of long work: stages, their seconds, and a bar for each on a terminal.

Stages of long work: the seconds of each, and how far it is.

Progress of long work as a person sees it: a bar for each stage.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]  # a stage, what is done of it, and its size
StageProgress = Callable[[int, int], None]


class Stages:
    """``with stages("reading") as told: ...`` times a stage; ``told(done, total)`` tells of it.

    Attributes:
        seconds: of every stage that has ended; of one that was entered again, in all.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        """Tell a caller's progress, if there is one."""
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, name: str) -> Iterator[StageProgress | None]:
        """Time one stage; gives what its work tells its progress, None where nobody listens."""
        start = time.perf_counter()
        tell = self._progress
        yield None if tell is None else lambda done, total: tell(name, done, total)
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(spent, 3)


def part_of(update: StageProgress | None, before: int, total: int) -> StageProgress | None:
    """The progress of a part of some work as that of all of it.

    Args:
        update: of all of it, if anybody listens.
        before: what was done before the part began.
        total: the size of all of it.
    """
    return update and (lambda done, _: update(before + done, total))


@contextmanager
def shown_progress(progress: bool | Progress | None = True) -> Iterator[Progress | None]:
    """Show progress on stderr while the block runs.

    One bar for each stage, removed at the end; nothing where stderr is no terminal.

    Args:
        progress: True to show it; False or None to show nothing; a callback to call instead.

    Yields:
        The callback to pass on; None if nothing is shown.
    """
    if progress is None or progress is False:
        yield None
    elif progress is not True:
        yield progress
    elif sys.stderr.isatty():
        with _bars() as advance:
            yield advance
    else:
        yield None


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def advance(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            bars.start()  # not before there is work: an error should be all that is shown
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        yield advance
    finally:
        bars.stop()
