"""Measure plans on several devices, each with a copy of the model and a thread.

Results depend neither on the device nor on the number of devices, as the early-stopping limits of
a plan are known before it is measured.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, repeat
from queue import Empty, Queue
from threading import Condition
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lmscout.evaluation import unfilled_model
from lmscout.pruning.evaluator import Evaluator, Measurement, Reference
from lmscout.pruning.plan import Plan, Shape

Task = tuple[Plan, Sequence[float]]  # with the limits of `SubnetworkEvaluator.measure`


class ParallelEvaluator:
    """Evaluators of one model and one text, one for each device."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._evaluators = tuple(evaluators)
        # Devices keep their threads: the first product of a thread creates its cuBLAS handles,
        # which takes a second on an H200, as long as a plan or two of a LLaMA-7B.
        self._threads = [ThreadPoolExecutor(1) for _ in self._evaluators]

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
        """Negative log-likelihood of the dense model, nats/token."""
        return self._evaluators[0].dense_nll

    @property
    def references(self) -> tuple[Reference, ...]:
        """Predictions that plans are compared to, chunk by chunk."""
        return self._evaluators[0].references

    def measure(
        self, plans: Sequence[Plan], limits: Iterable[Sequence[float]] | None = None
    ) -> Iterator[Measurement]:
        """Measure plans, and yield them in order, as `SubnetworkEvaluator.measure`."""
        tasks = list(zip(plans, repeat(()) if limits is None else limits, strict=False))
        early: dict[int, Measurement] = {}
        with closing(self.queue()) as queue:
            queue.add(tasks)
            for number in range(len(tasks)):
                while number not in early:
                    if (done := queue.take()) is not None:
                        early[done.number] = done.measurement
                yield early.pop(number)

    def queue(self) -> DeviceQueue:
        """A queue whose plans the devices measure."""
        return DeviceQueue(self._evaluators, self._threads)


@torch.no_grad()
def replica(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A copy of a model on another device, without a temporary copy on its own device."""
    model_class: Any = type(model)
    make = partial(model_class._from_config, model.config, dtype=model.dtype)
    other: Any = unfilled_model(make, device)
    sources = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    targets = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for name, target in targets.items():
        target.data = target.data.to(sources[name].dtype)
        target.copy_(sources[name])
    return cast(PreTrainedModel, other.eval())


@dataclass(frozen=True)
class Done:
    """A measured plan: the number of its task in the order of adding, from 0, and its duration."""

    number: int
    measurement: Measurement
    seconds: float


class SerialQueue:
    """Measures in the thread that takes results, in order."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._pending: deque[Sequence[Task]] = deque()
        self._measuring: Iterator[Measurement] = iter(())
        self._number = -1

    def add(self, tasks: Sequence[Task]) -> None:
        """Append plans; those that share a prefix are neighbours."""
        self._pending.append(tasks)

    def take(self) -> Done | None:
        """Measure the next plan."""
        started = time.perf_counter()
        while (measurement := next(self._measuring, None)) is None:
            tasks = self._pending.popleft()
            self._measuring = self._evaluator.measure(
                [plan for plan, _ in tasks], [limits for _, limits in tasks]
            )
        self._number += 1
        return Done(self._number, measurement, time.perf_counter() - started)

    def wake(self) -> None:
        """Do nothing, as `take` does not wait."""

    def close(self) -> None:
        """End the measurement."""
        if isinstance(self._measuring, Generator):
            self._measuring.close()


class DeviceQueue:
    """Devices measure plans, each in its thread, until `close`."""

    def __init__(self, evaluators: Sequence[Evaluator], threads: Sequence[Executor]) -> None:
        """Start measuring with an evaluator, of one model and one text, in each of the threads."""
        self._evaluators = evaluators
        self._schedule = Schedule(len(evaluators))
        self._tasks: list[Task] = []
        self._done: Queue[Done | BaseException | None] = Queue()
        self._workers = [
            thread.submit(self._measure, device) for device, thread in enumerate(threads)
        ]

    def add(self, tasks: Sequence[Task]) -> None:
        """Append plans; those that share a prefix are neighbours."""
        self._tasks += tasks
        self._schedule.add(len(tasks))

    def take(self) -> Done | None:
        """Wait for the next result; None after `wake`."""
        while True:
            try:  # waiting without a timeout ignores Control-C on some systems
                done = self._done.get(timeout=1)
            except Empty:
                continue
            if isinstance(done, BaseException):
                raise done
            return done

    def wake(self) -> None:
        """Interrupt a `take`, the present or the next one."""
        self._done.put(None)

    def close(self) -> None:
        """Finish the plans that are being measured, and drop the rest."""
        self._schedule.close()
        wait(self._workers)

    def _measure(self, device: int) -> None:
        evaluator = self._evaluators[device]
        while (number := self._schedule.take(device)) is not None:
            plan, limits = self._tasks[number]
            started = time.perf_counter()
            try:
                (measurement,) = evaluator.measure([plan], [limits])
            except BaseException as error:
                self._done.put(error)
                return
            self._done.put(Done(number, measurement, time.perf_counter() - started))


MeasurementQueue = SerialQueue | DeviceQueue


class Schedule:
    """The order in which devices take tasks.

    Tasks that are added together are split into one run of neighbours for each device, as
    neighbours share prefixes.  An idle device takes from the end of the longest run; the last task
    of another device's run only if nothing was added later, so that earlier tasks end first.
    """

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._count = 0
        self._added: deque[list[deque[int]]] = deque()
        self._changed = Condition()
        self._closed = False

    def add(self, count: int) -> None:
        """Append tasks."""
        first, self._count = self._count, self._count + count
        ends = [first + count * number // self._devices for number in range(self._devices + 1)]
        with self._changed:
            if not self._closed:
                self._added.append([deque(range(*pair)) for pair in pairwise(ends)])
                self._changed.notify_all()

    def take(self, device: int) -> int | None:
        """Wait for the next task of a device; None after `close`."""
        with self._changed:
            while not self._closed:
                if (number := self._next(device)) is not None:
                    return number
                self._changed.wait()
        return None

    def close(self) -> None:
        """Drop all tasks."""
        with self._changed:
            self._closed = True
            self._added.clear()
            self._changed.notify_all()

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
