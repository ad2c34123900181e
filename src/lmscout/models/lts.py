"""LiteTransformerSearch's GPT-2 and Transformer-XL: heads and MLP width of each block its own.

The search space and its trained models are Javaheripi et al.'s (arXiv 2203.02094, github
microsoft/archai, branch neurips-lts).  Their blocks have attention and MLP; here one may be
missing.  Adaptive embedding and softmax share one set of tables, with the sizes, tying and scaling
of Transformer-XL (Dai et al., arXiv 1901.02860).

GPT-2 has pre-norm blocks and learned positions; Transformer-XL relative positions, MLPs with ReLU,
and norms after attention and MLP.  A pass is over one segment without a memory, as the first one
of their training.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pydantic import StrictBool
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from lmscout.errors import brief
from lmscout.models.layers import (
    DecoderBlock,
    DecoderSpec,
    Embedding,
    Linear,
    Mlp,
    Projection,
    ResidualLinear,
    SelfAttention,
    draw_weights,
    split_heads,
)
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

NORM_EPSILON = 1e-5  # of GPT-2


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdaptiveSpec(DecoderSpec):
    """A decoder with per-block heads and MLP widths, and an adaptive vocabulary."""

    heads: PerBlock  # attention heads of each block; each divides the width; 0 for no attention
    inner: PerBlock  # width of the MLP of each block; 0 for no MLP
    embedding_width: Width  # width of the embeddings of the first cluster of the vocabulary
    divisor: Size = 1  # cluster i is ``embedding_width // divisor**i`` wide; 1 for one table
    # the first tokens of the second, third, ... cluster; empty for one cluster
    cutoffs: tuple[Vocabulary, ...] = ()
    # for each cluster, whether the softmax shares the embedding's projection
    tied: tuple[StrictBool, ...] = (False,)
    vocabulary: Vocabulary = 50_264
    max_length: Size = 192
    weight_std: Positive = 0.02  # standard deviation of weights and tables when drawn
    # standard deviation of the projections of embedding and softmax
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
        """-log p(target | hidden) of each row, in nats: ``[N, width]``, ``[N]`` int64 to ``[N]``.

        A tail cluster is evaluated only for the rows whose target lies in it.
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


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TransformerXlSpec(AdaptiveSpec):
    """A Transformer-XL with per-block heads and MLP widths."""

    kind: ClassVar[str] = "transformer_xl"
    title: ClassVar[str] = "Transformer-XL spec"
    attention_maps: ClassVar[int] = 5

    # whether norms come before attention and MLP; else after each sum.  There is no final norm
    pre_norm: StrictBool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 2:
            raise self.error(f"width is {self.width}; sinusoidal positions need an even one")

    def attention_parameters(self) -> int:
        """As in `AdaptiveSpec`, with the two offsets of the queries."""
        return self.attentions * (self.attention_maps * self.width + 2) * self.width

    def multiply_adds(self) -> int:
        """As in `DecoderSpec`, with the products of queries and relative positions."""
        products = self.attentions * self.width // 2 * (self.max_length + 1)
        return super().multiply_adds() + products

    def build(self, seed: int) -> TransformerXlModel:
        """The model in eval mode: weights and offsets normal, biases 0, norms the identity."""
        self.require_memory()
        model = TransformerXlModel(self)
        draw_weights(model, seed, self.weight_std, {Projection: self.projection_std})
        return model.eval()


class RelativeAttention(SelfAttention):
    """Causal attention to contents and to relative positions (arXiv 1901.02860, section 3.3).

    The score of a query i and a key j is (q_i + u) · k_j + (q_i + v) · W r_(i - j), over the root
    of the head's size; r is a sinusoidal embedding of the distance.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, bias=False)
        self.position = Linear(width, width, bias=False)
        self.content_offset = nn.Parameter(torch.empty(heads, 1, width // heads))  # u
        self.position_offset = nn.Parameter(torch.empty(heads, 1, width // heads))  # v

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, width]`` to the same shape."""
        queries, keys, values = (
            split_heads(project(hidden), self.heads)
            for project in (self.query, self.key, self.value)
        )
        distances = split_heads(self.position(_falling_distances(hidden))[None], self.heads)
        products = (queries + self.position_offset) @ distances.transpose(-1, -2)
        contents = queries + self.content_offset
        return self.output(self.attend(contents, keys, values, _by_key(products)))


def _falling_distances(hidden: Tensor) -> Tensor:
    """Sines, then cosines, of the distances T - 1 to 0 for ``[B, T, width]``: ``[T, width]``."""
    _, length, width = hidden.shape
    steps = torch.arange(0, width, 2, dtype=hidden.dtype, device=hidden.device)
    distances = torch.arange(length - 1, -1, -1, dtype=hidden.dtype, device=hidden.device)
    angles = distances[:, None] / 10_000 ** (steps / width)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _by_key(products: Tensor) -> Tensor:
    """Products of query i with falling distances, as those of query i with keys j = 0, 1, ....

    ``[B, heads, T, T]`` with distances T - 1 to 0 on the last axis, to the same with keys 0 to T -
    1. Row i begins T - 1 - i places to the right of where it should. With one column more on the
    left, and rows of T + 1 numbers cut into rows of T from the second on, it begins in its place;
    keys after i hold numbers without meaning.
    """
    *outer, length, _ = products.shape
    return functional.pad(products, (1, 0)).view(*outer, length + 1, length)[..., 1:, :]


class TransformerXlModel(AdaptiveModel):
    """The language model that a `TransformerXlSpec` builds."""

    def __init__(self, spec: TransformerXlSpec) -> None:
        super().__init__()
        self.max_length = spec.max_length
        self.vocabulary = AdaptiveVocabulary(spec)
        self.blocks = nn.ModuleList(
            DecoderBlock(
                partial(nn.LayerNorm, spec.width),
                RelativeAttention(spec.width, heads) if heads else None,
                Mlp(spec.width, inner, nn.ReLU()) if inner else None,
                post_norm=not spec.pre_norm,
            )
            for heads, inner in zip(spec.heads, spec.inner, strict=True)
        )
        self.norm = nn.Identity()

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` (int64) to ``[B, T, width]``."""
        self.check_length(tokens)
        return self.vocabulary.embed(tokens)
