"""Build a benchmark: draw architectures, train each by one recipe, keep a row for each model.

A row is on disk as soon as its model is trained, so a build may be stopped at any moment and
continues where it was.  A row depends on its architecture, its seed, the recipe and the tokens
alone, not on the other trainings or the number of workers.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib.externals.loky import process_executor
from joblib.externals.loky.backend import get_context

from lmscout.benchmarks.built import (
    ROWS,
    TABLE,
    TrainedRow,
    read_rows,
    row_file,
    write_row,
    write_table,
)
from lmscout.benchmarks.space import Space, sample
from lmscout.benchmarks.training import Recipe, TokenData, check_validation, train, window_starts
from lmscout.children import end_with_parent, signals_held, start_trackers
from lmscout.cluster import Cluster, connect
from lmscout.errors import LmscoutError, worker_ended
from lmscout.files import check_folder
from lmscout.models import ArchitectureSpec
from lmscout.progress import StageProgress
from lmscout.results import Result
from lmscout.runs import open_run

Task = Callable[[Any, str], None]
_Dealt = tuple[bytes, str]  # a pickled task, and a worker's device

WORKERS_A_GPU = 8
REPLICATED = 10  # one architecture in so many is trained with several seeds
SEEDS = 3


def devices_of(wanted: str) -> tuple[str, ...]:
    """The devices of ``auto`` (every GPU, or else the CPU), ``cuda``, ``cuda:1`` or ``cpu``.

    LmscoutError for another word, or if there is no such device.
    """
    gpus = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return ("cpu",)
    if wanted in ("auto", "cuda") and gpus:
        return gpus
    if wanted in gpus:
        return (wanted,)
    there = ", ".join(("cpu", *gpus))
    raise LmscoutError(f"device {wanted}: there is no such device here; there are {there}")


def _device_in(cluster: str, wanted: str) -> str:
    """The device of each worker of a cluster."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise LmscoutError(
            f"device {wanted}: a cluster gives each worker a device; give auto, cpu or cuda"
        )
    gpus = wanted != "cpu" and connect(cluster).gpus
    if wanted == "cuda" and not gpus:
        raise LmscoutError(f"device cuda: cluster {cluster} has no GPU; give auto or cpu")
    return "cuda:0" if gpus else "cpu"


def default_workers(devices: Sequence[str]) -> int:
    """A worker a core, but no more than `WORKERS_A_GPU` a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = (cores or 1) if devices == ("cpu",) else WORKERS_A_GPU * len(devices)
    return max(1, min(cores or 1, most))


def spread(task: Task, jobs: Sequence[Any], devices: Sequence[str], workers: int) -> Iterator[int]:
    """Do every job once, started in the order given, and yield how many are done.

    One worker on a CPU is this process.  Otherwise workers are processes that end with this one;
    the task is sent to each once, pickled, and devices are dealt out to them in order.
    LmscoutError if a worker died; other errors as the task raises them.
    """
    if workers == 1 and devices[0] == "cpu":
        for done, job in enumerate(jobs, start=1):
            task(job, devices[0])
            yield done
        return
    count = min(workers, len(jobs))
    context = get_context("loky")  # whose processes do not run the caller's script again
    start_trackers()
    dealt = context.SimpleQueue()
    # Little goes to a process that starts: if this one is killed while it writes, the other would
    # show a traceback.  A worker that has begun ends in silence, so the task follows then.
    # Pickled here: multiprocessing would move the tensors to shared memory, which may be small.
    dealing = threading.Thread(target=_deal, args=(dealt, task, devices, count), daemon=True)
    executor = process_executor.ProcessPoolExecutor(
        max(1, count), context=context, initializer=_begin, initargs=(os.getpid(), dealt)
    )
    try:
        with signals_held():
            dealing.start()
            futures = [executor.submit(_work, job) for job in jobs]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            yield done
    except BrokenExecutor as error:
        raise worker_ended(error) from None
    finally:
        executor.shutdown(kill_workers=True)
        dealt.close()  # ends the thread, if a worker has not taken its task
        dealing.join()


_task: Task  # of a worker
_device: str


def _deal(dealt: SimpleQueue[_Dealt], task: Task, devices: Sequence[str], workers: int) -> None:
    """Give each worker the task and a device."""
    pickled = pickle.dumps(task)
    with suppress(OSError, TypeError):  # closed, as a worker has ended
        for number in range(workers):
            dealt.put((pickled, devices[number % len(devices)]))


def _begin(parent: int, dealt: SimpleQueue[_Dealt]) -> None:
    global _task, _device
    end_with_parent(parent)
    process_executor._MAX_MEMORY_LEAK_SIZE = math.inf  # a new process would wait for a task
    torch.set_num_threads(1)
    pickled, device = dealt.get()
    _task, _device = pickle.loads(pickled), device


def _work(job: Any) -> None:
    _task(job, _device)


@dataclass(frozen=True, repr=False)
class Built(Result):
    """A benchmark that was built.

    Attributes:
        folder: of the benchmark.
        n_architectures: number of architectures.
        n_models: number of trained models, replicates included.
        n_left_out: architectures of which a training ended without a finite loss.
        losses: lowest and highest final loss of a training, nats/token; None if none is finite.
        seconds: wall time in which models were trained, in all calls that continued the build.
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
        """One row with all fields."""
        return [{name: value for name, value in self.to_dict().items() if name != "schema"}]

    def to_json(self) -> dict[str, object]:
        """The result as it is kept."""
        return self.to_dict()


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
    cluster: str | None = None,
    progress: StageProgress | None = None,
) -> Built:
    """Train architectures of a space and write a benchmark; continue one that was begun.

    See `lmscout.build_benchmark`.  The result of a benchmark that was finished before is loaded.  A
    cluster trains on its GPUs if it has any and the device is not ``cpu``.  LmscoutError if the
    folder holds another benchmark or cannot be written, the tokens do not suffice, or there is no
    such device.
    """
    if workers is not None and workers < 1:
        raise LmscoutError(f"workers {workers}: at least one has to work")
    progress = progress or (lambda done, total: None)
    devices = devices_of(device) if cluster is None else (_device_in(cluster, device),)
    wanted = jobs(space, n, seed=seed, seeds=seeds)
    window_starts(len(data.train), recipe, 0)  # refuses too few tokens before any work
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
        progress(len(wanted), len(wanted))
        return run.load(Built)
    if not run.begun:
        run.begin()
    check_folder(out / ROWS, run.name, make=True)
    rows = read_rows(out)
    todo = [job for job in wanted if not _is_done(job, rows)]
    before = len(wanted) - len(todo)
    progress(before, len(wanted))
    given: dict[str, Any] = {"folder": out, "data": data, "recipe": recipe}
    if cluster is None:
        task = partial(_train_and_keep, **given)
        ends = spread(task, todo, devices, workers or default_workers(devices))
    else:
        ends = _train_on(connect(cluster), todo, devices[0], workers, **given)
    for done in ends:
        progress(before + done, len(wanted))
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
        seconds=round(_wall_seconds(folder, rows), 2),
    )


