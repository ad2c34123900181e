"""LiteTransformerSearch's GPT-2: heads and MLP width of each block its own, or missing.

The search space and its trained models are Javaheripi et al.'s (arXiv 2203.02094, github
microsoft/archai, branch neurips-lts): pre-norm GPT-2 blocks, learned positions, and an adaptive
embedding and softmax.  Their blocks have attention and MLP; here one may be missing.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from lmscout.models.adaptive import AdaptiveModel, AdaptiveSpec, AdaptiveVocabulary
from lmscout.models.decoder import DecoderBlock, Mlp, SelfAttention
from lmscout.models.layers import Embedding, Projection, ResidualLinear, draw_weights
from lmscout.models.spec import CHECKED, linear_parameters

NORM_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Gpt2Spec(AdaptiveSpec):
    """A GPT-2 with per-block heads and MLP widths; its fields are those of `AdaptiveSpec`."""

    kind: ClassVar[str] = "gpt2"
    title: ClassVar[str] = "GPT-2 spec"
    attention_maps: ClassVar[int] = 4

    def attention_parameters(self) -> int:
        """As in `AdaptiveSpec`."""
        one = linear_parameters(self.width, self.width)
        return self.attentions * self.attention_maps * one

    def embedding_parameters(self) -> int:
        """As in `AdaptiveSpec`."""
        return super().embedding_parameters() + self.max_length * self.width

    def body_parameters(self) -> int:
        """As in `AdaptiveSpec`."""
        return super().body_parameters() + 2 * self.width

    def build(self, seed: int) -> Gpt2Model:
        """The model in eval mode: weights normal, biases 0, norms the identity.

        Maps into the residual stream are drawn with a standard deviation smaller by the root
        of their number, as GPT-2 does (Radford et al. 2019).
        """
        self.require_memory()
        model = Gpt2Model(self)
        residual_std = self.weight_std / math.sqrt(self.residual_maps)
        std_of = {Projection: self.projection_std, ResidualLinear: residual_std}
        draw_weights(model, seed, self.weight_std, std_of)
        return model.eval()


class Gpt2Model(AdaptiveModel):
    """The language model that a `Gpt2Spec` builds."""

    def __init__(self, spec: Gpt2Spec) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, spec.width, eps=NORM_EPSILON)
        self.max_length = spec.max_length
        self.vocabulary = AdaptiveVocabulary(spec)
        self.positions = Embedding(spec.max_length, spec.width)
        self.blocks = nn.ModuleList(
            DecoderBlock(
                norm,
                SelfAttention(spec.width, heads) if heads else None,
                Mlp(spec.width, inner, nn.GELU(approximate="tanh")) if inner else None,
            )
            for heads, inner in zip(spec.heads, spec.inner, strict=True)
        )
        self.norm = norm()

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to ``[B, T, width]``."""
        self.check_length(tokens)
        return self.vocabulary.embed(tokens) + self.positions.weight[: tokens.shape[1]]
