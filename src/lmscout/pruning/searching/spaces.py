"""In which set of plans a model is searched."""

from __future__ import annotations

from transformers import PreTrainedModel

from lmscout.pruning.searching.grained_space import GrainedSpace
from lmscout.pruning.searching.space import AnySpace, PlanSpace
from lmscout.pruning.searching.uniform_space import UniformSpace
from lmscout.pruning.subnetworks.plan import Shape


def space_of(shape: str, units: Shape, model: PreTrainedModel, grain: int = 1) -> PlanSpace:
    """The plans that may be proposed; the grain is of those whose blocks have any size."""
    if shape == "uniform":
        return UniformSpace(units, model.config)
    return AnySpace(units) if grain == 1 else GrainedSpace(units, grain)


def fast_grain(model: PreTrainedModel) -> int:
    """Of what MLP widths are to be multiples, so that a model's device runs them fast.

    Tensor cores take rows of 16 bytes; other rows go three times as slowly.
    """
    return 16 // model.dtype.itemsize if model.device.type == "cuda" else 1
