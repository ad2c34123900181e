"""Limits of an architecture: its parameters, its multiply-adds, its measured latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from lmscout.errors import LmscoutError, brief, check_whole
from lmscout.models import ArchitectureSpec
from lmscout.models.layers import fuse_attention

Cost = Callable[[ArchitectureSpec], float]

PARAMS, MACS, LATENCY = "max_params", "max_macs", "max_latency"
_REPEATS = 7  # timed passes of one architecture


def parameters(spec: ArchitectureSpec) -> int:
    """Parameters of an architecture, embeddings included."""
    return spec.parameters()


def multiply_adds(spec: ArchitectureSpec) -> int:
    """Multiply-adds of a token in the blocks."""
    return spec.multiply_adds()


@dataclass(frozen=True)
class Limit:
    """The most that an architecture may cost."""

    name: str  # of the argument: ``max_params``, ``max_macs`` or ``max_latency``
    unit: str  # of its value, in words
    value: float  # the limit
    cost: Cost  # of an architecture, in the same unit

    def keeps(self, spec: ArchitectureSpec) -> bool:
        """Whether an architecture is within the limit."""
        return self.cost(spec) <= self.value

    def shown(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:,} {self.unit}" if isinstance(value, int) else f"{value:,.4g} {self.unit}"

    def __str__(self) -> str:
        return self.shown(self.value)


def limits_of(
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency: float | None = None,
    *,
    device: str = "cpu",
) -> tuple[Limit, ...]:
    """The limits that were given, the cheapest to check first; LmscoutError for one not above 0.

    They are of parameters, embeddings included, of a token's multiply-adds in the blocks
    (`ArchitectureSpec.multiply_adds`), and of milliseconds on a device (`latency_on`).
    """
    found = []
    if max_params is not None:
        check_whole(PARAMS, max_params, 1)
        found.append(Limit(PARAMS, "parameters", max_params, parameters))
    if max_macs is not None:
        check_whole(MACS, max_macs, 1)
        found.append(Limit(MACS, "multiply-adds", max_macs, multiply_adds))
    if max_latency is not None:
        number = isinstance(max_latency, int | float) and not isinstance(max_latency, bool)
        if not number or not 0 < max_latency < math.inf:
            raise LmscoutError(
                f"max_latency: no number of milliseconds above 0 (got {brief(max_latency)})"
            )
        found.append(Limit(LATENCY, "ms", float(max_latency), latency_on(device)))
    return tuple(found)


def keeps_all(limits: Sequence[Limit], spec: ArchitectureSpec) -> bool:
    """Whether an architecture keeps all limits, checked up to the first exceeded."""
    return all(limit.keeps(spec) for limit in limits)


def nothing_within(
    what: str, limits: Sequence[Limit], specs: Sequence[ArchitectureSpec]
) -> LmscoutError:
    """The error that a set of architectures has none within the limits; names the least costs.

    The specs are some of them, among these those of the least costs.
    """
    most = " and ".join(map(str, limits))
    least = " and ".join(one.shown(min(map(one.cost, specs))) for one in limits)
    if len(limits) == 1:
        return LmscoutError(
            f"no architecture of {what} has {most} or fewer: the smallest has {least}"
        )
    return LmscoutError(f"no architecture of {what} is within {most}: the least of each is {least}")


def latency_on(device: str) -> Cost:
    """The milliseconds of an architecture's forward pass; each is measured once.

    The untrained model, with fused attention where it has causal attention, maps one sequence of
    `max_length` tokens to hidden states, without logits.  The median of seven passes counts,
    after one that does not.
    """

    @cache
    @torch.inference_mode()
    def milliseconds(spec: ArchitectureSpec) -> float:
        from lmscout.evaluation.cost import median_seconds  # slow to import

        place = torch.device(device)
        model = spec.build(0).to(place)
        fuse_attention(model)
        tokens = torch.arange(spec.max_length, device=place)[None] % spec.vocabulary
        return 1000 * median_seconds(lambda: model(tokens), place, _REPEATS)

    return milliseconds
