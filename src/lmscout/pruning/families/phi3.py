"""Phi-3: the LLaMA layout with fused projections and rotary positions of a part of each head."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from lmscout.pruning.families.family import Affine, Attention, Mlp
from lmscout.pruning.families.llama import Llama, affine


class Phi3(Llama):
    """Phi-3; query, key and value are one matrix, gate and up another."""

    model_types: ClassVar[tuple[str, ...]] = ("phi3",)

    def attention(self, block: Any) -> Attention:
        """Slices of the fused projection, and the output."""
        attention, output = block.self_attn, affine(block.self_attn.o_proj)
        fused = attention.qkv_proj.weight.data
        queries = output.weight.shape[1]
        keys = (len(fused) - queries) // 2
        return Attention(
            inputs=tuple(Affine(one, None) for one in fused.split([queries, keys, keys])),
            output=output,
            units=keys // attention.head_dim,
            norm=self.norm(block.input_layernorm),
            head_size=attention.head_dim,
            scale=attention.scaling,
            rotate=_rotate,
        )

    def mlp(self, block: Any) -> Mlp:
        """Halves of the fused projection, and the contraction."""
        mlp = block.mlp
        return Mlp(
            inputs=tuple(Affine(one, None) for one in mlp.gate_up_proj.weight.data.chunk(2)),
            output=affine(mlp.down_proj),
            units=mlp.down_proj.in_features,
            norm=self.norm(block.post_attention_layernorm),
            activation=mlp.activation_fn,
        )


def _rotate(query: Tensor, key: Tensor, context: Any) -> tuple[Tensor, Tensor]:
    apply: Any = apply_rotary_pos_emb
    return cast(
        tuple[Tensor, Tensor], apply(query, key, *(one.to(query.device) for one in context))
    )
