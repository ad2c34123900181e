"""GPT-2: learned positions, LayerNorm, one fused projection for query, key and value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families.family import (
    Affine,
    AttentionParts,
    BlockParts,
    Family,
    MlpParts,
    causal_probabilities,
)


class Gpt2(Family):
    """GPT-2 and its like; its Conv1D layers store weights transposed."""

    model_types = ("gpt2",)

    def blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The transformer blocks."""
        return list(cast(Any, model).transformer.h)

    def parts(self, block: nn.Module) -> BlockParts:
        """Thirds of the fused projection, and the output; expansion and contraction."""
        attention, mlp = cast(Any, block).attn, cast(Any, block).mlp
        weight, bias = attention.c_attn.weight.data.T, attention.c_attn.bias.data
        thirds = zip(weight.chunk(3), bias.chunk(3), strict=True)
        query, key, value = (Affine(*third) for third in thirds)
        return BlockParts(
            AttentionParts(
                query,
                key,
                value,
                _affine(attention.c_proj),
                groups=query.weight.shape[0] // attention.head_dim,
                group_size=1,
                head_size=attention.head_dim,
            ),
            MlpParts((_affine(mlp.c_fc),), _affine(mlp.c_proj)),
        )

    def embed(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """Token and position embeddings."""
        transformer = cast(Any, model).transformer
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return cast(Tensor, transformer.wte(tokens) + transformer.wpe(positions))

    def context(self, model: PreTrainedModel, hidden: Tensor) -> None:
        """Nothing: positions are part of the hidden state."""

    def attention_norm(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """LayerNorm before attention."""
        return cast(Tensor, cast(Any, block).ln_1(hidden))

    def attend(
        self, block: nn.Module, parts: AttentionParts, normed: Tensor, context: Any
    ) -> Tensor:
        """Causal attention of the given heads, before the output projection."""
        batch, length, _ = normed.shape
        query, key, value = (_heads(one, parts, normed) for one in parts.inputs)
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=cast(Any, block).attn.scaling,
        )
        return attended.transpose(1, 2).reshape(batch, length, -1)

    def probabilities(
        self, block: nn.Module, parts: AttentionParts, normed: Tensor, context: Any
    ) -> Tensor:
        """Of every head."""
        query, key = (_heads(one, parts, normed) for one in (parts.query, parts.key))
        return causal_probabilities(query, key, cast(Any, block).attn.scaling)

    def mlp_norm(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """LayerNorm before the MLP."""
        return cast(Tensor, cast(Any, block).ln_2(hidden))

    def activate(self, block: nn.Module, parts: MlpParts, normed: Tensor) -> Tensor:
        """The activated expansion."""
        (expand,) = parts.expand
        return cast(Tensor, cast(Any, block).mlp.act(expand.apply(normed)))

    def activated(self, block: nn.Module, parts: MlpParts, normed: Tensor) -> tuple[Tensor, Tensor]:
        """The activated expansion, twice: nothing is multiplied with it."""
        act = self.activate(block, parts, normed)
        return act, act

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Final LayerNorm and language-model head."""
        return cast(Tensor, cast(Any, model).lm_head(cast(Any, model).transformer.ln_f(hidden)))

    def uniform_config(
        self, config: PreTrainedConfig, *, depth: int, groups: int, channels: int
    ) -> PreTrainedConfig:
        """Fewer layers and MLP width; GPT-2's heads always span the whole width."""
        if groups != config.n_head:
            raise LmscoutError(
                f"gpt2 has no plain form with {groups} of {config.n_head} heads of the same size: "
                "keep all heads, or save with --shape any"
            )
        plain = type(config).from_dict(config.to_dict())
        plain.n_layer, plain.n_inner = depth, channels
        return plain


def _heads(affine: Affine, parts: AttentionParts, normed: Tensor) -> Tensor:
    split = affine.apply(normed)
    return split.view(*normed.shape[:2], -1, parts.head_size).transpose(1, 2)


def _affine(layer: Any) -> Affine:
    return Affine(layer.weight.data.T, layer.bias.data)
