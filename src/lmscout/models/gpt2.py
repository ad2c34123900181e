"""LiteTransformerSearch's GPT-2 with its adaptive embedding and softmax.

Adaptive embedding and adaptive softmax over one shared set of tables.

The vocabulary, most frequent tokens first, is cut into clusters.  Rarer clusters may have
narrower embeddings (Baevski and Auli, arXiv 1809.10853), and the probability of their tokens is
the probability of the cluster times that within the cluster (Grave et al., arXiv 1609.04309).
Sizes, tying and scaling are those of Transformer-XL (arXiv 1901.02860), as
LiteTransformerSearch uses them (github microsoft/archai, branch neurips-lts).

LiteTransformerSearch's GPT-2: heads and MLP width of each block its own, or missing.

The search space and its trained models are Javaheripi et al.'s (arXiv 2203.02094, github
microsoft/archai, branch neurips-lts): pre-norm GPT-2 blocks under an adaptive embedding and
softmax of a width of their own, with learned positions.  Theirs all have both halves; here a
block may have the attention or the MLP alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmscout.errors import LmscoutError, brief
from lmscout.models.layers import (
    CausalAttention,
    Embedding,
    Linear,
    Projection,
    ResidualLinear,
    draw_weights,
    split_heads,
)
from lmscout.models.spec import (
    ArchitectureSpec,
    LanguageModel,
    ProbePoints,
    require_blocks,
    require_fields,
    require_numbers,
    require_positive,
    require_truths,
    require_tuples,
)


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

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Log-probability of every token, in nats: ``[N, width]`` to ``[N, vocabulary]``."""
        projected = self._project(0, hidden)
        clusters = functional.linear(projected, self.cluster_weight, self.cluster_bias)
        first = torch.cat([self._logits(0, projected), clusters], dim=1).log_softmax(dim=1)
        size = first.shape[1] - len(self.layout.cutoffs)
        parts = [first[:, :size]]
        for cluster in range(1, len(self.layout.bounds)):
            within = self._logits(cluster, self._project(cluster, hidden)).log_softmax(dim=1)
            parts.append(first[:, size + cluster - 1, None] + within)
        return torch.cat(parts, dim=1)

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


NORM_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class Gpt2Spec(ArchitectureSpec):
    """A GPT-2 with per-layer heads and MLP widths.

    Attributes:
        heads: attention heads of each block; each divides the width; 0 for no attention.
        inner: width of the MLP of each block; 0 for no MLP.
        embedding_width: width of the embeddings of the first cluster of the vocabulary.
        divisor: by how much each further cluster's embeddings are narrower; 1 for one table.
        cutoffs: the first tokens of the second, third, ... cluster; empty for one cluster.
        tied: for each cluster, whether the softmax shares the embedding's projection.
        weight_std: standard deviation of weights and tables when drawn.
        projection_std: standard deviation of the projections of embedding and softmax.
    """

    kind: ClassVar[str] = "gpt2"
    causal: ClassVar[bool] = True

    heads: tuple[int, ...]
    inner: tuple[int, ...]
    embedding_width: int
    divisor: int = 1
    cutoffs: tuple[int, ...] = ()
    tied: tuple[bool, ...] = (False,)
    vocabulary: int = 50_264
    max_length: int = 192
    weight_std: float = 0.02
    projection_std: float = 0.01

    def __post_init__(self) -> None:
        owner = "GPT-2 spec"
        require_positive(
            owner,
            width=self.width,
            embedding_width=self.embedding_width,
            divisor=self.divisor,
            vocabulary=self.vocabulary,
            max_length=self.max_length,
        )
        require_numbers(owner, weight_std=self.weight_std, projection_std=self.projection_std)
        require_blocks(owner, self.width, self.heads, self.inner)
        self._check_clusters(owner)

    def _check_clusters(self, owner: str) -> None:
        require_tuples(owner, cutoffs=self.cutoffs, tied=self.tied)
        require_positive(owner, **{f"cutoffs[{i}]": one for i, one in enumerate(self.cutoffs)})
        require_truths(owner, **{f"tied[{i}]": one for i, one in enumerate(self.tied)})
        edges = (0, *self.cutoffs, self.vocabulary)
        if any(low >= high for low, high in pairwise(edges)):
            raise LmscoutError(
                f"{owner}: cutoffs {brief(self.cutoffs)} must rise and stay below the vocabulary "
                f"{self.vocabulary}"
            )
        if len(self.tied) != len(self.cutoffs) + 1:
            raise LmscoutError(
                f"{owner}: tied has {len(self.tied)} entries; the {len(self.cutoffs) + 1} "
                "clusters need one each"
            )
        if self.divisor ** len(self.cutoffs) > self.embedding_width:
            raise LmscoutError(
                f"{owner}: divisor {self.divisor} leaves no width for the last cluster of an "
                f"embedding_width of {self.embedding_width}"
            )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.heads)

    @property
    def layout(self) -> AdaptiveLayout:
        """The tables and clusters of the vocabulary."""
        return AdaptiveLayout(
            vocabulary=self.vocabulary,
            width=self.width,
            embedding_width=self.embedding_width,
            divisor=self.divisor,
            cutoffs=self.cutoffs,
            tied=self.tied,
        )

    @property
    def residual_maps(self) -> int:
        """Attentions and MLPs of all blocks: each is normed before and added after."""
        return sum(size > 0 for size in (*self.heads, *self.inner))

    def attention_parameters(self) -> int:
        """Parameters of all attention layers (upstream's ``Attn``)."""
        present = sum(heads > 0 for heads in self.heads)
        return present * 4 * (self.width * self.width + self.width)

    def mlp_parameters(self) -> int:
        """Parameters of all MLPs (upstream's ``FFN``)."""
        return sum(2 * self.width * inner + inner + self.width for inner in self.inner if inner)

    def embedding_parameters(self) -> int:
        """Parameters of tables, their projections and positions (upstream's ``AdaEmb``)."""
        return self.layout.embedding_parameters() + self.max_length * self.width

    def body_parameters(self) -> int:
        """Parameters of the blocks and the final norm (upstream's ``nonembedding``)."""
        norms = (self.residual_maps + 1) * 2 * self.width
        return self.attention_parameters() + self.mlp_parameters() + norms

    def parameters(self) -> int:
        """Parameters of embedding, body and what the softmax adds (upstream's ``total``)."""
        return (
            self.embedding_parameters() + self.body_parameters() + self.layout.softmax_parameters()
        )

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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Gpt2Spec:
        """The spec from what `to_dict` gave, less ``kind``."""
        tuples = {name: tuple(item) for name, item in values.items() if isinstance(item, list)}
        return cls(**require_fields("GPT-2 spec", cls, {**values, **tuples}))


