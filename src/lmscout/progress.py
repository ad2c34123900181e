"""Progress of long work: stages with their seconds, bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

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
        lines = progress if isinstance(progress, LineReporter) else None
        if lines:
            lines.enter(name)
        try:
            yield None if progress is None else lambda done, total: progress(name, done, total)
        finally:
            if lines:
                lines.leave()
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(spent, 3)


def is_terminal(stream: Any) -> bool:
    """Whether a standard stream is a terminal; it may be None, closed, or an object that writes."""
    return not _is_closed(stream) and hasattr(stream, "isatty") and bool(stream.isatty())


def _is_closed(stream: Any) -> bool:
    return bool(getattr(stream, "closed", stream is None))


def duration(seconds: float) -> str:
    """A time in words: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def part_of(update: StageProgress | None, before: int, total: int) -> StageProgress | None:
    """The callback for a part of some work, after `before` steps of `total`."""
    return update and (lambda done, _: update(before + done, total))


@contextmanager
def shown_progress(progress: bool | Progress | None = True) -> Iterator[Progress | None]:
    """Show progress on stderr while the block runs.

    On a terminal each stage has a bar, removed at the end; elsewhere see `LineReporter`.  It yields
    the callback to pass on, which is a given one; None if nothing is shown.
    """
    if progress is None or progress is False or (progress is True and _is_closed(sys.stderr)):
        yield None
    elif progress is not True:
        yield progress
    elif is_terminal(sys.stderr):
        with _bars() as advance:
            yield advance
    else:
        lines = LineReporter(sys.stderr)
        with lines.ticking():
            yield lines


class LineReporter:
    """Progress as lines: one when a stage starts, then one per interval while it runs.

    Example:
        >>> import sys
        >>> report = LineReporter(sys.stdout)
        >>> report("measuring", 0, 200)
        measuring: 0/200
        >>> report("measuring", 1, 200)  # within a minute
    """

    def __init__(self, stream: TextIO, every: float = 60.0) -> None:
        """Write to a stream, with so many seconds between two lines of a stage."""
        self._stream, self._every = stream, every
        self._stage: str | None = None  # that runs
        self._steps: dict[str, str] = {}  # of every stage
        self._started: dict[str, float] = {}
        self._last: dict[str, float] = {}  # line of every stage
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report the steps of a stage that are done, and all of them."""
        with self._lock:
            first, self._stage = stage not in self._steps, stage
            self._steps[stage] = f"{done}/{total}"
            if first:
                self._last[stage] = time.monotonic()
                self._started.setdefault(stage, self._last[stage])
                self._print(f"{stage}: {done}/{total}")
            else:
                self._print_if_due()

    def enter(self, stage: str) -> None:
        """Note that a stage starts, which may never report a step."""
        with self._lock:
            self._stage = stage
            self._started[stage] = self._last[stage] = time.monotonic()

    def leave(self) -> None:
        """Note that the stage has ended."""
        with self._lock:
            self._stage = None

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Write the lines of silent stages too, from a thread that ends with the block."""
        ended = threading.Event()

        def tick() -> None:
            while not ended.wait(min(1.0, self._every)):
                with self._lock:
                    self._print_if_due()

        thread = threading.Thread(target=tick, name="lmscout progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _print_if_due(self) -> None:
        stage, now = self._stage, time.monotonic()
        if stage is None or now - self._last[stage] < self._every:
            return
        self._last[stage] = now
        steps = f"{self._steps[stage]}, " if stage in self._steps else ""
        spent = now - self._started[stage]
        self._print(f"{stage}: {steps}{spent:.0f} s")

    def _print(self, line: str) -> None:
        with suppress(OSError, ValueError):  # the stream may be closed, or its disk full
            print(line, file=self._stream, flush=True)


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
