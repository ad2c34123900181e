"""Gemma 2 and the text model of Gemma 3: norms before and after, bounded scores and logits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor
from transformers import PreTrainedModel

from lmscout.pruning.families.family import Attention, Function, Mixture, Mlp
from lmscout.pruning.families.llama import Llama, rotate


class Gemma2(Llama):
    """Gemma 2; the gain of a norm is 1 plus its weight."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma2",)
    norm_offset: ClassVar[float] = 1.0

    def attention(self, block: Any) -> Attention:
        """As in llama, with bounded scores and a norm after the output."""
        return replace(
            super().attention(block),
            after=self.norm(block.post_attention_layernorm),
            softcap=block.self_attn.attn_logit_softcapping,
        )

    def mlp(self, block: Any) -> Mlp | Mixture:
        """As in llama, with a norm after the output."""
        return replace(super().mlp(block), after=self.norm(block.post_feedforward_layernorm))

    def before_mlp(self, block: Any) -> Function:
        """Its own, since the one of llama's name is behind attention."""
        return self.norm(block.pre_feedforward_layernorm)

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Final norm and head, bounded."""
        logits, bound = super().logits(model, hidden), model.config.final_logit_softcapping
        return logits if bound is None else (logits / bound).tanh() * bound


class Gemma3(Gemma2):
    """Gemma 3's text model: query-key norms, other positions in blocks of sliding attention."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3_text",)

    def attention(self, block: Any) -> Attention:
        """As in Gemma 2, but transformers leaves the scores unbounded."""
        kind = block.self_attn.layer_type
        return replace(super().attention(block), softcap=None, rotate=partial(_rotate, kind))

    def positions(self, model: PreTrainedModel, hidden: Tensor, positions: Tensor) -> Any:
        """Cosines and sines by the blocks' kind of attention."""
        rotary = cast(Any, model).model.rotary_emb
        return {kind: rotary(hidden, positions, kind) for kind in rotary.layer_types}


def _rotate(kind: str, query: Tensor, key: Tensor, context: Any) -> tuple[Tensor, Tensor]:
    return rotate(query, key, context[kind])
