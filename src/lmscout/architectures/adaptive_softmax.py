"""Adaptive embedding and adaptive softmax over one shared set of tables.

The vocabulary, most frequent tokens first, is cut into clusters.  Rarer clusters may have
narrower embeddings (Baevski and Auli, arXiv 1809.10853), and the probability of their tokens is
the probability of the cluster times that within the cluster (Grave et al., arXiv 1609.04309).
Sizes, tying and scaling are those of Transformer-XL (arXiv 1901.02860), as
LiteTransformerSearch uses them (github microsoft/archai, branch neurips-lts).
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmscout.architectures.layers import Embedding, Projection


@dataclass(frozen=True, kw_only=True)
class AdaptiveLayout:
    """How a vocabulary is cut, and how wide its tables are.

    Attributes:
        vocabulary: number of tokens.
        width: size of the hidden state.
        embedding_width: size of an embedding of the first cluster.
        divisor: cluster i is ``embedding_width // divisor**i`` wide; 1 means that all clusters
            share one table.
        cutoffs: the first tokens of the second, third, ... cluster; empty for one cluster.
        tied: for each cluster, whether the softmax projects with the embedding's projection
            rather than with one of its own.
    """

    vocabulary: int
    width: int
    embedding_width: int
    divisor: int
    cutoffs: tuple[int, ...]
    tied: tuple[bool, ...]

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First token and one past the last token of each cluster."""
        edges = (0, *self.cutoffs, self.vocabulary)
        return tuple(pairwise(edges))

    @property
    def tables(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each embedding table."""
        if self.divisor == 1:
            return ((self.vocabulary, self.embedding_width),)
        return tuple(
            (last - first, self.embedding_width // self.divisor**cluster)
            for cluster, (first, last) in enumerate(self.bounds)
        )

    @property
    def projected(self) -> bool:
        """Whether embeddings are projected: not where one table has the model's own width."""
        return self.divisor > 1 or self.embedding_width != self.width

    def cluster_width(self, cluster: int) -> int:
        """Size of an embedding of that cluster."""
        return self.tables[min(cluster, len(self.tables) - 1)][1]

    def embedding_parameters(self) -> int:
        """Parameters of the tables and of the projections out of them."""
        tables = sum(rows * columns for rows, columns in self.tables)
        projections = sum(columns * self.width for _, columns in self.tables)
        return tables + (projections if self.projected else 0)

    def softmax_parameters(self) -> int:
        """What the softmax adds: token biases, cluster vectors and projections of its own."""
        clusters = len(self.cutoffs) * (self.embedding_width + 1)
        own = sum(
            self.cluster_width(cluster) * self.width
            for cluster, tied in enumerate(self.tied)
            if self.projected and not tied
        )
        return self.vocabulary + clusters + own


class AdaptiveVocabulary(nn.Module):
    """The embedding and the softmax of a vocabulary, sharing their tables."""

    def __init__(self, layout: AdaptiveLayout) -> None:
        super().__init__()
        self.layout = layout
        self.tables = nn.ModuleList(Embedding(rows, columns) for rows, columns in layout.tables)
        self.projections = nn.ModuleList(
            Projection(columns, layout.width) for _, columns in layout.tables if layout.projected
        )
        self.token_bias = nn.Parameter(torch.empty(layout.vocabulary))
        self.cluster_weight = nn.Parameter(torch.empty(len(layout.cutoffs), layout.embedding_width))
        self.cluster_bias = nn.Parameter(torch.empty(len(layout.cutoffs)))
        self.own_projections = nn.ModuleDict(
            {
                str(cluster): Projection(layout.cluster_width(cluster), layout.width)
                for cluster, tied in enumerate(layout.tied)
                if layout.projected and not tied
            }
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` to embeddings ``[B, T, width]``, scaled by √width."""
        if self.layout.divisor == 1:
            embedded = self.tables[0](tokens)
            if self.layout.projected:
                embedded = self.projections[0](embedded)
        else:
            flat = tokens.flatten()
            embedded = self.token_bias.new_zeros(len(flat), self.layout.width)
            for cluster, (first, last) in enumerate(self.layout.bounds):
                members = ((flat >= first) & (flat < last)).nonzero().squeeze(1)
                vectors = self.tables[cluster](flat[members] - first)
                embedded = embedded.index_copy(0, members, self.projections[cluster](vectors))
            embedded = embedded.view(*tokens.shape, self.layout.width)
        scaled: Tensor = embedded * math.sqrt(self.layout.width)
        return scaled

    def negative_log_likelihood(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(target | hidden) of each row, in nats.

        A tail cluster is evaluated only for the rows whose target lies in it.

        Args:
            hidden: ``[N, width]``.
            targets: ``[N]``, int64.

        Returns:
            ``[N]``.
        """
        projected = self._project(0, hidden)
        clusters = functional.linear(projected, self.cluster_weight, self.cluster_bias)
        first_logits = torch.cat([self._logits(0, projected), clusters], dim=1)
        choice = targets.clone()
        tails: list[tuple[Tensor, Tensor]] = []
        for cluster, (first, last) in enumerate(self.layout.bounds[1:], start=1):
            rows = ((targets >= first) & (targets < last)).nonzero().squeeze(1)
            # In the first softmax, the tail clusters follow the tokens of the first cluster.
            choice[rows] = self.layout.cutoffs[0] + cluster - 1
            logits = self._logits(cluster, self._project(cluster, hidden[rows]))
            within = functional.cross_entropy(logits, targets[rows] - first, reduction="none")
            tails.append((rows, within))
        result = functional.cross_entropy(first_logits, choice, reduction="none")
        for rows, within in tails:
            result = result.index_add(0, rows, within)
        return result

    def _project(self, cluster: int, hidden: Tensor) -> Tensor:
        """Hidden state ``[N, width]`` into the space of that cluster's embeddings."""
        if not self.layout.projected:
            return hidden
        if self.layout.tied[cluster]:
            projection = self.projections[min(cluster, len(self.projections) - 1)]
        else:
            projection = self.own_projections[str(cluster)]
        weight = projection.weight
        assert isinstance(weight, Tensor)
        return hidden @ weight

    def _logits(self, cluster: int, projected: Tensor) -> Tensor:
        """Logits ``[N, size]`` of the tokens of one cluster, from what `_project` gave."""
        first, last = self.layout.bounds[cluster]
        weight = self.tables[min(cluster, len(self.tables) - 1)].weight
        assert isinstance(weight, Tensor)
        if self.layout.divisor == 1:
            weight = weight[first:last]
        return functional.linear(projected, weight, self.token_bias[first:last])
