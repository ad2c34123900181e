"""Time of attention and MLP on a device, by the units that they keep.

One block's attention and MLP are timed at a few numbers of units each, on views of the
dense weights, and interpolated.  Blocks of equal shape are timed once.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from sklearn.isotonic import isotonic_regression
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation.cost import await_device
from lmscout.pruning.families import Family
from lmscout.pruning.plan import Floats

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_FIXED = "fixed"


@dataclass(frozen=True)
class Curve:
    """Seconds of attention or MLP of one block, by units kept."""

    units: tuple[int, ...]  # ascending from 0 to all there are
    seconds: tuple[Seconds, ...]  # never decreasing, from 0: a sublayer without units is left out

    def __post_init__(self) -> None:
        if len(self.units) != len(self.seconds) or self.units[:1] != (0,):
            raise ValueError("units do not start from 0, each with its seconds")
        if sorted(set(self.units)) != list(self.units):
            raise ValueError("units do not ascend")

    def table(self) -> Floats:
        """Seconds for every number of units, [units + 1]."""
        return np.interp(np.arange(self.units[-1] + 1), self.units, self.seconds)


@dataclass(frozen=True)
class Latency:
    """Seconds of a forward pass over a batch, in parts."""

    attention: tuple[Curve, ...]  # of each block
    mlp: tuple[Curve, ...]  # of each block
    fixed: Seconds  # embedding, final norm and head
    windows: int  # sequences of the batch
    tokens: int  # of each


_LATENCY = TypeAdapter(Latency)


@torch.inference_mode()
def measure_latency(
    model: PreTrainedModel, family: Family, windows: Tensor, *, points: int = 9, repeats: int = 7
) -> Latency:
    """Time the parts of a forward pass on windows [B, T], without a cache.

    All `points` numbers of units are timed once per round, so that load on the machine slows them
    alike.  The median over `repeats` rounds, after a warm-up, counts; medians that decrease where
    more units are kept are averaged.
    """
    windows = windows.to(model.device)
    hidden = family.embed(model, windows)
    context = family.context(model, hidden)
    parts: dict[Hashable, Callable[[], object]] = {
        _FIXED: lambda: family.logits(model, family.embed(model, windows))
    }
    sublayers = []
    for (_, kind), part in family.all_sublayers(model).items():
        form = (kind, part.units, *(one.shape for one in part.tensors))  # the time's reasons
        # 0, 1, and numbers of units evenly spread up to all
        spread = {round(1 + at * (part.units - 1)) for at in np.linspace(0, 1, points)}
        units = (0, *sorted(spread)) if part.units else (0,)
        sublayers.append((form, units))
        for kept in units[1:]:
            entering = hidden.to(part.device)
            parts.setdefault((form, kept), partial(part.first(kept).step, entering, context))
    seconds = _medians(parts, repeats, list({one.device for one in model.parameters()}))
    curves = []
    for form, units in sublayers:
        medians = np.array([0.0, *(seconds[form, kept] for kept in units[1:])])
        curves.append(Curve(units, tuple(isotonic_regression(medians).tolist())))
    return Latency(tuple(curves[::2]), tuple(curves[1::2]), seconds[_FIXED], *windows.shape)


def _medians(
    parts: Mapping[Hashable, Callable[[], object]], repeats: int, devices: Sequence[torch.device]
) -> dict[Hashable, float]:
    """Seconds of each call, the median over rounds in which all are timed."""
    seconds: dict[Hashable, list[float]] = {key: [] for key in parts}
    for _ in range(1 + repeats):
        for key, run in parts.items():
            deque(map(await_device, devices), maxlen=0)
            start = time.perf_counter()
            run()
            deque(map(await_device, devices), maxlen=0)
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(each[1:]) for key, each in seconds.items()}


def to_json(latency: Latency) -> str:
    """Measured seconds as JSON."""
    return _LATENCY.dump_json(latency).decode()


def from_json(text: str) -> Latency:
    """Measured seconds that `to_json` wrote; LmscoutError for anything else."""
    try:
        return _LATENCY.validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, ("latency", *problem["loc"])))
        raise LmscoutError(
            f"{place}: these are no tables of measured seconds ({problem['msg']}); remove "
            "them, and they are measured again"
        ) from error
