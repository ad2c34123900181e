"""OLMo 2: norms after the sublayers, and over all queries and all keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from lmscout.pruning.families.family import Attention, Function, Mixture, Mlp
from lmscout.pruning.families.llama import Llama, affine, rotate


class Olmo2(Llama):
    """OLMo 2.

    The norm of queries is over all heads together, so it divides by the root mean square of the
    heads that are left.
    """

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
        after = self.norm(block.post_feedforward_layernorm)
        return replace(super().mlp(block), after=after)

    def before_mlp(self, block: Any) -> Function:
        """None."""
        return _same


def _same(hidden: Tensor) -> Tensor:
    return hidden
