"""Build a benchmark: draw architectures, train each by one recipe, keep what they became.

A row is on disk as soon as its model is trained, so that a build may be stopped at any moment
and goes on where it was.  A row depends on its architecture, its seed, the recipe and the
tokens alone: neither on what was trained before it nor on how many workers there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmscout.architectures import ArchitectureSpec
from lmscout.benchmarks.space import Space, sample
from lmscout.benchmarks.spreading import default_workers, devices_of, spread
from lmscout.benchmarks.table import (
    ROWS,
    TABLE,
    TrainedRow,
    read_rows,
    write_row,
    write_table,
)
from lmscout.benchmarks.token_data import TokenData
from lmscout.benchmarks.training import Recipe, check_validation, train, window_starts
from lmscout.errors import LmscoutError
from lmscout.files import check_folder
from lmscout.results import Result
from lmscout.runs import open_run

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
