"""The LLaMA layout: llama, mistral, qwen2 and qwen3."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lmscout.errors import LmscoutError
from lmscout.pruning.families.family import (
    Affine,
    AttentionParts,
    BlockParts,
    Family,
    MlpParts,
    causal_probabilities,
)


class Llama(Family):
    """Rotary positions, RMS norms, gated MLP.

    Grouped-query attention, biases and query-key norms are there where the model has them.
    """

    model_types = ("llama", "mistral", "qwen2", "qwen3")

    def blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder layers."""
        return list(cast(Any, model).model.layers)

    def parts(self, block: nn.Module) -> BlockParts:
        """Query, key, value, output; gate and up, down."""
        attention, mlp = cast(Any, block).self_attn, cast(Any, block).mlp
        head_size = attention.head_dim
        groups = attention.k_proj.out_features // head_size
        return BlockParts(
            AttentionParts(
                _affine(attention.q_proj),
                _affine(attention.k_proj),
                _affine(attention.v_proj),
                _affine(attention.o_proj),
                groups=groups,
                group_size=attention.q_proj.out_features // (groups * head_size),
                head_size=head_size,
            ),
            MlpParts((_affine(mlp.gate_proj), _affine(mlp.up_proj)), _affine(mlp.down_proj)),
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

    def attention_norm(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """RMS norm before attention."""
        return _rms_norm(cast(Any, block).input_layernorm, hidden)

    def attend(
        self, block: nn.Module, parts: AttentionParts, normed: Tensor, context: Any
    ) -> Tensor:
        """Causal attention of the given groups, before the output projection."""
        batch, length, _ = normed.shape
        query, key = _queries_and_keys(block, parts, normed, context)
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            _heads(parts.value, parts, normed),
            is_causal=True,
            scale=cast(Any, block).self_attn.scaling,
            enable_gqa=parts.group_size > 1,
        )
        return attended.transpose(1, 2).reshape(batch, length, -1)

    def probabilities(
        self, block: nn.Module, parts: AttentionParts, normed: Tensor, context: Any
    ) -> Tensor:
        """Of every query head."""
        query, key = _queries_and_keys(block, parts, normed, context)
        return causal_probabilities(query, key, cast(Any, block).self_attn.scaling)

    def mlp_norm(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """RMS norm before the MLP."""
        return _rms_norm(cast(Any, block).post_attention_layernorm, hidden)

    def activate(self, block: nn.Module, parts: MlpParts, normed: Tensor) -> Tensor:
        """The activated gate times up."""
        gate, up = (one.apply(normed) for one in parts.expand)
        activated = cast(Tensor, cast(Any, block).mlp.act_fn(gate))
        # in place saves a tensor; some activations need what they gave for their gradient
        return activated * up if activated.requires_grad else activated.mul_(up)

    def activated(self, block: nn.Module, parts: MlpParts, normed: Tensor) -> tuple[Tensor, Tensor]:
        """The activated gate, and the same times up."""
        gate, up = (one.apply(normed) for one in parts.expand)
        act = cast(Tensor, cast(Any, block).mlp.act_fn(gate))
        return act, act * up

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Final norm and language-model head."""
        normed = _rms_norm(cast(Any, model).model.norm, hidden)
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
        if getattr(plain, "layer_types", None):
            plain.layer_types = plain.layer_types[:depth]
        return cast(PreTrainedConfig, plain)


def _rms_norm(layer: nn.Module, hidden: Tensor) -> Tensor:
    """What the layer computes, in one kernel where there is one: its own way takes six."""
    norm = cast(Any, layer)
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


def _heads(
    affine: Affine, parts: AttentionParts, normed: Tensor, norm: nn.Module | None = None
) -> Tensor:
    split = affine.apply(normed)
    split = split.view(*normed.shape[:2], -1, parts.head_size)
    return (_rms_norm(norm, split) if norm is not None else split).transpose(1, 2)


def _queries_and_keys(
    block: nn.Module, parts: AttentionParts, normed: Tensor, context: Any
) -> tuple[Tensor, Tensor]:
    attention = cast(Any, block).self_attn
    query = _heads(parts.query, parts, normed, getattr(attention, "q_norm", None))
    key = _heads(parts.key, parts, normed, getattr(attention, "k_norm", None))
    return cast(tuple[Tensor, Tensor], apply_rotary_pos_emb(query, key, *context))


def _affine(layer: nn.Linear) -> Affine:
    return Affine(layer.weight.data, None if layer.bias is None else layer.bias.data)