def _wall_seconds(folder: Path, rows: list[TrainedRow]) -> float:
    """Time in which at least one model was trained; a row is written when its training ends."""
    ends = ((row_file(folder, row.architecture, row.seed).stat().st_mtime, row) for row in rows)
    wall, until = 0.0, -np.inf
    for start, end in sorted((end - row.seconds, end) for end, row in ends):
        wall += max(0.0, end - max(start, until))
        until = max(until, end)
    return wall


def jobs(space: Space, n: int, *, seed: int, seeds: int) -> list[Job]:
    """The models of a benchmark, in an order in which large and small ones are mixed.

    Every tenth architecture, counted by size, is trained with several seeds, or each one if the
    space has budgets.
    """
    specs = sample(space, n, seed)
    by_size = sorted(range(n), key=lambda index: (specs[index].parameters(), index))
    tenth = by_size[REPLICATED // 2 :: REPLICATED] or by_size[:1]
    several = set(by_size if space.budgeted else tenth)
    return [
        Job(int(index), own, specs[index])
        for own in range(max(1, seeds))
        for index in np.random.default_rng(seed).permutation(n)
        if own == 0 or int(index) in several
    ]


def check_tokens(data: TokenData, space: Space, recipe: Recipe) -> None:
    """Raise LmscoutError if the space's models cannot read the tokens."""
    least = int(min(data.train.min(), data.validation.min()))
    if least < 0:
        raise LmscoutError(f"the tokens go down to {least}; a token is 0 or more")
    largest = int(max(data.train.max(), data.validation.max()))
    if largest >= space.vocabulary:
        raise LmscoutError(
            f"the tokens go up to {largest}, and models of the space {space.name} have "
            f"{space.vocabulary} of them; give the space a vocabulary of {largest + 1} or more, or "
            "other tokens (--corpus)"
        )
    if recipe.length > space.max_length:
        raise LmscoutError(
            f"windows of {recipe.length} tokens are too long for models of the space "
            f"{space.name}, which have {space.max_length} positions"
        )


def _is_done(job: Job, rows: dict[tuple[int, int], TrainedRow]) -> bool:
    row = rows.get((job.architecture, job.seed))
    return row is not None and row.spec == job.spec.to_dict()


def _train_and_keep(
    job: Job, device: str, *, folder: Path, data: TokenData, recipe: Recipe
) -> None:
    write_row(folder, _trained(job, device, data=data, recipe=recipe))


def _train_on(
    cluster: Cluster,
    jobs: Sequence[Job],
    device: str,
    workers: int | None,
    *,
    folder: Path,
    **given: Any,
) -> Iterator[int]:
    """As `spread`, on a cluster; rows are written here."""
    gpus = 0.0 if device == "cpu" else 1 / WORKERS_A_GPU
    task = partial(_in_one_thread, device=device, **given)
    trained = cluster.map(task, jobs, gpus=gpus, most=workers)
    for done, (_, row) in enumerate(trained, start=1):
        write_row(folder, row)
        yield done


def _in_one_thread(job: Job, **given: Any) -> TrainedRow:
    torch.set_num_threads(1)
    return _trained(job, **given)


def _trained(job: Job, device: str, *, data: TokenData, recipe: Recipe) -> TrainedRow:
    trained = train(job.spec, job.seed, data, recipe, device)
    return TrainedRow(
        architecture=job.architecture,
        seed=job.seed,
        spec=job.spec.to_dict(),
        parameters=job.spec.parameters(),
        validation_loss=list(trained.validation_loss),
        seconds=round(trained.seconds, 2),
        device=device if device == "cpu" else torch.cuda.get_device_name(device),
    )
