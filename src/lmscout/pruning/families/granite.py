"""Granite: the LLaMA layout with constant factors of embeddings, sublayers, scores and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, cast

from torch import Tensor
from transformers import PreTrainedModel

from lmscout.pruning.families.family import Attention, Mixture, Mlp, Multiplier
from lmscout.pruning.families.llama import Llama


class Granite(Llama):
    """Granite; the factor of the scores is the attention's own scale."""

    model_types: ClassVar[tuple[str, ...]] = ("granite",)

    def attention(self, block: Any) -> Attention:
        """As in llama, with the residual multiplier."""
        return replace(super().attention(block), after=Multiplier(block.residual_multiplier))

    def mlp(self, block: Any) -> Mlp | Mixture:
        """As in llama, with the residual multiplier."""
        return replace(super().mlp(block), after=Multiplier(block.residual_multiplier))

    def embed(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """The token embeddings times their factor."""
        factor: float = cast(Any, model).model.embedding_multiplier
        return super().embed(model, tokens) * factor

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Final norm and head, divided by the scaling of the logits."""
        divisor: float = cast(Any, model.config).logits_scaling
        return super().logits(model, hidden) / divisor
