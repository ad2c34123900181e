"""Mixtral and Qwen3-MoE: the LLaMA layout with experts in place of MLPs."""

from __future__ import annotations

from math import gcd
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from lmscout.errors import LmscoutError
from lmscout.evaluation import plain_type
from lmscout.evaluation.modeling_lmscout import expert_width
from lmscout.pruning.families.family import Affine, ExpertChannels, Experts, Mixture, Mlp
from lmscout.pruning.families.llama import Llama

UNITS = EXPERTS, CHANNELS = "experts", "channels"  # of a mixture
CHANNEL_STEP = 8
"""Channels of an expert in a unit: grouped matrix products take rows of 16 bytes."""
_ENTRY = "pruned_units"  # of a configuration, never of a saved one


def units_of(config: PreTrainedConfig) -> str:
    """What is removed of the mixtures of a model: experts, or channels within each."""
    units: str = getattr(config, _ENTRY, EXPERTS)
    return units


def set_units(config: PreTrainedConfig, units: str) -> None:
    """Set what is removed of the mixtures of a model, in its configuration.

    Raises:
        LmscoutError: the model has none.
    """
    vars(config).pop(_ENTRY, None)
    if units == EXPERTS:
        return
    if not getattr(config, "num_experts", None):
        raise LmscoutError(
            f"units {units}: the model has no experts (got {plain_type(config)}); leave it out"
        )
    setattr(config, _ENTRY, units)


def channel_units(channels: int) -> int:
    """Number of units of experts with so many channels."""
    return channels // gcd(channels, CHANNEL_STEP)


class Mixtral(Llama):
    """Mixtral; the shares of selected experts sum to 1."""

    model_types: ClassVar[tuple[str, ...]] = ("mixtral",)

    def mlp(self, block: Any) -> Mlp | Mixture:
        """The experts of a block, or the MLP of one that has none."""
        if not hasattr(block.mlp, "experts"):
            return super().mlp(block)
        experts, router = block.mlp.experts, block.mlp.gate
        down = experts.down_proj.data
        gate, up = experts.gate_up_proj.data.chunk(2, dim=1)
        shared: dict[str, Any] = {
            "inputs": (),
            "norm": self.norm(block.post_attention_layernorm),
            "gate": gate,
            "up": up,
            "router": router.weight.data,
            "selected": router.top_k,
            "normalized": getattr(router, "norm_topk_prob", True),
            "activation": experts.act_fn,
        }
        if units_of(experts.config) == CHANNELS:
            units = channel_units(down.shape[2])
            return ExpertChannels(**shared, output=Affine(down, None), units=units)
        return Experts(**shared, output=Affine(down[0, :, :0], None), units=len(down), down=down)

    def uniform_config(
        self, config: PreTrainedConfig, *, depth: int, groups: int, channels: int
    ) -> PreTrainedConfig:
        """As in llama; MLP width is that of an expert, or stays with fewer experts."""
        plain: Any = super().uniform_config(config, depth=depth, groups=groups, channels=channels)
        name = expert_width(config)
        width = getattr(config, name)
        plain.intermediate_size = config.intermediate_size
        if units_of(config) == CHANNELS:
            setattr(plain, name, width // channel_units(width) * channels)
            return plain  # type: ignore[no-any-return]
        plain.num_experts = channels
        plain.num_experts_per_tok = min(channels, config.num_experts_per_tok)
        return plain  # type: ignore[no-any-return]


class Qwen3Moe(Mixtral):
    """Qwen3-MoE; query-key norms, and blocks of MLPs where the model has them."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_moe",)

    def uniform_config(
        self, config: PreTrainedConfig, *, depth: int, groups: int, channels: int
    ) -> PreTrainedConfig:
        """As in Mixtral, if every block has experts."""
        given: Any = config
        if given.mlp_only_layers or given.decoder_sparse_step != 1:
            raise LmscoutError(
                "qwen3_moe has no plain form of fewer units if some blocks have experts and some "
                "have none: save it with shape any"
            )
        return super().uniform_config(config, depth=depth, groups=groups, channels=channels)
