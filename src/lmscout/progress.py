"""Progress of long work as a person sees it: a bar for each stage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lmscout.stages import Progress


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
