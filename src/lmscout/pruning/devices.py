"""Plans measured on several devices, and added while these work.

Plans measured on several devices at once, each with a copy of the model.

What a plan is worth does not depend on where it is measured, and what comes out does not
depend on how many devices there are: limits are known before a list of plans is begun.

Plans that are waiting to be measured, to which more are added while devices work.

Where the CPU measures, whoever asks for the next measurement does it.  Devices have a thread
each, and take plans by themselves.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, repeat
from queue import Empty, Queue
from threading import Condition
from typing import Any, Protocol, cast

import torch
from transformers import PreTrainedModel

from lmscout.evaluation import unfilled_model
from lmscout.pruning.evaluator import Evaluator, Measurement, Reference
from lmscout.pruning.plan import Plan, Shape


class ParallelEvaluator:
    """As many evaluators of one model and one text, each on a device of its own."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        """Take the evaluators, one a device, all with the same text."""
        self._evaluators = tuple(evaluators)
        # Each keeps its thread: PyTorch makes a thread's cuBLAS handles when it first multiplies,
        # which takes a second on an H200, as long as a plan or two of a LLaMA-7B.
        self._threads = [ThreadPoolExecutor(1) for _ in self._evaluators]
        self._end = weakref.finalize(self, _shut_down, self._threads)

    def close(self) -> None:
        """End the threads; also done when nothing refers to this any more."""
        self._end()

    @property
    def shape(self) -> Shape:
        """Units of the dense model."""
        return self._evaluators[0].shape

    @property
    def tokens(self) -> int:
        """Predicted tokens of a complete measurement."""
        return self._evaluators[0].tokens

    @property
    def dense_nll(self) -> float:
        """Negative log-likelihood of the dense model, in nats a token."""
        return self._evaluators[0].dense_nll

    @property
    def references(self) -> tuple[Reference, ...]:
        """What plans are compared to, chunk by chunk."""
        return self._evaluators[0].references

    def measure(
        self, plans: Sequence[Plan], limits: Iterable[Sequence[float]] | None = None
    ) -> Iterator[Measurement]:
        """Measure plans, as `SubnetworkEvaluator.measure`; in the same order, as they are done."""
        tasks = list(zip(plans, repeat(()) if limits is None else limits, strict=False))
        early: dict[int, Measurement] = {}
        with self.workload() as work:
            work.add(tasks)
            for place in range(len(tasks)):
                while place not in early:
                    if (done := work.take()) is not None:
                        early[done.place] = done.measured
                yield early.pop(place)

    def workload(self) -> AbstractContextManager[Workload]:
        """Plans that are measured as they are added, while the block lasts."""
        return measured_by(self._evaluators, self._threads)


def _shut_down(threads: Sequence[ThreadPoolExecutor]) -> None:
    for thread in threads:
        thread.shutdown(wait=False, cancel_futures=True)


@torch.no_grad()
def replica(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A copy of a model on another device; on its own device nothing is copied meanwhile."""
    model_class: Any = type(model)
    make = partial(model_class._from_config, model.config, dtype=model.dtype)
    other: Any = unfilled_model(make, device)
    sources = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    targets = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for name, target in targets.items():
        target.data = target.data.to(sources[name].dtype)
        target.copy_(sources[name])
    return cast(PreTrainedModel, other.eval())


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
