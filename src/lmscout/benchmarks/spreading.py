"""Jobs spread over processes, each on a device of its own, that end when their parent does."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from lmscout.children import WORKER_ENDED, run_pickled, signals_held
from lmscout.errors import LmscoutError

Task = Callable[[Any, str], None]

WORKERS_A_GPU = 8


def devices_of(wanted: str) -> tuple[str, ...]:
    """The devices that a user's word means.

    Args:
        wanted: ``auto`` (every GPU, or else the CPU), ``cuda`` (every GPU), ``cuda:1`` or
            ``cpu``.

    Raises:
        LmscoutError: it is none of these, or there is no such device.
    """
    gpus = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return ("cpu",)
    if wanted in ("auto", "cuda") and gpus:
        return gpus
    if wanted in gpus:
        return (wanted,)
    there = ", ".join(("cpu", *gpus))
    raise LmscoutError(f"--device {wanted}: there is no such device here; there are {there}")


def default_workers(devices: Sequence[str]) -> int:
    """A worker a core, but no more than `WORKERS_A_GPU` a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = (cores or 1) if devices == ("cpu",) else WORKERS_A_GPU * len(devices)
    return max(1, min(cores or 1, most))


def spread(task: Task, jobs: Sequence[Any], devices: Sequence[str], workers: int) -> Iterator[int]:
    """Do every job once.

    One worker on a CPU is this process; otherwise workers are processes, and take turns with
    the devices.

    Args:
        task: does a job on a device; is sent to each worker once, so it must be picklable.
        jobs: what to do, in this order as workers come free.
        devices: where.
        workers: how many jobs at once.

    Yields:
        How many jobs are done.

    Raises:
        LmscoutError: as the task raises it, or a worker died.
        RuntimeError: the task raised anything else; carries its traceback.
    """
    if workers == 1 and devices[0] == "cpu":
        for done, job in enumerate(jobs, start=1):
            task(job, devices[0])
            yield done
        return
    running: list[_Worker] = []
    try:
        for number in range(min(workers, len(jobs))):
            running.append(_start(task, devices[number % len(devices)]))
        yield from _hand_out(jobs, running)
    finally:
        for worker in running:
            worker.process.kill()
        for worker in running:
            worker.process.join()
            worker.pipe.close()


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection[Any, Any]


def _start(task: Task, device: str) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    call = pickle.dumps((_work, task, device))
    process = context.Process(target=run_pickled, args=(os.getpid(), call, there), daemon=True)
    resource_tracker.ensure_running()  # unblocks signals where it starts its process
    with signals_held():
        process.start()
    there.close()
    return _Worker(process, here)


def _hand_out(jobs: Sequence[Any], running: Sequence[_Worker]) -> Iterator[int]:
    left = iter(jobs)
    for worker, job in zip(running, left, strict=False):
        worker.pipe.send(job)
    done = 0
    while done < len(jobs):
        ready = wait([worker.pipe for worker in running])
        for worker in (one for one in running if one.pipe in ready):
            _raise_failure(worker)
            done += 1
            yield done
            with suppress(StopIteration):
                worker.pipe.send(next(left))


def _raise_failure(worker: _Worker) -> None:
    try:
        failure = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        raise LmscoutError(WORKER_ENDED.format(f"exit code {worker.process.exitcode}")) from None
    if failure is not None:
        told, text = failure
        raise LmscoutError(text) if told else RuntimeError(text)


def _work(task: Task, device: str, pipe: Connection[Any, Any]) -> None:
    """What a worker does: jobs from the pipe, until nobody sends any."""
    torch.set_num_threads(1)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            task(job, device)
        except LmscoutError as error:
            pipe.send((True, str(error)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
        else:
            pipe.send(None)
