"""Workers beyond this machine, as the code that uses them sees them.

`connect` is the only place that imports the engine, `lmscout.integrations.ray_cluster`.  What runs
on a worker is pickled by its name: every machine has the same version of lmscout and PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, TypeVar

_Item = TypeVar("_Item")


class WorkerLostError(Exception):
    """A worker or its machine has ended during a call; the worker is started again elsewhere."""


class Shared(Protocol):
    """A value that was sent to the cluster once; picklable."""

    @property
    def key(self) -> str:
        """Identity of the value in the cluster."""

    def get(self) -> Any:
        """The value, here or on a worker; arrays are views of its machine's shared memory."""


class Worker(Protocol):
    """An object on a machine of the cluster."""

    def give(self, value: Shared) -> None:
        """Set the value that the object is made of, here and after a restart."""

    def ready(self, seconds: float) -> bool:
        """Whether it runs, after waiting for at most so long."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object; `WorkerLostError` if it ends meanwhile."""


class Cluster(Protocol):
    """Machines that do work of this process."""

    @property
    def gpus(self) -> int:
        """Number of GPUs."""

    def share(self, value: object) -> Shared:
        """Send a value to the cluster."""

    def workers(self, make: Callable[[Any], Any], *, cpus: int = 1, gpus: int = 0) -> list[Worker]:
        """Start as many workers as there is room for; LmscoutError if there is none for one.

        Each has so many GPUs, or cores if it has none.  `make` makes its object of the value that
        it is given, again on another machine with room if its own ends.
        """

    def map(
        self,
        function: Callable[[_Item], Any],
        items: Iterable[_Item],
        *,
        gpus: float = 0.0,
        most: int | None = None,
    ) -> Generator[tuple[int, Any]]:
        """Call a function for every item: the item's number from 0, and the result, as they end.

        A call whose machine ends is repeated elsewhere, so it must have no effect but its result.
        The function is sent once a machine, and items are taken one by one.  A call needs such a
        share of a GPU, one core if 0; `most` is the number of calls at once, None for as many as
        there is room for.  LmscoutError if calls end their worker again and again; other errors as
        the function raises them.
        """


def connect(address: str) -> Cluster:
    """The cluster at an address, for the rest of this process.

    It is ``ray://HOST:PORT``, ``HOST:PORT``, ``auto`` (the one that this machine is in), or
    ``local`` for a new one here.  LmscoutError if Ray is not installed, or nothing answers.
    """
    from lmscout.integrations.ray_cluster import RayCluster

    return RayCluster(address)


def in_order(results: Generator[tuple[int, _Item]]) -> Generator[_Item]:
    """The results of `Cluster.map` in the order of the items."""
    early: dict[int, _Item] = {}
    number = 0
    try:
        for place, result in results:
            early[place] = result
            while number in early:
                yield early.pop(number)
                number += 1
    finally:
        results.close()