class MultiHeadAttention(nn.Module):
    """Attention whose heads share the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.attend = CausalAttention()
        self.output = ResidualLinear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        queries = split_heads(self.query(hidden), self.heads)
        keys = split_heads(self.key(hidden), self.heads)
        values = split_heads(self.value(hidden), self.heads)
        output: Tensor = self.output(self.attend(queries, keys, values))
        return output


class DecoderBlock(nn.Module):
    """Attention and MLP, or one of them, each on the normed hidden state and added to it."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attends, self.has_mlp = heads > 0, inner > 0
        if self.attends:
            self.attention_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
            self.attention = MultiHeadAttention(width, heads)
        if self.has_mlp:
            self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
            self.expand = Linear(width, inner)
            self.activation = nn.GELU(approximate="tanh")
            self.contract = ResidualLinear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        if self.attends:
            hidden = hidden + self.attention(self.attention_norm(hidden))
        if self.has_mlp:
            inner = self.activation(self.expand(self.mlp_norm(hidden)))
            hidden = hidden + self.contract(inner)
        return hidden

    def probe_points(self) -> ProbePoints:
        """Where the inputs are read in this block."""
        head: tuple[nn.Linear, ...] = ()
        mixing, mlp = head, head
        if self.attends:
            attention = self.attention
            head = (attention.query, attention.key, attention.value)
            mixing = (*head, attention.output)
        if self.has_mlp:
            mlp = (self.expand, self.contract)
        return ProbePoints(
            block=self,
            act=(self.activation,) if self.has_mlp else (),
            head=head,
            softmax=(self.attention.attend.softmax,) if self.attends else (),
            spectrum=(),
            linear=(*mixing, *mlp),
            mlp=mlp,
        )


class Gpt2Model(LanguageModel):
    """The language model that a `Gpt2Spec` builds."""

    def __init__(self, spec: Gpt2Spec) -> None:
        super().__init__()
        self.max_length = spec.max_length
        self.vocabulary = AdaptiveVocabulary(spec.layout)
        self.positions = Embedding(spec.max_length, spec.width)
        self.blocks = nn.ModuleList(
            DecoderBlock(spec.width, heads, inner)
            for heads, inner in zip(spec.heads, spec.inner, strict=True)
        )
        self.norm = nn.LayerNorm(spec.width, eps=NORM_EPSILON)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to ``[B, T, width]``."""
        self.check_length(tokens)
        return self.vocabulary.embed(tokens) + self.positions.weight[: tokens.shape[1]]

    def encode(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` through the blocks and the final norm."""
        for block in self.blocks:
            hidden = block(hidden)
        normed: Tensor = self.norm(hidden)
        return normed

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats.

        Args:
            tokens: ``[B, T]``, int64, T at least 2.

        Raises:
            LmscoutError: a sequence has no next token, or more tokens than positions.
        """
        hidden, targets = self.next_token_states(tokens)
        return self.vocabulary.negative_log_likelihood(hidden, targets).mean()

    def probe_points(self) -> tuple[ProbePoints, ...]:
        """Where the inputs are read, one entry a block."""
        return tuple(cast(DecoderBlock, block).probe_points() for block in self.blocks)
