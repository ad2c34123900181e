"""The LLaMA layout: llama, mistral, qwen2 and qwen3."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lmscout.errors import LmscoutError
from lmscout.pruning.families.family import Affine, Attention, BlockParts, Family, Function, Mlp


class Llama(Family):
    """Rotary positions, RMS norms, gated MLP.

    Grouped-query attention, biases and query-key norms where the model has them.
    """

    model_types = ("llama", "mistral", "qwen2", "qwen3")

    def blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder layers."""
        return list(cast(Any, model).model.layers)

    def parts(self, block: nn.Module) -> BlockParts:
        """Query, key, value, output; gate and up, down."""
        layers = cast(Any, block)
        attention, mlp = layers.self_attn, layers.mlp
        return BlockParts(
            Attention(
                inputs=tuple(map(_affine, (attention.q_proj, attention.k_proj, attention.v_proj))),
                output=_affine(attention.o_proj),
                units=attention.k_proj.out_features // attention.head_dim,
                norm=_rms_norm(layers.input_layernorm),
                head_size=attention.head_dim,
                scale=attention.scaling,
                query_norm=_rms_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
                key_norm=_rms_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
                rotate=_rotate,
            ),
            Mlp(
                inputs=(_affine(mlp.gate_proj), _affine(mlp.up_proj)),
                output=_affine(mlp.down_proj),
                units=mlp.down_proj.in_features,
                norm=_rms_norm(layers.post_attention_layernorm),
                activation=mlp.act_fn,
            ),
        )

    def embed(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """The token embeddings."""
        return cast(Tensor, cast(Any, model).model.embed_tokens(tokens))

    def context(self, model: PreTrainedModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary positions."""
        length = hidden.shape[1]
        window = getattr(model.config, "sliding_window", None)
        sliding = "sliding_attention" in (getattr(model.config, "layer_types", None) or ())
        if window and length > window and (sliding or model.config.model_type == "mistral"):
            raise LmscoutError(
                f"windows of {length} tokens are longer than the model's sliding attention of "
                f"{window}: use shorter windows"
            )
        positions = torch.arange(length, device=hidden.device)[None]
        rotary = cast(Any, model).model.rotary_emb
        return cast(tuple[Tensor, Tensor], rotary(hidden, position_ids=positions))

    def final_norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm after the last block."""
        return cast(nn.Module, cast(Any, model).model.norm)

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Final norm and language-model head."""
        normed = _rms_norm(self.final_norm(model))(hidden)
        return cast(Tensor, cast(Any, model).lm_head(normed))

    def uniform_config(
        self, config: PreTrainedConfig, *, depth: int, groups: int, channels: int
    ) -> PreTrainedConfig:
        """The configuration with fewer layers, heads and MLP width; the head size stays."""
        plain = copy.deepcopy(cast(Any, config))
        group_size = config.num_attention_heads // config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None)
        plain.head_dim = head_dim or config.hidden_size // config.num_attention_heads
        plain.num_hidden_layers = depth
        plain.num_key_value_heads = groups
        plain.num_attention_heads = groups * group_size
        plain.intermediate_size = channels
        return cast(PreTrainedConfig, plain)


def _rms_norm(layer: Any) -> Function:
    """The layer's function in one kernel; its own implementation takes six."""
    size, epsilon = layer.weight.shape, layer.variance_epsilon
    return partial(functional.rms_norm, normalized_shape=size, weight=layer.weight, eps=epsilon)


def _rotate(query: Tensor, key: Tensor, context: Any) -> tuple[Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor], apply_rotary_pos_emb(query, key, *context))


def _affine(layer: nn.Linear) -> Affine:
    return Affine(layer.weight.data, None if layer.bias is None else layer.bias.data)
