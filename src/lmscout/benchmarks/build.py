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

import numpy as np
import torch

from lmscout.architectures import ArchitectureSpec
from lmscout.benchmarks.space import Space, sample
from lmscout.benchmarks.spreading import default_workers, devices_of, spread
from lmscout.benchmarks.table import (
    TrainedRow,
    read_rows,
    write_row,
    write_settings,
    write_table,
)
from lmscout.benchmarks.token_data import TokenData
from lmscout.benchmarks.training import Recipe, check_validation, train, window_starts
from lmscout.errors import LmscoutError

Progress = Callable[[int, int], None]

REPLICATED = 10  # one architecture in so many is trained with several seeds
SEEDS = 3


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
) -> Path:
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
        The table's path.

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
    write_settings(out, settings)
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
    return write_table(out, [rows[job.architecture, job.seed] for job in wanted])


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
