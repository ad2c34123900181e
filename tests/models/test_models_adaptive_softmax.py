"""The shared tables against definitions over the whole vocabulary, one token at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_strategies import gpt2_specs

from lmscout.models import Gpt2Spec
from lmscout.models.layers import Projection, draw_weights
from lmscout.models.lts import AdaptiveVocabulary

TINY = Gpt2Spec(
    heads=(1,),
    inner=(4,),
    vocabulary=13,
    width=6,
    embedding_width=8,
    divisor=2,
    cutoffs=(5, 9),
    tied=(False, True, True),
)


def made(spec, seed=0):
    module = AdaptiveVocabulary(spec).double()
    draw_weights(module, seed, std=0.5, std_of={Projection: 0.7})
    with torch.no_grad():
        module.token_bias.copy_(torch.linspace(-1, 1, spec.vocabulary))
        module.cluster_bias.copy_(torch.linspace(0.5, 1, len(spec.cutoffs)))
    return module


def cluster_of(spec, token):
    return sum(token >= cutoff for cutoff in spec.cutoffs)


def vector(module, token):
    spec, cluster = module.spec, cluster_of(module.spec, token)
    if spec.divisor == 1:
        return module.tables[0].weight[token]
    return module.tables[cluster].weight[token - (0, *spec.cutoffs)[cluster]]


def all_log_probabilities(module, hidden):
    """[N, vocabulary], by the definition: first softmax, then within the cluster."""
    spec = module.spec

    def logit(token):
        cluster = cluster_of(spec, token)
        inside = project(cluster) @ vector(module, token)
        return inside + module.token_bias[token]

    def project(cluster):
        if spec.divisor == 1 and spec.width == spec.embedding_width:
            return hidden
        if spec.tied[cluster]:
            shared = module.projections[0 if spec.divisor == 1 else cluster]
            return hidden @ shared.weight
        return hidden @ module.own_projections[str(cluster)].weight

    members = [[] for _ in spec.tied]
    for token in range(spec.vocabulary):
        members[cluster_of(spec, token)].append(token)
    first = [logit(token) for token in members[0]]
    for cluster in range(len(spec.cutoffs)):
        first.append(project(0) @ module.cluster_weight[cluster] + module.cluster_bias[cluster])
    first = torch.stack(first, dim=1).log_softmax(dim=1)
    columns = [first[:, : len(members[0])]]
    for cluster, tokens in enumerate(members[1:], start=1):
        within = torch.stack([logit(token) for token in tokens], dim=1).log_softmax(dim=1)
        columns.append(within + first[:, len(members[0]) + cluster - 1, None])
    return torch.cat(columns, dim=1)


@settings(max_examples=40, deadline=None)
@given(spec=gpt2_specs(), seed=st.integers(0, 100))
def test_likelihood_and_its_gradient_follow_the_definition(spec, seed):
    module = made(spec, seed)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(6, spec.width, dtype=torch.float64, generator=generator)
    hidden.requires_grad_()
    targets = torch.randint(0, spec.vocabulary, (6,), generator=generator)
    found = module.negative_log_likelihood(hidden, targets)
    expected = -all_log_probabilities(module, hidden)[torch.arange(6), targets]
    torch.testing.assert_close(found, expected)
    inputs = [hidden, module.token_bias, *(table.weight for table in module.tables)]
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), inputs),
        torch.autograd.grad(expected.sum(), inputs),
    )


@settings(max_examples=60, deadline=None)
@given(spec=gpt2_specs())
def test_probabilities_of_the_vocabulary_sum_to_1(spec):
    module = made(spec)
    hidden = torch.randn(1, spec.width, dtype=torch.float64)
    every = torch.arange(spec.vocabulary)
    found = module.negative_log_likelihood(hidden.expand(len(every), -1), every)
    assert torch.exp(-found).sum().item() == pytest.approx(1, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(spec=gpt2_specs())
def test_embeddings_follow_the_definition(spec):
    module = made(spec)
    tokens = torch.arange(spec.vocabulary).flip(0)[None].repeat(2, 1)
    found = module.embed(tokens)
    assert found.shape == (2, spec.vocabulary, spec.width)
    for place, token in enumerate(tokens[0].tolist()):
        expected = vector(module, token)
        if spec.projected:
            cluster = 0 if spec.divisor == 1 else cluster_of(spec, token)
            expected = module.projections[cluster].weight @ expected
        expected = expected * math.sqrt(spec.width)
        torch.testing.assert_close(found[0, place], expected)
        torch.testing.assert_close(found[1, place], expected)


@settings(max_examples=60, deadline=None)
@given(spec=gpt2_specs())
def test_counts_equal_the_built_module(spec):
    module = AdaptiveVocabulary(spec)
    embedding = [*module.tables.parameters(), *module.projections.parameters()]
    positions = spec.max_length * spec.width
    assert spec.embedding_parameters() == positions + sum(p.numel() for p in embedding)
    total = positions + sum(p.numel() for p in module.parameters())
    assert spec.parameters() == spec.body_parameters() + total


def test_a_tail_cluster_without_targets_is_not_evaluated():
    module = made(TINY)
    with torch.no_grad():
        module.tables[2].weight.fill_(math.nan)
    targets = torch.tensor([0, 4, 8])
    hidden = torch.randn(3, TINY.width, dtype=torch.float64)
    assert module.negative_log_likelihood(hidden, targets).isfinite().all()
    assert module.embed(torch.tensor([[0, 8]])).isfinite().all()
    last = module.negative_log_likelihood(hidden, torch.tensor([0, 4, 9]))
    assert last.isfinite().tolist() == [True, True, False]
