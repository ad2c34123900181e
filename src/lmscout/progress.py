"""Progress of long work as it is shown: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lmscout.stages import Progress

LINE_EVERY = 60.0  # seconds between two lines of one stage, where there is no terminal


@contextmanager
def shown_progress(progress: bool | Progress | None = True) -> Iterator[Progress | None]:
    """Show progress on stderr while the block runs.

    On a terminal, one bar for each stage, removed at the end.  Elsewhere one line when a stage
    begins, one a minute while it runs, and one when it ends.

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
        lines = _Lines()
        try:
            yield lines
        finally:
            lines.end()


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


class _Lines:
    """Lines for a log: a stage's begin and end, and one a minute between."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._start = self._last = 0.0
        self._done = self._total = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self.end()
            self._stage, self._start, self._last = stage, now, now
            print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)
        elif now - self._last >= LINE_EVERY and done < total:
            self._last = now
            print(
                f"{stage}: {done} of {total}, {now - self._start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        self._done, self._total = done, total

    def end(self) -> None:
        """Print the last line of the current stage, if there is one."""
        if self._stage is not None:
            spent = time.monotonic() - self._start
            print(
                f"{self._stage}: {self._done} of {self._total}, {spent:.0f} s, ended",
                file=sys.stderr,
                flush=True,
            )
            self._stage = None
