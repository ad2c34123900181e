"""Build a benchmark: draw architectures, train them on several devices, keep the rows.

Jobs spread over processes, each on a device of its own, that end when their parent does.

Build a benchmark: draw architectures, train each by one recipe, keep what they became.

A row is on disk as soon as its model is trained, so that a build may be stopped at any moment
and goes on where it was.  A row depends on its architecture, its seed, the recipe and the
tokens alone: neither on what was trained before it nor on how many workers there are.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmscout.benchmarks.built import ROWS, TABLE, TrainedRow, read_rows, write_row, write_table
from lmscout.benchmarks.space import Space, sample
from lmscout.benchmarks.training import Recipe, TokenData, check_validation, train, window_starts
from lmscout.children import WORKER_ENDED, run_pickled, signals_held
from lmscout.errors import LmscoutError
from lmscout.files import check_folder
from lmscout.models import ArchitectureSpec
from lmscout.results import Result
from lmscout.runs import open_run

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
        update, text = failure
        raise LmscoutError(text) if update else RuntimeError(text)


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


Progress = Callable[[int, int], None]

REPLICATED = 10  # one architecture in so many is trained with several seeds
SEEDS = 3


@dataclass(frozen=True, repr=False)
class Built(Result):
    """A benchmark that was built.

    Attributes:
        folder: of the benchmark.
        n_architectures: how many it holds.
        n_models: that were trained, replicates included.
        n_left_out: architectures of which a training ended without a finite loss.
        losses: lowest and highest final loss of a training, nats/token; None if none is finite.
        seconds: of all trainings together.
    """

    folder: Path
    n_architectures: int
    n_models: int
    n_left_out: int
    losses: tuple[float, float] | None
    seconds: float

    @property
    def table(self) -> Path:
        """The file with all rows."""
        return self.folder / TABLE

    def rows(self) -> list[dict[str, Any]]:
        """One row: what was trained."""
        return [self.to_json()]

    def to_json(self) -> dict[str, object]:
        """The result as it is kept."""
        return {
            "folder": str(self.folder),
            "n_architectures": self.n_architectures,
            "n_models": self.n_models,
            "n_left_out": self.n_left_out,
            "losses": self.losses,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Job:
    """One model to train: architecture number `architecture` with seed `seed`."""

    architecture: int
    seed: int
    spec: ArchitectureSpec


def build(
    space: Space,
    n: int,
    out: Path,
    data: TokenData,
    recipe: Recipe,
    *,
    seed: int = 0,
    seeds: int = SEEDS,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Built:
    """Train architectures of a space and write a benchmark; go on with one that was begun.

    Args:
        space: what architectures are drawn from.
        n: how many architectures.
        out: the benchmark's folder.
        data: what they are trained on and judged by.
        recipe: how they are trained.
        seed: of the draw.
        seeds: with how many seeds every tenth architecture is trained; the others with one.
        device: as in `devices_of`.
        workers: models trained at once; as `default_workers` says, if None.
        progress: called with models trained and in all.

    Returns:
        What was built; of a benchmark that was finished before, the same again.

    Raises:
        LmscoutError: the folder holds another benchmark or cannot be written, the tokens do
            not suffice, or there is no such device.
    """
    if workers is not None and workers < 1:
        raise LmscoutError(f"--workers {workers}: at least one has to work")
    devices = devices_of(device)
    wanted = jobs(space, n, seed=seed, seeds=seeds)
    window_starts(len(data.train), recipe, 0)  # what does not suffice is told before any work
    check_validation(data, recipe)
    check_tokens(data, space, recipe)
    settings = {
        "space": asdict(space),
        "n": n,
        "seed": seed,
        "seeds": seeds,
        "recipe": asdict(recipe),
        "text": data.describe(),
        "precision": "float32" if devices == ("cpu",) else "bfloat16 autocast",
    }
    run = open_run(out, "bench build", settings)
    if run.finished and (out / TABLE).is_file():
        if progress:
            progress(len(wanted), len(wanted))
        return run.load(Built)
    if not run.begun:
        run.begin()
    check_folder(out / ROWS, run.name, make=True)
    todo = _missing(out, wanted)
    done = len(wanted) - len(todo)
    if progress:
        progress(done, len(wanted))
    task = partial(_train_and_keep, folder=out, data=data, recipe=recipe)
    if todo:
        count = workers or default_workers(devices)
        for finished in spread(task, todo, devices, count):
            if progress:
                progress(done + finished, len(wanted))
    rows = read_rows(out)
    kept = [rows[job.architecture, job.seed] for job in wanted]
    write_table(out, kept)
    result = _result(out, kept)
    run.end(result)
    return result


def _result(folder: Path, rows: list[TrainedRow]) -> Built:
    final = [(row.architecture, row.validation_loss[-1]) for row in rows]
    losses = [loss for _, loss in final if loss is not None]
    return Built(
        folder,
        n_architectures=len({row.architecture for row in rows}),
        n_models=len(rows),
        n_left_out=len({architecture for architecture, loss in final if loss is None}),
        losses=(min(losses), max(losses)) if losses else None,
        seconds=round(sum(row.seconds for row in rows), 2),
    )


def jobs(space: Space, n: int, *, seed: int, seeds: int) -> list[Job]:
    """The models of a benchmark, in an order in which large and small ones are mixed.

    Every tenth architecture, counted by size, is trained with several seeds.

    Args:
        space: what is drawn from.
        n: architectures.
        seed: of the draw.
        seeds: with how many seeds a tenth is trained.
    """
    specs = sample(space, n, seed)
    by_size = sorted(range(n), key=lambda index: (specs[index].parameters(), index))
    several = set(by_size[REPLICATED // 2 :: REPLICATED] or by_size[:1])
    return [
        Job(int(index), own, specs[index])
        for own in range(max(1, seeds))
        for index in np.random.default_rng(seed).permutation(n)
        if own == 0 or int(index) in several
    ]


def check_tokens(data: TokenData, space: Space, recipe: Recipe) -> None:
    """Raise LmscoutError where the space's models cannot read the tokens."""
    least = int(min(data.train.min(), data.validation.min()))
    if least < 0:
        raise LmscoutError(f"the tokens go down to {least}; a token is 0 or more")
    largest = int(max(data.train.max(), data.validation.max()))
    if largest >= space.vocabulary:
        raise LmscoutError(
            f"the tokens go up to {largest}, and models of the space {space.name} have "
            f"{space.vocabulary} of them; use another tokenizer"
        )
    if recipe.length > space.max_length:
        raise LmscoutError(
            f"windows of {recipe.length} tokens are too long for models of the space "
            f"{space.name}, which have {space.max_length} positions"
        )


def _missing(folder: Path, wanted: list[Job]) -> list[Job]:
    rows = read_rows(folder)

    def done(job: Job) -> bool:
        row = rows.get((job.architecture, job.seed))
        return row is not None and row.spec == job.spec.to_dict()

    return [job for job in wanted if not done(job)]


def _train_and_keep(
    job: Job, device: str, *, folder: Path, data: TokenData, recipe: Recipe
) -> None:
    trained = train(job.spec, job.seed, data, recipe, device)
    row = TrainedRow(
        architecture=job.architecture,
        seed=job.seed,
        spec=job.spec.to_dict(),
        parameters=job.spec.parameters(),
        validation_loss=list(trained.validation_loss),
        seconds=round(trained.seconds, 2),
        device=device if device == "cpu" else torch.cuda.get_device_name(device),
    )
    write_row(folder, row)
