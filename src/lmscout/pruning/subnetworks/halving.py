"""Work that is done in ever smaller batches as long as memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from lmscout.errors import LmscoutError, out_of_memory
from lmscout.evaluation.quiet import first_line

_Result = TypeVar("_Result")


def halving(
    work: Callable[[], _Result], halve: Callable[[], bool], device: torch.device
) -> _Result:
    """Do work, again and again until memory suffices.

    Args:
        work: to be done from its beginning each time.
        halve: makes batches half as large; False where they are single windows already.
        device: on which memory is short.

    Raises:
        LmscoutError: it does not suffice for a single window.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = first_line(error)
        # only now, as the error held on to what the work had allocated
        if not halve():
            raise LmscoutError(
                f"{device} is out of memory with a single window ({reason}): use a larger one, "
                "shorter windows, or --compensation none; --dry-run says what a run takes"
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()


def halving_from(work: Callable[[int], _Result], size: int, device: torch.device) -> _Result:
    """The same for work that is told how many windows to take at once, `size` at first."""
    sizes = [max(1, size)]

    def halve() -> bool:
        sizes.append(max(1, sizes[-1] // 2))
        return sizes[-1] < sizes[-2]

    return halving(lambda: work(sizes[-1]), halve, device)
