"""Adaptive embedding and softmax: what LiteTransformerSearch's GPT-2 and Transformer-XL share.

One set of tables serves both ends of a model, with the sizes, tying and scaling of
Transformer-XL (Dai et al., arXiv 1901.02860).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pydantic import StrictBool
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from lmscout.errors import brief
from lmscout.models.decoder import DecoderSpec
from lmscout.models.layers import Embedding, Projection
from lmscout.models.spec import (
    CHECKED,
    LanguageModel,
    PerBlock,
    Positive,
    Size,
    Vocabulary,
    Width,
    linear_parameters,
)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdaptiveSpec(DecoderSpec):
    """A decoder with per-block heads and MLP widths, and an adaptive vocabulary.

    Attributes:
        heads: attention heads of each block; each divides the width; 0 for no attention.
        inner: width of the MLP of each block; 0 for no MLP.
        embedding_width: width of the embeddings of the first cluster of the vocabulary.
        divisor: cluster i is ``embedding_width // divisor**i`` wide; 1 for one table.
        cutoffs: the first tokens of the second, third, ... cluster; empty for one cluster.
        tied: for each cluster, whether the softmax shares the embedding's projection.
        weight_std: standard deviation of weights and tables when drawn.
        projection_std: standard deviation of the projections of embedding and softmax.
    """

    heads: PerBlock
    inner: PerBlock
    embedding_width: Width
    divisor: Size = 1
    cutoffs: tuple[Vocabulary, ...] = ()
    tied: tuple[StrictBool, ...] = (False,)
    vocabulary: Vocabulary = 50_264
    max_length: Size = 192
    weight_std: Positive = 0.02
    projection_std: Positive = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(low >= high for low, high in self.clusters):
            raise self.error(
                f"cutoffs {brief(self.cutoffs)} must increase and stay below the vocabulary "
                f"{self.vocabulary}"
            )
        if len(self.tied) != len(self.clusters):
            raise self.error(
                f"tied has {len(self.tied)} entries; the {len(self.clusters)} clusters need one "
                "each"
            )
        if self.divisor ** len(self.cutoffs) > self.embedding_width:
            raise self.error(
                f"divisor {self.divisor} leaves no width for the last cluster of an "
                f"embedding_width of {self.embedding_width}"
            )

    @property
    def clusters(self) -> tuple[tuple[int, int], ...]:
        """First token and one past the last token of each cluster."""
        return tuple(pairwise((0, *self.cutoffs, self.vocabulary)))

    @property
    def tables(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each embedding table: one a cluster, or one for all."""
        if self.divisor == 1:
            return ((self.vocabulary, self.embedding_width),)
        return tuple(
            (last - first, self.embedding_width // self.divisor**cluster)
            for cluster, (first, last) in enumerate(self.clusters)
        )

    @property
    def projected(self) -> bool:
        """Whether embeddings are projected: not if one table has the model's own width."""
        return self.divisor > 1 or self.embedding_width != self.width

    @property
    def own_projections(self) -> dict[int, int]:
        """Clusters whose softmax has a projection of its own -> width of their embeddings."""
        return {
            cluster: self.tables[min(cluster, len(self.tables) - 1)][1]
            for cluster, tied in enumerate(self.tied)
            if self.projected and not tied
        }

    attention_maps: ClassVar[int]
    """Square matrices of an attention."""

    @property
    def attentions(self) -> int:
        """Blocks with attention."""
        return sum(map(bool, self.heads))

    @property
    def residual_maps(self) -> int:
        """Attentions and MLPs of all blocks: each has a norm and is added to the stream."""
        return sum(size > 0 for size in (*self.heads, *self.inner))

    @abstractmethod
    def attention_parameters(self) -> int:
        """Parameters of all attention layers (upstream's ``Attn``)."""

    def mlp_parameters(self) -> int:
        """Parameters of all MLPs (upstream's ``FFN``)."""
        return sum(
            linear_parameters(self.width, inner) + linear_parameters(inner, self.width)
            for inner in self.inner
            if inner
        )

    def matrices(self) -> int:
        """As in `DecoderSpec`."""
        attention = self.attentions * self.attention_maps * self.width**2
        return attention + 2 * self.width * sum(self.inner)

    def embedding_parameters(self) -> int:
        """Parameters of tables, their projections and positions (upstream's ``AdaEmb``)."""
        projected_to = self.width if self.projected else 0
        return sum((rows + projected_to) * columns for rows, columns in self.tables)

    def body_parameters(self) -> int:
        """Parameters of the blocks and the final norm (upstream's ``nonembedding``)."""
        norms = self.residual_maps * 2 * self.width
        return self.attention_parameters() + self.mlp_parameters() + norms

    def parameters(self) -> int:
        """Parameters of embedding, body and softmax (upstream's ``total``)."""
        biases = self.vocabulary + len(self.cutoffs) * (self.embedding_width + 1)
        softmax = biases + self.width * sum(self.own_projections.values())
        return self.embedding_parameters() + self.body_parameters() + softmax


class AdaptiveVocabulary(nn.Module):
    """Adaptive embedding and adaptive softmax of a vocabulary, sharing their tables.

    The vocabulary, most frequent tokens first, is cut into clusters.  Rarer clusters may have
    narrower embeddings (Baevski and Auli, arXiv 1809.10853); the probability of their tokens is
    the probability of the cluster times that within the cluster (Grave et al., arXiv 1609.04309).
    """

    def __init__(self, spec: AdaptiveSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tables = nn.ModuleList(Embedding(rows, columns) for rows, columns in spec.tables)
        self.projections = nn.ModuleList(
            Projection(columns, spec.width) for _, columns in spec.tables if spec.projected
        )
        self.token_bias = nn.Parameter(torch.empty(spec.vocabulary))
        self.cluster_weight = nn.Parameter(torch.empty(len(spec.cutoffs), spec.embedding_width))
        self.cluster_bias = nn.Parameter(torch.empty(len(spec.cutoffs)))
        self.own_projections = nn.ModuleDict(
            {
                str(cluster): Projection(columns, spec.width)
                for cluster, columns in spec.own_projections.items()
            }
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` to embeddings ``[B, T, width]``, scaled by √width."""
        width = self.spec.width
        if self.spec.divisor == 1:
            embedded = self.tables[0](tokens)
            if self.spec.projected:
                embedded = self.projections[0](embedded)
        else:
            flat = tokens.flatten()
            embedded = self.token_bias.new_zeros(len(flat), width)
            for cluster, (first, last) in enumerate(self.spec.clusters):
                members = ((flat >= first) & (flat < last)).nonzero().squeeze(1)
                vectors = self.tables[cluster](flat[members] - first)
                embedded = embedded.index_copy(0, members, self.projections[cluster](vectors))
            embedded = embedded.view(*tokens.shape, width)
        return embedded * math.sqrt(width)

    def negative_log_likelihood(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(target | hidden) of each row, in nats.

        A tail cluster is evaluated only for the rows whose target lies in it.

        Args:
            hidden: ``[N, width]``.
            targets: ``[N]``, int64.

        Returns:
            ``[N]``.
        """
        first_logits = self._first_logits(hidden)
        choice = targets.clone()
        tails: list[tuple[Tensor, Tensor]] = []
        for cluster, (first, last) in enumerate(self.spec.clusters[1:], start=1):
            rows = ((targets >= first) & (targets < last)).nonzero().squeeze(1)
            # In the first softmax, the tail clusters follow the tokens of the first cluster.
            choice[rows] = self.spec.cutoffs[0] + cluster - 1
            logits = self._logits(cluster, self._project(cluster, hidden[rows]))
            within = functional.cross_entropy(logits, targets[rows] - first, reduction="none")
            tails.append((rows, within))
        result = functional.cross_entropy(first_logits, choice, reduction="none")
        for rows, within in tails:
            result = result.index_add(0, rows, within)
        return result

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Log-probability of every token, in nats: ``[N, width]`` to ``[N, vocabulary]``."""
        first = self._first_logits(hidden).log_softmax(dim=1)
        size = first.shape[1] - len(self.spec.cutoffs)
        parts = [first[:, :size]]
        for cluster in range(1, len(self.spec.clusters)):
            within = self._logits(cluster, self._project(cluster, hidden)).log_softmax(dim=1)
            parts.append(first[:, size + cluster - 1, None] + within)
        return torch.cat(parts, dim=1)

    def _first_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the first cluster's tokens and of the other clusters, ``[N, size]``."""
        projected = self._project(0, hidden)
        clusters = functional.linear(projected, self.cluster_weight, self.cluster_bias)
        return torch.cat([self._logits(0, projected), clusters], dim=1)

    def _project(self, cluster: int, hidden: Tensor) -> Tensor:
        """Hidden state ``[N, width]`` into the space of that cluster's embeddings."""
        if not self.spec.projected:
            return hidden
        if self.spec.tied[cluster]:
            weight: Any = self.projections[min(cluster, len(self.projections) - 1)].weight
        else:
            weight = self.own_projections[str(cluster)].weight
        return hidden @ weight

    def _logits(self, cluster: int, projected: Tensor) -> Tensor:
        """Logits ``[N, size]`` of the tokens of one cluster, from the projected states."""
        first, last = self.spec.clusters[cluster]
        weight: Any = self.tables[min(cluster, len(self.tables) - 1)].weight
        if self.spec.divisor == 1:
            weight = weight[first:last]
        return functional.linear(projected, weight, self.token_bias[first:last])


class AdaptiveModel(LanguageModel):
    """A language model that ends in an adaptive softmax.

    Attributes:
        vocabulary: embeds tokens and predicts them.
    """

    vocabulary: AdaptiveVocabulary

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats; tokens ``[B, T]``, T at least 2."""
        hidden, targets = self.next_token_states(tokens)
        return self.vocabulary.negative_log_likelihood(hidden, targets).mean()
