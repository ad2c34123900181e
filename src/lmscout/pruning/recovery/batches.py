"""Which windows of a text each step reads: known from the seed and the step alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def batch_of(windows: Tensor, size: int, step: int, seed: int) -> Tensor:
    """The windows of one step.

    The text is read in one random order after another, each a pass over all of it; so a training
    that is continued reads what it would have read.

    Args:
        windows: [windows, T] int64.
        size: windows a step.
        step: from 0.
        seed: of the orders.

    Returns:
        [size, T].
    """
    places = np.arange(step * size, (step + 1) * size)
    passes, within = np.divmod(places, len(windows))
    rows = [
        _order(len(windows), seed, int(one))[place]
        for one, place in zip(passes, within, strict=True)
    ]
    return windows[torch.tensor(rows)]


def apart_from(windows: Tensor, *others: Tensor) -> Tensor:
    """Windows [n, T] without those that occur in others [m, T]; the order stays."""
    taken = {row.cpu().numpy().tobytes() for other in others for row in other}
    kept = [row.cpu().numpy().tobytes() not in taken for row in windows]
    return windows[torch.tensor(kept, dtype=torch.bool)]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, number]).permutation(count)
