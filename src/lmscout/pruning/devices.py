"""Measure plans on several devices, or workers of a cluster, each with a copy of the model.

A worker may end and return: others measure its plans meanwhile.  Results depend neither on the
device nor on the number of devices, as the early-stopping limits of a plan are known before it is
measured, and a worker on a CPU has as many threads as this process.

The model is sent to a cluster once, as arrays; a text and what plans are compared to on it once
more.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, repeat
from queue import Empty, Queue
from threading import Condition
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lmscout.cluster import Cluster, Shared, Worker, WorkerLostError, connect
from lmscout.errors import LmscoutError
from lmscout.evaluation import unfilled_model
from lmscout.pruning.compensation import Compensation
from lmscout.pruning.evaluator import Evaluator, Measurement, Reference, SubnetworkEvaluator, Top
from lmscout.pruning.families import Affine, Family, Place, family_of
from lmscout.pruning.plan import Plan

ATTEMPTS = 3  # of a plan whose worker in a cluster ends
_READY_POLL = 0.2  # seconds
_LOST = (
    f"a plan ended its worker in the cluster {ATTEMPTS} times: see Ray's log for the cause, which "
    "may be memory; then run the same command again, which continues"
)
Task = tuple[Plan, Sequence[float]]  # with the limits of `SubnetworkEvaluator.measure`


@dataclass(frozen=True)
class Array:
    """A tensor as bytes, which workers of one machine read from shared memory."""

    data: npt.NDArray[np.uint8]
    dtype: torch.dtype
    shape: torch.Size

    @classmethod
    def of(cls, tensor: Tensor) -> Array:
        """The bytes of a tensor."""
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return cls(flat.numpy(), tensor.dtype, tensor.shape)

    @property
    def tensor(self) -> Tensor:
        """A view of the bytes, not to be written to."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is not writable
            return torch.from_numpy(self.data).view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Sent:
    """What a worker needs of a calibrated model."""

    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    dtype: torch.dtype
    tensors: Mapping[str, Array]
    factors: Mapping[Place, tuple[Array, Array]] | None  # of the compensation
    threads: int
    device: str  # its kind

    @classmethod
    def of(cls, model: PreTrainedModel, compensation: Compensation | None) -> Sent:
        """A model and its compensation."""
        factors = None
        if compensation is not None:
            factors = {
                place: (Array.of(factor), Array.of(product))
                for place, (factor, product) in compensation.factors.items()
            }
        return cls(
            type(model),
            model.config,
            model.dtype,
            {name: Array.of(tensor) for name, tensor in tensors_of(model).items()},
            factors,
            torch.get_num_threads(),
            model.device.type,
        )


@dataclass(frozen=True)
class MeasuredText:
    """Tokens on which plans are measured, and what plans are compared to."""

    windows: npt.NDArray[np.int64]  # [windows, T]
    quality: str
    chunks: int
    references: tuple[Reference, ...]


class Copy:
    """The dense model on a worker, with an evaluator of the text that was measured on last."""

    def __init__(self, sent: Sent) -> None:
        torch.set_num_threads(sent.threads)
        device = torch.device(sent.device)
        tensors = {name: array.tensor for name, array in sent.tensors.items()}
        self._model = filled(sent.model_class, sent.config, sent.dtype, tensors, device)
        self._family = family_of(sent.config)
        self._compensation = None
        if sent.factors is not None:
            factors = {
                place: (factor.tensor, product.tensor)
                for place, (factor, product) in sent.factors.items()
            }
            outputs = outputs_of(self._model, self._family)
            self._compensation = Compensation.of_factors(outputs, factors, device)
        self._text = ""

    def measure(self, text: Shared, plan: Plan, limits: Sequence[float]) -> Measurement:
        """Measure a plan, see `SubnetworkEvaluator.measure`."""
        if self._text != text.key:
            on: MeasuredText = text.get()
            self._evaluator = SubnetworkEvaluator(
                self._model,
                self._family,
                torch.tensor(on.windows),
                compensation=self._compensation,
                quality=on.quality,
                chunks=on.chunks,
                references=on.references,
            )
            self._text = text.key
        (measurement,) = self._evaluator.measure([plan], [limits])
        return measurement


@dataclass(frozen=True)
class RemoteCopies:
    """Workers with a copy of the model each."""

    cluster: Cluster
    workers: tuple[Worker, ...]

    @classmethod
    def begin(cls, address: str, device: torch.device) -> RemoteCopies:
        """Start workers on all machines with room; LmscoutError if there is none.

        They import what they need, which takes seconds, before the model is sent.
        """
        cluster = connect(address)
        gpus, cpus = int(device.type != "cpu"), torch.get_num_threads()
        return cls(cluster, tuple(cluster.workers(Copy, cpus=cpus, gpus=gpus)))

    def send(self, model: PreTrainedModel, compensation: Compensation | None) -> None:
        """Send the calibrated model."""
        sent = self.cluster.share(Sent.of(model, compensation))
        for worker in self.workers:
            worker.give(sent)

    def evaluators(
        self, local: SubnetworkEvaluator, windows: Tensor, quality: str
    ) -> list[RemoteEvaluator]:
        """Evaluators that compare plans to what one here compares them to."""
        references = tuple(
            (nll, top and Top(top.log_probabilities.cpu(), top.tokens.cpu()))
            for nll, top in local.references
        )
        on = MeasuredText(windows.cpu().numpy(), quality, len(references), references)
        text = self.cluster.share(on)
        return [RemoteEvaluator(local, worker, text) for worker in self.workers]


class RemoteEvaluator:
    """Measures plans on one worker, as the evaluator here would."""

    def __init__(self, local: SubnetworkEvaluator, worker: Worker, text: Shared) -> None:
        self.shape, self.references = local.shape, local.references
        self._worker, self._text = worker, text

    def ready(self, seconds: float) -> bool:
        """Whether the worker runs, after waiting for at most so long."""
        return self._worker.ready(seconds)

    def measure(
        self, plans: Sequence[Plan], limits: Iterable[Sequence[float]] | None = None
    ) -> Iterator[Measurement]:
        """Measure plans; `WorkerLostError` if the worker ends meanwhile."""
        for plan, most in zip(plans, repeat(()) if limits is None else limits, strict=False):
            yield self._worker.call("measure", self._text, plan, tuple(most))


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and buffers of a model, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def filled(
    model_class: Any,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> PreTrainedModel:
    """A model on a device with these tensors, without a temporary copy on theirs."""
    make = partial(model_class._from_config, config, dtype=dtype)
    model: Any = unfilled_model(make, device)
    for name, target in tensors_of(model).items():
        target.data = target.data.to(tensors[name].dtype)
        target.copy_(tensors[name])
    return cast(PreTrainedModel, model.eval())


def outputs_of(model: PreTrainedModel, family: Family) -> dict[Place, Affine]:
    """The output projection of every sublayer."""
    return {place: one.output for place, one in family.all_sublayers(model).items()}


class ParallelEvaluator:
    """Evaluators of one model and one text, one for each device."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._evaluators = tuple(evaluators)
        self.shape = evaluators[0].shape
        self.devices = len(evaluators)  # plans that are measured at once
        # Devices keep their threads: the first product of a thread creates its cuBLAS handles,
        # which takes a second on an H200, as long as a plan or two of a LLaMA-7B.
        self._threads = [ThreadPoolExecutor(1) for _ in self._evaluators]

    @property
    def references(self) -> tuple[Reference, ...]:
        """What plans are compared to, by chunk."""
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
