"""The LLaMA layout: llama, mistral, qwen2, qwen3, smollm3; other families build on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lmscout.errors import LmscoutError
from lmscout.evaluation.perplexity import slides
from lmscout.pruning.families.family import (
    Affine,
    Attention,
    Family,
    Function,
    Mixture,
    Mlp,
    RmsNorm,
)


class Llama(Family):
    """Rotary positions, RMS norms, gated MLP.

    Grouped-query attention; biases, query-key norms and blocks without positions where the model
    has them.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3", "smollm3")

    def blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder layers."""
        return list(cast(Any, model).model.layers)

    def attention(self, block: Any) -> Attention:
        """Query, key, value, output."""
        attention = block.self_attn
        return Attention(
            inputs=tuple(map(affine, (attention.q_proj, attention.k_proj, attention.v_proj))),
            output=affine(attention.o_proj),
            units=attention.k_proj.out_features // attention.head_dim,
            norm=self.norm(block.input_layernorm),
            head_size=attention.head_dim,
            scale=attention.scaling,
            query_norm=self.norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            key_norm=self.norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            rotate=rotate if getattr(attention, "use_rope", True) else None,
        )

    def mlp(self, block: Any) -> Mlp | Mixture:
        """Gate and up, down."""
        mlp = block.mlp
        return Mlp(
            inputs=(affine(mlp.gate_proj), affine(mlp.up_proj)),
            output=affine(mlp.down_proj),
            units=mlp.down_proj.in_features,
            norm=self.before_mlp(block),
            activation=mlp.act_fn,
        )

    def before_mlp(self, block: Any) -> Function:
        """The norm before the MLP."""
        return self.norm(block.post_attention_layernorm)

    def norm(self, layer: Any) -> RmsNorm:
        """A norm as it computes; the layer's own implementation takes six kernels."""
        epsilon = layer.variance_epsilon if hasattr(layer, "variance_epsilon") else layer.eps
        return RmsNorm(layer.weight.data, epsilon, self.norm_offset)

    def embed(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """The token embeddings."""
        return cast(Tensor, cast(Any, model).model.embed_tokens(tokens))

    def context(self, model: PreTrainedModel, hidden: Tensor) -> Any:
        """Cosines and sines of the rotary positions."""
        length = hidden.shape[1]
        window = getattr(model.config, "sliding_window", None)
        if window and length > window and slides(model.config):
            raise LmscoutError(
                f"windows of {length} tokens are longer than the model's sliding attention of "
                f"{window}: use shorter windows"
            )
        return self.positions(model, hidden, torch.arange(length, device=hidden.device)[None])

    def positions(self, model: PreTrainedModel, hidden: Tensor, positions: Tensor) -> Any:
        """Cosines and sines of positions [1, T]."""
        return cast(Any, model).model.rotary_emb(hidden, position_ids=positions)

    def final_norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm after the last block."""
        return cast(nn.Module, cast(Any, model).model.norm)

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Final norm and language-model head."""
        norm = self.norm(self.final_norm(model))
        normed = norm(hidden.to(norm.weight.device))
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


def rotate(
    query: Tensor,
    key: Tensor,
    context: Any,
    *,
    kind: str | None = None,
    apply: Callable[..., Any] = apply_rotary_pos_emb,
) -> tuple[Tensor, Tensor]:
    """Queries and keys with rotary positions; `kind` of those by kind of attention."""
    both = (one.to(query.device) for one in (context if kind is None else context[kind]))
    return cast(tuple[Tensor, Tensor], apply(query, key, *both))


def affine(layer: nn.Linear) -> Affine:
    """A linear layer as views of its weights."""
    return Affine(layer.weight.data, None if layer.bias is None else layer.bias.data)
