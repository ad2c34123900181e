"""GPT-2: learned positions, LayerNorm, one fused projection for query, key and value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.pruning.families.family import Affine, Attention, Family, Mlp


class Gpt2(Family):
    """GPT-2; its Conv1D layers store weights transposed."""

    model_types = ("gpt2",)

    def blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The transformer blocks."""
        return list(cast(Any, model).transformer.h)

    def attention(self, block: Any) -> Attention:
        """Thirds of the fused projection, and the output."""
        attention = block.attn
        fused = _affine(attention.c_attn)
        assert fused.bias is not None
        thirds = zip(fused.weight.chunk(3), fused.bias.chunk(3), strict=True)
        return Attention(
            inputs=tuple(Affine(*third) for third in thirds),
            output=_affine(attention.c_proj),
            units=len(fused.weight) // 3 // attention.head_dim,
            norm=block.ln_1,
            head_size=attention.head_dim,
            scale=attention.scaling,
        )

    def mlp(self, block: Any) -> Mlp:
        """Expansion and contraction."""
        contraction = _affine(block.mlp.c_proj)
        return Mlp(
            inputs=(_affine(block.mlp.c_fc),),
            output=contraction,
            units=contraction.weight.shape[1],
            norm=block.ln_2,
            activation=block.mlp.act,
        )

    def embed(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """Token and position embeddings."""
        transformer = cast(Any, model).transformer
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return cast(Tensor, transformer.wte(tokens) + transformer.wpe(positions))

    def context(self, model: PreTrainedModel, hidden: Tensor) -> None:
        """Nothing: positions are part of the hidden state."""

    def final_norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm after the last block."""
        return cast(nn.Module, cast(Any, model).transformer.ln_f)

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Final LayerNorm and language-model head."""
        return cast(Tensor, cast(Any, model).lm_head(self.final_norm(model)(hidden)))

    def uniform_config(
        self, config: PreTrainedConfig, *, depth: int, groups: int, channels: int
    ) -> PreTrainedConfig:
        """Fewer layers and MLP width; GPT-2's heads always span the whole width."""
        if groups != config.n_head:
            raise LmscoutError(
                f"gpt2 has no plain form with {groups} of {config.n_head} heads of the same size: "
                "keep all heads, or save with shape any"
            )
        plain = type(config).from_dict(config.to_dict())
        plain.n_layer, plain.n_inner = depth, channels
        return plain


def _affine(layer: Any) -> Affine:
    return Affine(layer.weight.data.T, layer.bias.data)
