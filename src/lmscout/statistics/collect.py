"""Statistics of a whole benchmark, in parallel, cached in a file that survives interruption."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from lmscout.errors import LmscoutError
from lmscout.files import check_folder, remove_drafts, write_file
from lmscout.memory import require_memory
from lmscout.models import ArchitectureSpec, LanguageModel
from lmscout.reading import check_safetensors_header
from lmscout.statistics.reductions import chain_means
from lmscout.statistics.single_pass import INPUT_NAMES, Batch, read_model
from lmscout.statistics.workers import Workers, worker_processes

FORMAT = 2
"""Version of the numbers.  Increment it with a change of any of them beyond rounding: files of
another format are collected again.  A test compares recorded numbers
(tests/statistics/recorded_values.py)."""

Progress = Callable[[int, int], None]
Row = npt.NDArray[np.float64]
Measure = Callable[[ArchitectureSpec], Row]

_PROVENANCE = "provenance"
_REMEDY = "name another folder with LMSCOUT_CACHE"
_SAVE_EVERY = 10.0  # seconds


def provenance(
    what: str,
    columns: Sequence[str],
    specs: Sequence[ArchitectureSpec],
    seed: int,
    batch: Batch,
    *,
    device: str = "cpu",
) -> dict[str, Any]:
    """Everything that the numbers of one file depend on, as JSON data.

    These are the kind of the numbers, such as "unary means", their names, the architectures in the
    order of the rows, the models' weights and input, and the kind of device unless it is the CPU.
    """
    kind = torch.device(device).type
    return {
        "what": what,
        "columns": list(columns),
        "seed": seed,
        "batch": asdict(batch),
        "architectures": [spec.to_dict() for spec in specs],
        "format": FORMAT,
        "torch": torch.__version__,
        **({} if kind == "cpu" else {"device": kind}),
    }


class RowStore:
    """An array with one row per architecture, kept on disk with its provenance.

    The file's name holds the digest of the provenance, and its header the provenance itself.  A
    file that cannot be read, or whose header differs, is started anew.

    Attributes:
        path: the file.
        rows: [n, ...] of the dtype given, NaN in rows that are not done.
        done: [n] bool.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        provenance: Mapping[str, Any],
        row_shape: tuple[int, ...],
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._provenance = json.dumps(provenance, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(self._provenance.encode()).hexdigest()[:16]
        self.path = folder / f"{name}-{digest}.safetensors"
        n = len(provenance["architectures"])
        require_memory(
            f"{n} rows of {' x '.join(map(str, row_shape))} numbers",
            n * math.prod(row_shape) * np.dtype(dtype).itemsize,
            "use a smaller benchmark",
        )
        self.rows: npt.NDArray[Any] = np.full((n, *row_shape), np.nan, dtype)
        self.done: npt.NDArray[np.bool_] = np.zeros(n, bool)
        remove_drafts(folder)
        check_folder(folder, f"cache folder {folder}", _REMEDY, make=True)
        self._read()

    def set_row(self, index: int, row: npt.NDArray[np.floating]) -> None:
        """Set one architecture's numbers; `save` writes them to disk."""
        with np.errstate(over="ignore"):  # infinity beyond the dtype
            self.rows[index] = row
        self.done[index] = True

    def save(self) -> None:
        """Write the file atomically; LmscoutError if it cannot be written."""
        tensors = {"rows": self.rows, "done": self.done.astype(np.uint8)}
        write_file(
            self.path,
            lambda draft: save_file(tensors, draft, metadata={_PROVENANCE: self._provenance}),
            name=f"cache file {self.path}",
            remedy=_REMEDY,
        )

    def _read(self) -> None:
        try:
            check_safetensors_header(self.path)
            with safe_open(self.path, framework="numpy") as stored:
                if (stored.metadata() or {}).get(_PROVENANCE) != self._provenance:
                    return
                rows, done = stored.get_tensor("rows"), stored.get_tensor("done")
        except (OSError, SafetensorError, LmscoutError, TypeError, ValueError, AttributeError):
            return  # absent, unreadable or damaged: collect again
        expected = (self.rows.shape, self.rows.dtype, self.done.shape)
        if (rows.shape, rows.dtype, done.shape) == expected:
            self.rows, self.done = rows, done.astype(bool)


@dataclass(frozen=True)
class Statistics:
    """Block values of every architecture of a benchmark.

    They are NaN beyond an architecture's depth and where a value is not defined, and 0 where a
    block lacks the input.
    """

    values: npt.NDArray[np.float32]  # [architectures, inputs, chains, blocks]
    chains: tuple[tuple[str, ...], ...]  # of unary operations, innermost first
    depth: npt.NDArray[np.int64]  # [architectures] number of blocks
    path: Path  # the cache file

    def branch(self, name: str, chain: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Block values of one input under one chain: [architectures, blocks]."""
        return self.values[:, INPUT_NAMES.index(name), self.chains.index(chain)]


@dataclass(frozen=True)
class Build:
    """How models are built."""

    seed: int  # of the weights: the same uniform numbers on all devices
    batch: Batch  # input of the model
    device: str = "cpu"  # of model and input

    def __call__(
        self, spec: ArchitectureSpec, dtype: torch.dtype = torch.float32
    ) -> tuple[LanguageModel, Tensor]:
        """The model of one architecture and its input tokens, [B, T] int64.

        Weights are drawn in float32; another type holds the same numbers.
        """
        spec.require_memory(dtype.itemsize)
        with torch.device(self.device):
            model = spec.build(self.seed)
        return model.to(dtype), self.batch.tokens(spec).to(self.device)


class Options(TypedDict, total=False):
    """Options of every function that evaluates the architectures of a benchmark."""

    name: Required[str]  # prefix of the cache file's name
    folder: Required[Path]  # cache folder
    seed: int  # of the models' weights
    batch: Batch | None  # input of the models
    workers: Workers | None  # how architectures are spread over workers
    progress: Progress | None  # called with architectures done and in all


def collect(
    specs: Sequence[ArchitectureSpec], chains: Sequence[tuple[str, ...]], **options: Unpack[Options]
) -> Statistics:
    """The statistics of a benchmark under chains, innermost operation first, see `Options`.

    Every model is evaluated in one thread: the numbers do not depend on the number of workers.  The
    next call continues interrupted work.  LmscoutError if the folder cannot be written.
    """
    depth = np.array([spec.depth for spec in specs])
    columns = ["|".join(chain) for chain in chains]
    shape = (len(INPUT_NAMES), len(chains), int(depth.max()))
    measure = partial(_measure, chains=tuple(chains), blocks=shape[2])
    store = evaluated_rows(specs, ("unary means", columns), shape, measure, **options)
    return Statistics(store.rows, tuple(chains), depth, store.path)


def _measure(
    build: Build, spec: ArchitectureSpec, *, chains: tuple[tuple[str, ...], ...], blocks: int
) -> Row:
    row = np.full((len(INPUT_NAMES), len(chains), blocks), np.nan)
    means = partial(chain_means, chains=chains)
    row[:, :, : spec.depth] = read_model(*build(spec), means, len(chains))
    return row


def evaluated_rows(
    specs: Sequence[ArchitectureSpec],
    kind: tuple[str, Sequence[str]],
    row_shape: tuple[int, ...],
    measure: Callable[[Build, ArchitectureSpec], Row],
    dtype: npt.DTypeLike = np.float32,
    **options: Unpack[Options],
) -> RowStore:
    """One row of numbers per architecture, computed or read from the cache.

    The kind is that of `provenance`, with the names of the numbers; `measure` is sent to the
    workers.
    """
    batch, workers = options.get("batch") or Batch(), options.get("workers") or Workers()
    seed = options.get("seed", 0)
    source = provenance(*kind, specs, seed, batch, device=workers.device)
    store = RowStore(options["folder"], options["name"], source, row_shape, dtype)
    build = Build(seed, batch, workers.device)
    fill(store, specs, partial(measure, build), workers, options.get("progress"))
    return store


def fill(
    store: RowStore,
    specs: Sequence[ArchitectureSpec],
    measure: Measure,
    workers: Workers,
    progress: Progress | None = None,
) -> None:
    """Compute the rows of a store that are not done, and save them at intervals.

    Equal architectures are evaluated once.  LmscoutError if a worker has ended, or the file cannot
    be written.
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
    largest = max(todo, key=ArchitectureSpec.pass_bytes)
    largest.require_memory()  # before the first is built
    workers = workers.for_one() if len(todo) == 1 else workers.with_room(largest.pass_bytes())
    saved = time.monotonic()
    each = partial(_in_one_thread, measure)
    with worker_processes() as started, started(workers, each, todo) as rows:
        try:
            for spec, row in zip(todo, rows, strict=True):
                for index in places[spec]:
                    store.set_row(index, row)
                if progress:
                    progress(int(store.done.sum()), len(specs))
                if time.monotonic() - saved > _SAVE_EVERY:
                    store.save()
                    saved = time.monotonic()
        finally:
            store.save()


def _in_one_thread(measure: Measure, spec: ArchitectureSpec) -> Row:
    # TensorFloat-32, the default of convolutions on a GPU, has 10 bits.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact, one_thread():
        return measure(spec)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread, so that sums do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
