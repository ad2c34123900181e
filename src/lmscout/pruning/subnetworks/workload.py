"""Plans that are waiting to be measured, to which more are added while devices work.

Where the processor measures, whoever asks for the next measurement does it.  Devices have a thread
each, and take plans by themselves.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from queue import Empty, Queue
from threading import Condition
from typing import Protocol

from lmscout.pruning.subnetworks.plan import Plan
from lmscout.pruning.subnetworks.subnetwork import Evaluator, Measurement

Task = tuple[Plan, Sequence[float]]  # with the limits of `SubnetworkEvaluator.measure`


@dataclass(frozen=True)
class Done:
    """A plan that was measured.

    Attributes:
        place: its number among all that were added.
        measured: what came out.
        seconds: that it took, on whatever measured it.
    """

    place: int
    measured: Measurement
    seconds: float


class Workload(Protocol):
    """What is to be measured, and what was."""

    def add(self, tasks: Sequence[Task]) -> None:
        """More plans, after those that were added before; ones that begin alike side by side."""

    def take(self) -> Done | None:
        """Wait for a measurement; None where `wake` came first."""

    def wake(self) -> None:
        """Let whoever waits in `take` go, now or the next time."""


@contextmanager
def measured_here(evaluator: Evaluator) -> Iterator[Workload]:
    """A workload that is done by whoever takes from it, in order."""
    work = _Here(evaluator)
    try:
        yield work
    finally:
        work.close()


class _Here:
    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._lists: deque[Sequence[Task]] = deque()
        self._measuring: Iterator[Measurement] = iter(())
        self._place = 0

    def add(self, tasks: Sequence[Task]) -> None:
        self._lists.append(tasks)

    def take(self) -> Done | None:
        started = time.perf_counter()
        while (measured := next(self._measuring, None)) is None:
            tasks = self._lists.popleft()
            self._measuring = self._evaluator.measure(
                [plan for plan, _ in tasks], [most for _, most in tasks]
            )
        self._place += 1
        return Done(self._place - 1, measured, time.perf_counter() - started)

    def wake(self) -> None:
        """Nobody ever waits."""

    def close(self) -> None:
        if isinstance(self._measuring, Generator):
            self._measuring.close()


@contextmanager
def measured_by(evaluators: Sequence[Evaluator], threads: Sequence[Executor]) -> Iterator[Workload]:
    """A workload that is done by devices, each in a thread of its own.

    At the end of the block what is under way is measured to its end, and nothing more.

    Args:
        evaluators: one a device, all of one model and one text.
        threads: one a device.
    """
    work = _Shared(evaluators)
    workers = [thread.submit(work.measure, number) for number, thread in enumerate(threads)]
    try:
        yield work
    finally:
        work.runs.close()
        wait(workers)


class _Shared:
    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self.runs = Runs(len(evaluators))
        self._evaluators = evaluators
        self._tasks: list[Task] = []
        self._done: Queue[Done | BaseException | None] = Queue()

    def add(self, tasks: Sequence[Task]) -> None:
        self._tasks += tasks  # first, as devices take them at once
        self.runs.add(len(tasks))

    def take(self) -> Done | None:
        while True:
            try:  # a wait without an end hears no Control-C on every system
                done = self._done.get(timeout=1)
            except Empty:
                continue
            if isinstance(done, BaseException):
                raise done
            return done

    def wake(self) -> None:
        self._done.put(None)

    def measure(self, number: int) -> None:
        """What a device does until the end."""
        evaluator = self._evaluators[number]
        while (place := self.runs.take(number)) is not None:
            plan, most = self._tasks[place]
            started = time.perf_counter()
            try:
                (measured,) = evaluator.measure([plan], [most])
            except BaseException as error:
                self._done.put(error)
                return
            self._done.put(Done(place, measured, time.perf_counter() - started))


class Runs:
    """Places of plans in the order in which devices take them.

    What is added at once is one run of neighbours a device, as neighbours begin alike.  A device
    that is done with its own takes from the end of the longest that is left, and goes on to what
    was added later where that is a single plan: what was added first is to be done first.
    """

    def __init__(self, devices: int) -> None:
        """Begin with nothing."""
        self._devices = devices
        self._count = 0
        self._added: deque[list[deque[int]]] = deque()
        self._more = Condition()
        self._closed = False

    def add(self, count: int) -> None:
        """So many places more, after all others."""
        first, self._count = self._count, self._count + count
        ends = [first + count * number // self._devices for number in range(self._devices + 1)]
        with self._more:
            if not self._closed:
                self._added.append([deque(range(*pair)) for pair in pairwise(ends)])
                self._more.notify_all()

    def take(self, device: int) -> int | None:
        """The next place for a device; waits for one, and gives None at the end of all."""
        with self._more:
            while not self._closed:
                if (place := self._next(device)) is not None:
                    return place
                self._more.wait()
        return None

    def close(self) -> None:
        """Nothing more is to be taken."""
        with self._more:
            self._closed = True
            self._added.clear()
            self._more.notify_all()

    def _next(self, device: int) -> int | None:
        while self._added and not any(self._added[0]):
            self._added.popleft()
        for number, runs in enumerate(self._added, start=1):
            if runs[device]:
                return runs[device].popleft()
            longest = max(runs, key=len)
            if len(longest) > 1 or (longest and number == len(self._added)):
                return longest.pop()
        return None
