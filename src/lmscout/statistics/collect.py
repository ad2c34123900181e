"""Statistics of a whole benchmark: every architecture once, in parallel, kept on disk."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmscout.architectures import ArchitectureSpec, LanguageModel
from lmscout.children import WORKER_ENDED
from lmscout.errors import LmscoutError
from lmscout.statistics.batch import Batch
from lmscout.statistics.provenance import provenance
from lmscout.statistics.reductions import chain_means
from lmscout.statistics.single_pass import INPUT_NAMES, read_model
from lmscout.statistics.store import RowStore
from lmscout.statistics.workers import Workers, worker_processes

Progress = Callable[[int, int], None]
Row = npt.NDArray[np.float64]
Measure = Callable[[ArchitectureSpec], Row]

_SAVE_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Statistics:
    """What proxies read of every architecture of a benchmark.

    Attributes:
        values: [architectures, inputs, chains, blocks] float32, NaN beyond an architecture's
            depth and where a value is not defined; 0 where a block lacks the input.
        chains: the chains of unary operations, innermost first.
        depth: [architectures] number of blocks.
        path: the file that holds them.
    """

    values: npt.NDArray[np.float32]
    chains: tuple[tuple[str, ...], ...]
    depth: npt.NDArray[np.int64]
    path: Path

    def branch(self, name: str, chain: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Block values of one input under one chain: [architectures, blocks]."""
        return self.values[:, INPUT_NAMES.index(name), self.chains.index(chain)]


@dataclass(frozen=True)
class Build:
    """How the models of architectures are built.

    Attributes:
        seed: of the models' weights.
        batch: what the models read.
        device: where they read it; the weights are drawn on the CPU, so they are the same on all.
    """

    seed: int
    batch: Batch
    device: str = "cpu"

    def __call__(self, spec: ArchitectureSpec) -> tuple[LanguageModel, Tensor]:
        """The model of one architecture and the tokens that it reads, [B, T] int64."""
        model = spec.build(self.seed)
        return model.to(self.device), self.batch.tokens(spec).to(self.device)


def collect(
    specs: Sequence[ArchitectureSpec],
    chains: Sequence[tuple[str, ...]],
    *,
    name: str,
    folder: Path,
    seed: int = 0,
    batch: Batch | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Collect the statistics of a benchmark, or read them where they were collected before.

    Every model is built and read in a worker with one thread, so that the numbers do not
    depend on how many workers there are.

    Args:
        specs: the architectures; equal ones are read once.
        chains: chains of unary operations, innermost first.
        name: prefix of the file's name.
        folder: where the file lies.
        seed: of the models' weights.
        batch: what the models read.
        workers: how the work is spread.
        progress: called with architectures done and in all.

    Returns:
        The statistics; interrupted work is continued by the next call.

    Raises:
        LmscoutError: the folder cannot be written.
    """
    batch, workers = batch or Batch(), workers or Workers()
    depth = np.array([spec.depth for spec in specs])
    columns = ["|".join(chain) for chain in chains]
    store = RowStore(
        folder,
        name,
        provenance("unary means", columns, specs, seed, batch, device=workers.device),
        (len(INPUT_NAMES), len(chains), int(depth.max())),
    )
    build = Build(seed, batch, workers.device)
    measure = partial(_measure, chains=tuple(chains), build=build, blocks=depth.max())
    fill(store, specs, measure, workers, progress)
    return Statistics(store.rows, tuple(chains), depth, store.path)


def fill(
    store: RowStore,
    specs: Sequence[ArchitectureSpec],
    measure: Measure,
    workers: Workers,
    progress: Progress | None = None,
) -> None:
    """Measure the rows of a store that are not done yet, saving as it goes.

    Args:
        store: one row an architecture.
        specs: the architectures of the rows; equal ones are measured once.
        measure: maps a spec to its row; sent to the workers.
        workers: how the work is spread.
        progress: called with rows done and in all.
    """
    places: dict[ArchitectureSpec, list[int]] = {}
    for index, spec in enumerate(specs):
        places.setdefault(spec, []).append(index)
    for indices in places.values():  # an equal architecture may be done already
        known = [index for index in indices if store.done[index]]
        for index in indices if known else []:
            store.set_row(index, store.rows[known[0]])
    todo = [spec for spec, indices in places.items() if not store.done[indices[0]]]
    if progress:
        progress(int(store.done.sum()), len(specs))
    if not todo:
        return
    max(todo, key=ArchitectureSpec.pass_bytes).require_memory()  # before the first is built
    saved = time.monotonic()
    # TensorFloat-32, in which convolutions on a GPU are by default, has 10 bits.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact, warnings.catch_warnings(), worker_processes() as started:
        rows = started(workers, partial(_in_one_thread, measure), todo)
        # A worker that has grown after a large architecture is replaced, and nothing is lost.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
        try:
            for spec, row in zip(todo, rows, strict=True):
                for index in places[spec]:
                    store.set_row(index, row)
                if progress:
                    progress(int(store.done.sum()), len(specs))
                if time.monotonic() - saved > _SAVE_EVERY:
                    store.save()
                    saved = time.monotonic()
        except BrokenExecutor as error:
            codes = re.search(r"exit codes of the workers are \{(.*)\}", str(error))
            how = codes.group(1) if codes else "without an exit code"
            raise LmscoutError(WORKER_ENDED.format(how)) from None
        finally:
            store.save()
            warnings.simplefilter("ignore")  # whoever interrupts knows that work is cancelled
            rows.close()


def _measure(
    spec: ArchitectureSpec,
    *,
    chains: tuple[tuple[str, ...], ...],
    build: Build,
    blocks: int,
) -> Row:
    row = np.full((len(INPUT_NAMES), len(chains), blocks), np.nan)
    means = partial(chain_means, chains=chains)
    row[:, :, : spec.depth] = read_model(*build(spec), means, len(chains))
    return row


def _in_one_thread(measure: Measure, spec: ArchitectureSpec) -> Row:
    with one_thread():
        return measure(spec)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: sums come out the same whatever the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
