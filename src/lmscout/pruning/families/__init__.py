"""Model families that can be pruned."""

from transformers import PreTrainedConfig

from lmscout.errors import LmscoutError
from lmscout.evaluation import plain_type
from lmscout.pruning.families.family import (
    ATTENTION,
    KINDS,
    MLP,
    Affine,
    Attention,
    BlockParts,
    ExpertChannels,
    Experts,
    Family,
    Mixture,
    Mlp,
    Place,
    Sublayer,
)
from lmscout.pruning.families.gpt2 import Gpt2
from lmscout.pruning.families.llama import Llama
from lmscout.pruning.families.moe import (
    CHANNELS,
    EXPERTS,
    UNITS,
    Mixtral,
    Qwen3Moe,
    set_units,
    units_of,
)
from lmscout.pruning.families.variants import Gemma2, Gemma3, Granite, Olmo2, Phi3

FAMILIES: tuple[Family, ...] = (
    *(Llama(), Gpt2(), Granite(), Olmo2(), Phi3(), Gemma2(), Gemma3()),
    *(Mixtral(), Qwen3Moe()),
)

__all__ = [
    "ATTENTION",
    "CHANNELS",
    "EXPERTS",
    "FAMILIES",
    "KINDS",
    "MLP",
    "UNITS",
    "Affine",
    "Attention",
    "BlockParts",
    "ExpertChannels",
    "Experts",
    "Family",
    "Llama",
    "Mixture",
    "Mlp",
    "Place",
    "Sublayer",
    "family_of",
    "set_units",
    "units_of",
]


def family_of(config: PreTrainedConfig) -> Family:
    """The family that covers a model's configuration, with blocks of one size or of several.

    Raises:
        LmscoutError: no family does.
    """
    for family in FAMILIES:
        if plain_type(config) in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise LmscoutError(
        f"models of type {config.model_type!r} cannot be pruned: lmscout knows {known}"
    )
