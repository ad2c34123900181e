"""Granite, OLMo 2, Phi-3, Gemma 2 and the text model of Gemma 3: what differs from llama."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.phi3 import modeling_phi3

from lmscout.pruning.families.family import Affine, Attention, Function, Mixture, Mlp, Multiplier
from lmscout.pruning.families.llama import Llama, affine, rotate


class Granite(Llama):
    """Constant factors of embeddings, sublayers, scores (the attention's scale) and logits."""

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


class Olmo2(Llama):
    """Norms after sublayers, and over all heads: by the root mean square of those that are left."""

    model_types: ClassVar[tuple[str, ...]] = ("olmo2",)

    def attention(self, block: Any) -> Attention:
        """Queries and keys with their norms, output, and the norm after it."""
        attention = block.self_attn
        query, key, value = map(affine, (attention.q_proj, attention.k_proj, attention.v_proj))
        return Attention(
            inputs=(
                replace(query, norm=self.norm(attention.q_norm)),
                replace(key, norm=self.norm(attention.k_norm)),
                value,
            ),
            output=affine(attention.o_proj),
            units=attention.k_proj.out_features // attention.head_dim,
            norm=_same,
            after=self.norm(block.post_attention_layernorm),
            head_size=attention.head_dim,
            scale=attention.scaling,
            rotate=rotate,
        )

    def mlp(self, block: Any) -> Mlp | Mixture:
        """The MLP of llama, its norm after it."""
        return replace(super().mlp(block), after=self.norm(block.post_feedforward_layernorm))

    def before_mlp(self, block: Any) -> Function:
        """None."""
        return _same


def _same(hidden: Tensor) -> Tensor:
    return hidden


class Phi3(Llama):
    """Query, key and value in one matrix, gate and up in another; parts of heads are rotated."""

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
            rotate=partial(rotate, apply=modeling_phi3.apply_rotary_pos_emb),
        )

    def mlp(self, block: Any) -> Mlp:
        """Halves of the fused projection, and the contraction."""
        mlp = block.mlp
        return Mlp(
            inputs=tuple(Affine(one, None) for one in mlp.gate_up_proj.weight.data.chunk(2)),
            output=affine(mlp.down_proj),
            units=mlp.down_proj.in_features,
            norm=self.before_mlp(block),
            activation=mlp.activation_fn,
        )


class Gemma2(Llama):
    """Norms before and after, bounded scores and logits; the gain of a norm is 1 + its weight."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma2",)
    norm_offset: ClassVar[float] = 1.0

    def attention(self, block: Any) -> Attention:
        """As in llama, with bounded scores and a norm after the output."""
        after = self.norm(block.post_attention_layernorm)
        bound = block.self_attn.attn_logit_softcapping
        return replace(super().attention(block), after=after, softcap=bound)

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
    """As Gemma 2, with query-key norms and other positions in blocks of sliding attention."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3_text",)

    def attention(self, block: Any) -> Attention:
        """As in Gemma 2, but transformers leaves the scores unbounded."""
        turn = partial(rotate, kind=block.self_attn.layer_type)
        return replace(super().attention(block), softcap=None, rotate=turn)

    def positions(self, model: PreTrainedModel, hidden: Tensor, positions: Tensor) -> Any:
        """Cosines and sines by the blocks' kind of attention."""
        rotary = cast(Any, model).model.rotary_emb
        return {kind: rotary(hidden, positions, kind) for kind in rotary.layer_types}
