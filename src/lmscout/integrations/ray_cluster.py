"""A Ray cluster as `lmscout.cluster` describes it (https://docs.ray.io).

Nothing here knows what the workers do, and nothing but `lmscout.cluster` imports it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from lmscout.cluster import Shared, Worker, WorkerLostError
from lmscout.errors import LmscoutError, first_line
from lmscout.version import __version__

try:
    import ray
    from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
except ImportError as error:
    raise LmscoutError(
        f"cluster: Ray cannot be imported ({error}); pip install 'lmscout[ray]'"
    ) from error

RETRIES = 5  # of a call whose worker ends
_POLL = 1.0  # seconds after which a wait looks for signals
_CHECK = 5.0  # seconds between two looks at the head
_PATIENCE = 60.0  # seconds without the head
_NO_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"  # after which Ray ends this process
_WAITING = 2  # calls that are queued for a core, so that none waits for this process

_log = logging.getLogger("lmscout")
_connected: list[str] = []  # the address that this process has connected to


def versions() -> str:
    """What has to be the same on all machines, as results depend on it."""
    return f"lmscout {__version__}, PyTorch {version('torch').partition('+')[0]}"


class RayCluster:
    """A Ray cluster, to which this process stays connected until it ends."""

    def __init__(self, address: str) -> None:
        if ray.is_initialized() and _connected not in ([], [address]):
            ray.shutdown()
        if not ray.is_initialized():
            _start(address)
            _connected[:] = [address]

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return int(ray.cluster_resources().get("GPU", 0))

    def share(self, value: object) -> Shared:
        """Send a value to the cluster's object store."""
        return RayShared(ray.put(value))

    def workers(self, make: Callable[[Any], Any], *, cpus: int = 1, gpus: int = 0) -> list[Worker]:
        """An actor for every free place, see `lmscout.cluster.Cluster.workers`."""
        kind, each = ("GPU", gpus) if gpus else ("CPU", cpus)
        found = [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]
        room = sum(int(one // each) for one in found)
        if not room:
            raise LmscoutError(
                f"cluster: no machine has {each} {kind}s for a worker (got "
                f"{', '.join(f'{one:g}' for one in found) or 'no machine'}); start one that has, "
                "or set OMP_NUM_THREADS to the cores of a worker"
            )
        actor = ray.remote(_Actor).options(
            num_cpus=0 if gpus else cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=0,  # another worker does it: the restart may wait for a machine
            scheduling_strategy="SPREAD",
        )
        return [RayWorker(actor.remote(), _Making(versions(), make)) for _ in range(room)]

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        gpus: float = 0.0,
        most: int | None = None,
    ) -> Generator[tuple[int, Any]]:
        """A task for every item, see `lmscout.cluster.Cluster.map`."""
        task = ray.remote(_call).options(
            num_cpus=0 if gpus else 1, num_gpus=gpus, max_retries=RETRIES
        )
        sent, expected = ray.put(function), versions()
        numbered = enumerate(items)
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < (most or self._room(gpus)):
                    if (one := next(numbered, None)) is None:
                        break
                    running[task.remote(expected, sent, one[1])] = one[0]
                if not running:
                    return
                done, _ = ray.wait(list(running), timeout=_POLL)
                for ref in done:
                    yield running.pop(ref), _result(ref)
        finally:
            for ref in [] if _head.lost else running:
                ray.cancel(ref, force=True)

    def _room(self, gpus: float) -> int:
        """Calls to have in the cluster, which grows and shrinks."""
        total = _head.resources().get("GPU" if gpus else "CPU", 0) / (gpus or 1)
        return _WAITING * max(1, int(total))


@dataclass(frozen=True)
class RayShared:
    """A value in the object store."""

    ref: Any

    @property
    def key(self) -> str:
        """Identity of the value."""
        return str(self.ref.hex())

    def get(self) -> Any:
        """The value."""
        return ray.get(self.ref)


@dataclass(frozen=True)
class _Making:
    """How a worker makes its object."""

    versions: str
    make: Callable[[Any], Any]
    value: Shared | None = None  # until it is given


class RayWorker:
    """An actor, which Ray restarts on another node if its own ends."""

    def __init__(self, actor: Any, how: _Making) -> None:
        self._actor = actor
        self._how = how  # and with it the value in the object store, for restarts
        self._ping = actor.prepare.remote(how)  # imports

    def give(self, value: Shared) -> None:
        """Set the value that the object is made of, here and after a restart."""
        self._how, self._ping = replace(self._how, value=value), None

    def ready(self, seconds: float) -> bool:
        """Whether the actor runs, after waiting for at most so long."""
        started = time.monotonic()
        self._ping = self._ping or self._actor.prepare.remote(self._how)
        done, _ = ray.wait([self._ping], timeout=seconds)
        if not done:
            _head.resources()
            return False
        ping, self._ping = self._ping, None
        try:
            ray.get(ping)
        except ActorUnavailableError:  # it is being restarted
            time.sleep(max(0.0, started + seconds - time.monotonic()))
            return False
        except RayTaskError:
            return True  # an error of making the object: a call raises it
        except RayActorError as error:
            raise LmscoutError(
                f"cluster: a worker cannot be started ({first_line(error)}); install lmscout on "
                "all machines"
            ) from None
        return True

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor's object."""
        return _result(self._actor.call.remote(self._how, method, arguments))


class _Actor:
    """Holds an object, which is made with the first call, as after a restart."""

    def __init__(self) -> None:
        self._object: Any = None

    def prepare(self, how: _Making) -> None:
        """Make the object, if there is none."""
        if self._object is None:
            _check(how.versions)
            if how.value is not None:
                self._object = how.make(how.value.get())

    def call(self, how: _Making, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the object."""
        self.prepare(how)
        return getattr(self._object, method)(*arguments)


class _Head:
    """The head of the cluster, without which calls do not return.

    Attributes:
        lost: whether it has not answered for `_PATIENCE`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin with another cluster, which answers."""
        self.lost = False
        self._resources: dict[str, float] = {}
        self._looked = -math.inf
        self._answered = time.monotonic()

    def resources(self) -> dict[str, float]:
        """The resources of the cluster, at most `_CHECK` seconds old; LmscoutError if it is lost.

        Ray's own call does not return while the head is away.
        """
        with self._lock:
            if time.monotonic() - self._looked > _CHECK:
                if self._answers():
                    self._resources, self._answered = ray.cluster_resources(), time.monotonic()
                self._looked = time.monotonic()
            self.lost = self._looked - self._answered > _PATIENCE
        if self.lost:
            raise LmscoutError(
                "cluster: its first machine does not answer, or Ray has ended there; start a "
                "cluster, and run the same command again, which continues"
            )
        return self._resources

    def _answers(self) -> bool:
        if ray.util.client.ray.is_connected():
            return True  # Ray's client reports it
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_POLL).close()
        except OSError:
            return False
        return True


_head = _Head()


def _call(expected: str, function: Callable[[Any], Any], item: Any) -> Any:
    _check(expected)
    return function(item)


def _check(expected: str) -> None:
    if versions() != expected:
        raise LmscoutError(
            f"cluster: {os.uname().nodename} has {versions()} (expected {expected}, as here); "
            "install the same on all machines"
        )


def _result(ref: Any) -> Any:
    """The result of a call, or its error as it was raised there."""
    while not ray.wait([ref], timeout=_POLL)[0]:
        _head.resources()
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise error.cause or error from None
    except RayActorError:
        raise WorkerLostError from None
    except RayError as error:
        raise LmscoutError(
            f"cluster: a call ended its worker {RETRIES + 1} times, or cannot be placed "
            f"({first_line(error)}); run the same command again, with fewer workers if "
            "memory ran out"
        ) from None


def _start(address: str) -> None:
    """Connect this process; its signal handlers stay as they are."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning
    more = {"include_dashboard": False} if address == "local" else {}
    _head.reset()
    if address != "local":  # whose processes would inherit it
        os.environ[_NO_PATIENCE] = str(365 * 24 * 3600)
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    # Ray prints what happens to nodes on standard output, where results go.
    ray._private.worker.print_to_stdstream = _report
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except (OSError, RuntimeError, ValueError, TimeoutError, RayError, AssertionError) as error:
        raise LmscoutError(
            f"cluster {address}: cannot be reached ({first_line(error)}); start one with `ray "
            "start --head` and name its address, or give local"
        ) from None
    finally:
        os.environ.pop(_NO_PATIENCE, None)
        if main:
            signal.signal(signal.SIGTERM, before)


def _report(event: dict[str, Any], *_: object, **__: object) -> None:
    """Log the first sentence of a message of Ray."""
    _log.warning("lmscout: cluster: %s", str(event["lines"][0]).strip().partition(". ")[0])
