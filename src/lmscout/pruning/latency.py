"""How long steps of a model take on this machine, by the units that they keep.

One block's attention and MLP are timed at a few numbers of units each, on views of the
dense weights; what lies between is interpolated.  Blocks of equal shape are timed once.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation.cost import await_device
from lmscout.pruning.families import ATTENTION, MLP, Family, Sublayer
from lmscout.pruning.plan import Floats


@dataclass(frozen=True)
class Curve:
    """Seconds of attention or MLP of one block, by units kept.

    Attributes:
        units: ascending from 0 to all there are.
        seconds: never falling, from 0: what keeps no unit is left out.
    """

    units: tuple[int, ...]
    seconds: tuple[float, ...]

    def table(self) -> Floats:
        """Seconds for every number of units, [units + 1]."""
        return np.interp(np.arange(self.units[-1] + 1), self.units, self.seconds)


@dataclass(frozen=True)
class Latency:
    """Seconds that a forward pass over a batch takes, in parts.

    Attributes:
        attention: of each block.
        mlp: of each block.
        fixed: embedding, final norm and head.
        windows: sequences of the batch.
        tokens: of each.
    """

    attention: tuple[Curve, ...]
    mlp: tuple[Curve, ...]
    fixed: float
    windows: int
    tokens: int


@torch.inference_mode()
def measure_latency(
    model: PreTrainedModel,
    family: Family,
    windows: Tensor,
    *,
    points: int = 9,
    repeats: int = 7,
) -> Latency:
    """Time the parts of a forward pass, without a cache.

    Everything is timed once a round, so that a machine that is busy for a while slows all of
    it alike.  The median over rounds stands for a part; medians that fall where more units
    are kept are averaged.

    Args:
        model: the dense model, in eval mode, on the device to time it on.
        family: its family.
        windows: [B, T] int64, the batch.
        points: numbers of units above 0 that are timed, or as many as there are.
        repeats: rounds, after one that is not counted.
    """
    windows = windows.to(model.device)
    hidden = family.embed(model, windows)
    context = family.context(model, hidden)

    parts: dict[tuple[object, ...], Callable[[], object]] = {
        _FIXED: lambda: family.logits(model, family.embed(model, windows))
    }
    places = []
    for (_, kind), part in family.all_sublayers(model).items():
        form = (kind, *_form(part))
        places.append((form, counts := _spread(part.units, points)))
        for kept in counts[1:]:
            parts.setdefault((form, kept), partial(part.first(kept).step, hidden, context))
    seconds = _medians(parts, repeats, model.device)
    curves = [
        Curve(counts, _rising([0.0, *(seconds[form, kept] for kept in counts[1:])]))
        for form, counts in places
    ]
    return Latency(
        tuple(curves[::2]), tuple(curves[1::2]), seconds[_FIXED], len(windows), windows.shape[1]
    )


def to_json(latency: Latency) -> dict[str, Any]:
    """Measured seconds as JSON, from which `from_json` makes the same."""
    return {
        "windows": latency.windows,
        "tokens": latency.tokens,
        "fixed": latency.fixed,
        **{
            kind: [{"units": list(one.units), "seconds": list(one.seconds)} for one in curves]
            for kind, curves in ((ATTENTION, latency.attention), (MLP, latency.mlp))
        },
    }


def from_json(value: Any) -> Latency:
    """Measured seconds that `to_json` wrote.

    Raises:
        LmscoutError: it is nothing that `to_json` wrote.
    """
    try:
        latency = Latency(
            tuple(_curve(one) for one in value[ATTENTION]),
            tuple(_curve(one) for one in value[MLP]),
            _number(value["fixed"]),
            int(value["windows"]),
            int(value["tokens"]),
        )
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise LmscoutError(
            f"latency: these are no tables of measured seconds ({error!r}): remove them, and they "
            "are measured again"
        ) from error
    return latency


_FIXED: tuple[object, ...] = ("fixed",)


def _medians(
    parts: Mapping[tuple[object, ...], Callable[[], object]], repeats: int, device: torch.device
) -> dict[tuple[object, ...], float]:
    """Seconds of each call, the median over rounds in which all are timed."""
    seconds: dict[tuple[object, ...], list[float]] = {key: [] for key in parts}
    for _ in range(1 + repeats):
        for key, run in parts.items():
            await_device(device)
            start = time.perf_counter()
            run()
            await_device(device)
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(each[1:]) for key, each in seconds.items()}


def _form(part: Sublayer) -> tuple[object, ...]:
    """What the time of a sublayer depends on."""
    return (part.units, *(one.weight.shape for one in part.maps))


def _spread(most: int, points: int) -> tuple[int, ...]:
    """0, 1, and numbers of units evenly spread up to all."""
    return (0, *sorted({round(1 + share * (most - 1)) for share in np.linspace(0, 1, points)}))


def _rising(seconds: Sequence[float]) -> tuple[float, ...]:
    """The nearest numbers that never fall."""
    return tuple(isotonic_regression(np.array(seconds, np.float64)).tolist())


def _curve(value: Any) -> Curve:
    units = tuple(int(one) for one in value["units"])
    seconds = tuple(_number(one) for one in value["seconds"])
    if len(units) != len(seconds) or units[0] != 0 or sorted(set(units)) != list(units):
        raise ValueError("units do not ascend from 0, each with its seconds")
    return Curve(units, seconds)


def _number(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{value} seconds")
    return number
