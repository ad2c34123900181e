"""Workers that compute statistics in parallel: joblib's processes, Dask's, or a cluster's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor, process_executor
from joblib.parallel import BACKENDS, EXTERNAL_BACKENDS

from lmscout.children import begin_worker, signals_held, start_trackers
from lmscout.cluster import connect, in_order
from lmscout.errors import LmscoutError, brief, worker_ended
from lmscout.memory import GIB, free_at_first, usable_device

_PROCESSES = "loky"
_LOADED = "lmscout.statistics"  # by a worker
MOST_WORKERS = 1024
MOST_ON_GPU = 16  # processes that share a GPU

_CONTEXT = GIB  # of a process on a GPU, with its kernels and libraries
_PASSES = 4  # times the bytes of a pass that a process needs, with copies of all tensors
_MOST_GROWTH, _ON_GPU = GIB // 2, 4 * GIB  # of a process in host memory, until it is replaced

_MPS_FOLDERS = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
_MPS_DEFAULT = Path("/tmp/nvidia-mps/control")  # of a service that was started before
# It ends when its standard input does, so with this process, however that ends.
_MPS = """nvidia-cuda-mps-control -d && echo started && cat
echo quit | nvidia-cuda-mps-control
rm -rf -- "$CUDA_MPS_PIPE_DIRECTORY"
"""
_MPS_CLIENT = """import ctypes
cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
raise SystemExit(cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))"""
_MPS_SECONDS = 20  # until its first client has a context, at most


@dataclass(frozen=True)
class Workers:
    """How architectures are spread over workers; LmscoutError if one of the three is unusable.

    On a CUDA device the processes share the GPU, so that some draw numbers while others compute;
    work done by threads stays on the CPU.
    """

    count: int = -1  # one per core
    backend: str = _PROCESSES  # of joblib: local processes, or one that was registered
    device: str = "cpu"
    cluster: str | None = None  # address, see `lmscout.cluster.connect`; one GPU for each if on one

    def __post_init__(self) -> None:
        if self.cluster is not None:
            self._check_cluster(self.cluster)
        elif self.device != "cpu":
            self._check_device()
        if self.count == 0:
            raise LmscoutError("0 workers do nothing: give a number, or -1 for one a core")
        if abs(self.count) > MOST_WORKERS:
            raise LmscoutError(
                f"workers: there are too many (got {brief(self.count)}, expected at most "
                f"{MOST_WORKERS}); give -1 for one a core"
            )
        # Rows arrive one by one, which not every backend supports.
        able = {name for name, one in BACKENDS.items() if one.supports_return_generator}
        known = sorted(able | EXTERNAL_BACKENDS.keys())
        if self.backend not in known:
            raise LmscoutError(
                f"unknown backend {self.backend!r}: there are {', '.join(known)}, and those that "
                "were registered with joblib"
            )
        if self.backend in EXTERNAL_BACKENDS:
            try:
                with joblib.parallel_config(self.backend):
                    pass
            except (ImportError, ValueError) as error:  # not installed, or no client
                raise LmscoutError(f"backend {self.backend}: {error}") from None

    def for_one(self) -> Workers:
        """The same for one architecture: this process, where local ones would be started."""
        local = self.cluster is None and self.backend == _PROCESSES
        return replace(self, count=1) if local else self

    def _check_cluster(self, cluster: str) -> None:
        if self.backend != _PROCESSES:
            raise LmscoutError(f"cluster {cluster}: not with backend {self.backend}; give one")
        if self.device not in ("cpu", "cuda"):
            raise LmscoutError(
                f"device {self.device}: a cluster gives each worker a device (got "
                f"{brief(self.device)}, expected cpu or cuda)"
            )

    def with_room(self, pass_bytes: int) -> Workers:
        """The same with as many processes as a GPU has room for, if each needs so much a pass."""
        if self.cluster is not None or self.device_kind == "cpu":
            return self
        room = free_at_first(self.device) // (_CONTEXT + _PASSES * pass_bytes)
        return replace(self, count=max(1, min(self.processes, room)))

    def _check_device(self) -> None:
        if (kind := usable_device(self.device).type) not in ("cpu", "cuda"):
            raise LmscoutError(
                f"device {self.device}: statistics are computed in float64, which {kind} does "
                "not support (expected cpu or cuda); leave device out"
            )
        if self.backend != _PROCESSES:
            raise LmscoutError(
                f"device {self.device}: not with backend {self.backend}, since local processes "
                "share the GPU; leave one of the two out"
            )

    @property
    def threads(self) -> int:
        """The number of workers if threads of this process do the work."""
        return self.count if self.count > 0 else max(1, joblib.cpu_count() + 1 + self.count)

    @property
    def processes(self) -> int:
        """The number of workers if processes do the work."""
        return self.count if self.device_kind == "cpu" else min(self.threads, MOST_ON_GPU)

    @property
    def several(self) -> bool:
        """Whether several processes of this machine do the work."""
        local = self.cluster is None and self.backend == _PROCESSES
        return local and self.threads > 1 and self.processes != 1

    @property
    def device_kind(self) -> str:
        """The device without its number: statistics are the same on all devices of a kind."""
        return self.device.partition(":")[0]


Start = Callable[
    [Workers, Callable[[Any], Any], Iterable[Any]], AbstractContextManager[Iterator[Any]]
]


class _SharedGpu:
    """NVIDIA's multi-process service (MPS), for the workers of this process alone.

    With it the kernels of several processes run on a GPU at once, without it in turn.

    Attributes:
        environment: of its clients; empty where there is no such service, or another one runs.
    """

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        there = _MPS_FOLDERS[0] in os.environ or _MPS_DEFAULT.exists()
        if there or not shutil.which("nvidia-cuda-mps-control"):
            return
        folders = dict.fromkeys(_MPS_FOLDERS, mkdtemp(prefix="lmscout-mps-"))
        # A service that sees some devices alone gives them other numbers.
        seen = {name: one for name, one in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        with signals_held():
            self._process = subprocess.Popen(
                ["sh", "-c", _MPS],
                env=seen | folders,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert self._process.stdout
            if self._process.stdout.readline():
                try:
                    subprocess.run(
                        [sys.executable, "-c", _MPS_CLIENT],
                        env=seen | folders,
                        stderr=subprocess.DEVNULL,
                        timeout=_MPS_SECONDS,
                        check=True,
                    )
                    self.environment = folders
                except subprocess.SubprocessError:
                    pass  # contexts in turn

    def close(self) -> None:
        """End the service, after its clients."""
        if self._process:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait()


_lock = threading.Lock()
_open_blocks: list[object] = []
_executors: set[Any] = set()  # started in the open blocks
_shared_gpu: list[_SharedGpu] = []  # at most one, started in the open blocks


@contextmanager
def worker_processes() -> Iterator[Start]:
    """Share worker processes between calls, and end them with the outermost such block.

    Also a decorator of functions that make several such calls, since workers take seconds to start.
    The function that it yields opens a block with the results in the order of the arguments, which
    raises LmscoutError if a worker has ended.
    """
    with _lock:
        _open_blocks.append(None)
    try:
        yield _results
    finally:
        executors: list[Any] = []
        services: list[_SharedGpu] = []
        with _lock:
            _open_blocks.pop()
            if not _open_blocks:
                executors, services = [*_executors], [*_shared_gpu]
                _executors.clear()
                _shared_gpu.clear()
        for executor in executors:
            executor.shutdown(kill_workers=True)
        for service in services:
            service.close()


def _begin(parent: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # before CUDA is initialised
    begin_worker(parent, _LOADED)


def _growing(most: int, function: Callable[[Any], Any], argument: Any) -> Any:
    # Joblib takes growth for a leak and replaces the process, and another one takes seconds to
    # start.  A search keeps values of subtrees; a GPU's kernels are loaded when first used.
    process_executor._MAX_MEMORY_LEAK_SIZE = most
    return function(argument)


def _mps_environment() -> dict[str, str]:
    with _lock:
        if not _shared_gpu:
            _shared_gpu.append(_SharedGpu())
        return _shared_gpu[0].environment


@contextmanager
def _results(
    workers: Workers, function: Callable[[Any], Any], arguments: Iterable[Any]
) -> Iterator[Iterator[Any]]:
    with warnings.catch_warnings():
        results = _start(workers, function, arguments)
        # joblib replaces a worker that has grown after a large architecture; nothing is lost.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
        try:
            yield results
        except BrokenExecutor as error:
            raise worker_ended(error) from None
        finally:
            warnings.simplefilter("ignore")  # of work that an interrupt cancels
            results.close()


def _start(
    workers: Workers, function: Callable[[Any], Any], arguments: Iterable[Any]
) -> Generator[Any]:
    if workers.cluster is not None:
        gpus = float(workers.device != "cpu")
        most = workers.count if workers.count > 0 else None
        return in_order(connect(workers.cluster).map(function, arguments, gpus=gpus, most=most))
    processes = workers.several
    begin = {}
    if processes:
        environment = {} if workers.device_kind == "cpu" else _mps_environment()
        begin = {"initializer": _begin, "initargs": (os.getpid(), environment)}
    parallel = joblib.Parallel(
        n_jobs=workers.processes,
        backend=workers.backend,
        return_as="generator",
        pre_dispatch="2*n_jobs",
        **begin,
    )
    if processes:
        most = _MOST_GROWTH if workers.device_kind == "cpu" else _ON_GPU
        function = partial(_growing, most, function)
        start_trackers()
    try:
        with signals_held():
            results: Generator[Any] = parallel(joblib.delayed(function)(one) for one in arguments)
    finally:
        if processes:
            with _lock:
                _executors.add(get_reusable_executor(reuse=True))
    return results
