"""Progress of long work: stages with their seconds, bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the number of its steps done, and of all."""
StageProgress = Callable[[int, int], None]
"""Called with the number of steps done, and of all."""


class Stages:
    """``with stages("measuring") as update: ...`` times a stage; ``update(done, total)`` reports.

    Attributes:
        seconds: of every completed stage by name, summed where a stage was entered again.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        """Report to a callback; None to time only."""
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, name: str) -> Iterator[StageProgress | None]:
        """Time one stage; yields its callback, None if no callback was given."""
        start = time.perf_counter()
        progress = self._progress
        yield None if progress is None else lambda done, total: progress(name, done, total)
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(spent, 3)


def part_of(update: StageProgress | None, before: int, total: int) -> StageProgress | None:
    """The callback for a part of some work, after `before` steps of `total`."""
    return update and (lambda done, _: update(before + done, total))


@contextmanager
def shown_progress(progress: bool | Progress | None = True) -> Iterator[Progress | None]:
    """Show progress on stderr while the block runs.

    On a terminal each stage has a bar, removed at the end; elsewhere see `line_reporter`.

    Args:
        progress: True to show it; False or None to show nothing; a callback to call instead.

    Yields:
        The callback to pass on; None if nothing is shown.
    """
    if progress is None or progress is False or (progress is True and sys.stderr is None):
        yield None
    elif progress is not True:
        yield progress
    elif sys.stderr.isatty():
        with _bars() as advance:
            yield advance
    else:
        yield line_reporter(sys.stderr)


def line_reporter(stream: TextIO, every: float = 60.0) -> Progress:
    """Report progress as lines: one when a stage starts, then one per interval while it runs.

    Args:
        stream: of the lines, such as ``sys.stderr``.
        every: seconds between two lines of a stage.

    Returns:
        The callback.

    Example:
        >>> import sys
        >>> report = line_reporter(sys.stdout)
        >>> report("measuring", 0, 200)
        measuring: 0/200
        >>> report("measuring", 1, 200)  # within a minute
    """
    started: dict[str, float] = {}
    last: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in started:
            started[stage] = last[stage] = now
            print(f"{stage}: {done}/{total}", file=stream, flush=True)
        elif now - last[stage] >= every:
            last[stage] = now
            spent = now - started[stage]
            print(f"{stage}: {done}/{total}, {spent:.0f} s", file=stream, flush=True)

    return report


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
            bars.start()  # only once there is work, so that an error is shown alone
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        yield advance
    finally:
        bars.stop()
