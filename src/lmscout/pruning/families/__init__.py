"""Model families that can be pruned."""

from __future__ import annotations

from transformers import PreTrainedConfig

from lmscout.errors import LmscoutError
from lmscout.pruning.families.family import (
    ATTENTION,
    KINDS,
    MLP,
    Affine,
    Attention,
    BlockParts,
    Family,
    Mlp,
    Place,
    Sublayer,
)
from lmscout.pruning.families.gpt2 import Gpt2
from lmscout.pruning.families.llama import Llama

FAMILIES: tuple[Family, ...] = (Llama(), Gpt2())

__all__ = [
    "ATTENTION",
    "FAMILIES",
    "KINDS",
    "MLP",
    "Affine",
    "Attention",
    "BlockParts",
    "Family",
    "Gpt2",
    "Llama",
    "Mlp",
    "Place",
    "Sublayer",
    "family_of",
]


def family_of(config: PreTrainedConfig) -> Family:
    """The family that covers a model's configuration.

    Raises:
        LmscoutError: no family does.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise LmscoutError(
        f"models of type {config.model_type!r} cannot be pruned: lmscout knows {known}"
    )
