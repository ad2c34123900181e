"""Measure plans on several devices, each with a copy of the model and a thread.

A device may be a worker of a cluster, which may end and return: others measure its plans meanwhile.
Results depend neither on the device nor on the number of devices, as the early-stopping limits of
a plan are known before it is measured.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise, repeat
from queue import Empty, Queue
from threading import Condition

import torch
from transformers import PreTrainedModel

from lmscout.cluster import WorkerLostError
from lmscout.errors import LmscoutError
from lmscout.pruning.evaluator import Evaluator, Measurement, Reference
from lmscout.pruning.plan import Plan, Shape
from lmscout.pruning.remote import RemoteEvaluator, filled, tensors_of

ATTEMPTS = 3  # of a plan whose worker in a cluster ends
_READY_POLL = 0.2  # seconds
_LOST = (
    f"a plan ended its worker in the cluster {ATTEMPTS} times: see Ray's log for the cause, which "
    "may be memory; then run the same command again, which continues"
)
Task = tuple[Plan, Sequence[float]]  # with the limits of `SubnetworkEvaluator.measure`


class ParallelEvaluator:
    """Evaluators of one model and one text, one for each device."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._evaluators = tuple(evaluators)
        # Devices keep their threads: the first product of a thread creates its cuBLAS handles,
        # which takes a second on an H200, as long as a plan or two of a LLaMA-7B.
        self._threads = [ThreadPoolExecutor(1) for _ in self._evaluators]

    @property
    def devices(self) -> int:
        """Number of plans that are measured at once."""
        return len(self._evaluators)

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


def replica(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A copy of a model on another device, without a temporary copy on its own device."""
    return filled(type(model), model.config, model.dtype, tensors_of(model), device)


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
        self._attempts: Counter[int] = Counter()
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
        try:
            self._wait_until_ready(device)
            while (number := self._schedule.take(device)) is not None:
                self._measure_one(device, number)
        except BaseException as error:
            self._done.put(error)

    def _measure_one(self, device: int, number: int) -> None:
        plan, limits = self._tasks[number]
        started = time.perf_counter()
        try:
            (measurement,) = self._evaluators[device].measure([plan], [limits])
        except WorkerLostError:
            self._attempts[number] += 1
            if self._attempts[number] == ATTEMPTS:
                raise LmscoutError(_LOST) from None
            self._schedule.leave(device, [number])
            self._wait_until_ready(device)
        else:
            self._done.put(Done(number, measurement, time.perf_counter() - started))

    def _wait_until_ready(self, device: int) -> None:
        """Wait for a worker to start; other devices have its plans meanwhile."""
        evaluator = self._evaluators[device]
        while isinstance(evaluator, RemoteEvaluator) and not self._schedule.closed:
            if evaluator.ready(_READY_POLL):
                break
            self._schedule.leave(device)


MeasurementQueue = SerialQueue | DeviceQueue


class Schedule:
    """The order in which devices take tasks.

    Tasks that are added together are split into one run of neighbours for each device, as
    neighbours share prefixes.  An idle device takes from the end of the longest run; the last task
    of another device's run only if nothing was added later, so that earlier tasks end first.  The
    tasks of a device that leaves are for any of them.
    """

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._count = 0
        self._added: deque[list[deque[int]]] = deque()
        self._changed = Condition()
        self._present = set(range(devices))
        self.closed = False

    def add(self, count: int) -> None:
        """Append tasks."""
        first, self._count = self._count, self._count + count
        with self._changed:
            present = sorted(self._present)
            parts = max(1, len(present))
            ends = [first + count * number // parts for number in range(parts + 1)]
            runs = [deque(range(*pair)) for pair in pairwise(ends)]
            if present:
                own = dict(zip(present, runs, strict=True))
            else:
                own = dict.fromkeys(range(self._devices), runs[0])
            if not self.closed:
                self._added.append([own.get(one, deque()) for one in range(self._devices)])
                self._changed.notify_all()

    def take(self, device: int) -> int | None:
        """Wait for the next task of a device, which may have left; None after `close`."""
        with self._changed:
            self._present.add(device)
            while not self.closed:
                if (number := self._next(device)) is not None:
                    return number
                self._changed.wait()
        return None

    def leave(self, device: int, taken: Sequence[int] = ()) -> None:
        """Give the tasks of a device to all, with those that it has taken, before all others."""
        with self._changed:
            self._present.discard(device)
            left = deque(taken)
            for runs in self._added:
                left += runs[device]
                runs[device].clear()
            if left and not self.closed:
                self._added.appendleft([left] * self._devices)
                self._changed.notify_all()

    def close(self) -> None:
        """Drop all tasks."""
        with self._changed:
            self.closed = True
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
