"""What a recovery would take: a step is made on models of one and of two blocks, and extended.

It is a step of elastic recovery on all units: one on a plan, or on a winner that was cut, takes
less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.evaluation.cost import await_device, vocabulary_size
from lmscout.pruning.families import Family, unit_maps
from lmscout.pruning.recovery.elastic import plan_loss
from lmscout.pruning.recovery.elastic_adapter import ElasticAdapter
from lmscout.pruning.recovery.settings import RecoverySettings
from lmscout.pruning.subnetworks.subnetwork import shape_of
from lmscout.statistics.single_pass import only_these_learn

_REPEATS = 3  # after one that is not counted
_LEARNING = 16  # bytes of a number that learns: itself, its gradient, and two moments of that


@dataclass(frozen=True)
class Training:
    """What one training takes.

    Attributes:
        steps: that its bounds allow.
        seconds: that they take where nothing is cut.
        learning: bytes of adapters, their gradients and the optimiser.
        activations: bytes that a step keeps for its backward pass.
    """

    steps: int
    seconds: float
    learning: int
    activations: int


def foretell_training(
    whole: PreTrainedModel,
    family: Family,
    settings: RecoverySettings,
    window: int,
    of_blocks: Callable[[int], PreTrainedModel],
) -> Training:
    """Foretell a training of the dense model.

    Args:
        whole: the dense model; its weights need not be there.
        family: its family.
        settings: of the training.
        window: tokens a window.
        of_blocks: makes a model of so many of its blocks, on the device of the training.

    Raises:
        LmscoutError: the bounds do not allow a single step.
    """
    steps = settings.last_step(window)
    (first, first_bytes), (both, both_bytes) = (
        _step(of_blocks(count), family, settings, window) for count in (1, 2)
    )
    halves = list(family.all_halves(whole).values())
    more = len(halves) // 2 - 1
    seconds = steps * (first + more * max(0.0, both - first))
    numbers = settings.rank * sum(sum(one.weight.shape) for h in halves for one in unit_maps(h))
    return Training(
        steps,
        min(seconds, settings.seconds or seconds),
        _LEARNING * numbers,
        first_bytes + more * (both_bytes - first_bytes),
    )


def _step(
    model: PreTrainedModel, family: Family, settings: RecoverySettings, window: int
) -> tuple[float, int]:
    """Seconds of a step, and bytes that it keeps for the backward pass."""
    generator = torch.Generator().manual_seed(0)
    shape = settings.batch(window), window
    tokens = torch.randint(vocabulary_size(model), shape, generator=generator).to(model.device)
    adapter = ElasticAdapter(model, family, settings.rank, settings.seed)
    optimizer = torch.optim.AdamW(list(adapter.weights.values()))
    dense = shape_of(family.all_parts(model)).dense
    known = {one.untyped_storage().data_ptr() for one in model.parameters()}
    known |= {one.untyped_storage().data_ptr() for one in adapter.weights.values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds = []
    with only_these_learn(model, ()):
        for repeat in range(1 + _REPEATS):
            await_device(model.device)
            start = time.perf_counter()
            if repeat:
                loss = plan_loss(adapter, dense, tokens, settings.method)
            else:
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    loss = plan_loss(adapter, dense, tokens, settings.method)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            await_device(model.device)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), sum(kept.values())
