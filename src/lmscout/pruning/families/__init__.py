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
    Multiplier,
    Place,
    RmsNorm,
    Sublayer,
)
from lmscout.pruning.families.gemma import Gemma2, Gemma3
from lmscout.pruning.families.gpt2 import Gpt2
from lmscout.pruning.families.granite import Granite
from lmscout.pruning.families.llama import Llama
from lmscout.pruning.families.olmo2 import Olmo2
from lmscout.pruning.families.phi3 import Phi3

FAMILIES: tuple[Family, ...] = (Llama(), Gpt2(), Granite(), Olmo2(), Phi3(), Gemma2(), Gemma3())

__all__ = [
    "ATTENTION",
    "FAMILIES",
    "KINDS",
    "MLP",
    "Affine",
    "Attention",
    "BlockParts",
    "Family",
    "Gemma2",
    "Gemma3",
    "Gpt2",
    "Granite",
    "Llama",
    "Mlp",
    "Multiplier",
    "Olmo2",
    "Phi3",
    "Place",
    "RmsNorm",
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
