"""Mixtral and Qwen3-MoE: the LLaMA layout with experts in place of MLPs."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from lmscout.errors import LmscoutError
from lmscout.pruning.families.family import Affine, Experts, Mlp
from lmscout.pruning.families.llama import Llama


class Mixtral(Llama):
    """Mixtral; the shares of selected experts sum to 1."""

    model_types: ClassVar[tuple[str, ...]] = ("mixtral",)

    def mlp(self, block: Any) -> Mlp | Experts:
        """The experts of a block, or the MLP of one that has none."""
        if not hasattr(block.mlp, "experts"):
            return super().mlp(block)
        experts, router = block.mlp.experts, block.mlp.gate
        down = experts.down_proj.data
        return Experts(
            inputs=(),
            output=Affine(down[0, :, :0], None),
            units=len(down),
            norm=self.norm(block.post_attention_layernorm),
            gate_up=experts.gate_up_proj.data,
            down=down,
            router=router.weight.data,
            selected=router.top_k,
            normalized=getattr(router, "norm_topk_prob", True),
            activation=experts.act_fn,
        )

    def uniform_config(
        self, config: PreTrainedConfig, *, depth: int, groups: int, channels: int
    ) -> PreTrainedConfig:
        """As in llama, with fewer experts in place of MLP width."""
        plain: Any = super().uniform_config(config, depth=depth, groups=groups, channels=channels)
        plain.intermediate_size = config.intermediate_size
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
