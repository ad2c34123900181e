import math

import pytest
import torch
from hypothesis import given, settings
from model_strategies import transformer_xl_specs
from torch import nn
from torch.nn import functional

from lmscout.errors import LmscoutError
from lmscout.models import TransformerXlSpec
from lmscout.models.layers import fuse_attention


def tiny(**changes):
    given = {
        "width": 8,
        "heads": (2, 4),
        "inner": (5, 12),
        "embedding_width": 12,
        "divisor": 2,
        "cutoffs": (7, 11),
        "tied": (False, True, True),
        "vocabulary": 17,
        "max_length": 10,
    }
    return TransformerXlSpec(**{**given, **changes})


def shaken(spec, seed=0):
    """A model none of whose weights is special, in double precision."""
    model = spec.build(seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            shape = parameter.shape
            parameter.copy_(torch.randn(shape, generator=generator, dtype=torch.float64))
    return model


def attended(attention, hidden):
    """What an attention adds to hidden states [T, width]: one head, query and key at a time."""
    length, width = hidden.shape
    size = width // attention.heads
    query, key, value = (getattr(attention, name)(hidden) for name in ("query", "key", "value"))
    context = torch.zeros_like(hidden)
    for head in range(attention.heads):
        part = slice(size * head, size * head + size)
        for i in range(length):
            scores = []
            for j in range(i + 1):
                angles = [(i - j) / 10_000 ** (2 * k / width) for k in range(width // 2)]
                distance = [*map(math.sin, angles), *map(math.cos, angles)]
                position = attention.position(torch.tensor(distance, dtype=torch.float64))
                by_content = query[i, part] + attention.content_offset[head, 0]
                by_position = query[i, part] + attention.position_offset[head, 0]
                score = by_content @ key[j, part] + by_position @ position[part]
                scores.append(score / math.sqrt(size))
            context[i, part] = torch.stack(scores).softmax(0) @ value[: i + 1, part]
    return attention.output(context)


def normed(norm, hidden):
    return functional.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, eps=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_block_is_relative_attention_then_mlp(pre_norm, fused):
    model = shaken(tiny(pre_norm=pre_norm))
    if fused:
        fuse_attention(model)
    block = model.blocks[1]
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 6, 8, dtype=torch.float64, generator=generator)
    mlp = block.mlp
    for one, found in zip(hidden, block(hidden), strict=True):
        if pre_norm:
            middle = one + attended(block.attention, normed(block.attention_norm, one))
            inner = mlp.expand(normed(block.mlp_norm, middle)).clamp(min=0)
            expected = middle + mlp.contract(inner)
        else:
            middle = normed(block.attention_norm, one + attended(block.attention, one))
            inner = mlp.expand(middle).clamp(min=0)
            expected = normed(block.mlp_norm, middle + mlp.contract(inner))
        torch.testing.assert_close(found, expected)


def test_there_are_neither_positions_before_the_blocks_nor_a_norm_after():
    model = shaken(tiny(heads=(2, 0), inner=(0, 12)))
    tokens = torch.tensor([[3, 16, 9, 3, 0]])
    hidden = model.vocabulary.embed(tokens)
    attending, computing = model.blocks
    hidden = normed(attending.attention_norm, hidden + attended(attending.attention, hidden[0]))
    inner = computing.mlp.expand(hidden).clamp(min=0)
    expected = normed(computing.mlp_norm, hidden + computing.mlp.contract(inner))
    torch.testing.assert_close(model(tokens), expected)
    likelihood = model.vocabulary.negative_log_likelihood(expected[0, :-1], tokens[0, 1:])
    torch.testing.assert_close(model.loss(tokens), likelihood.mean())
    first, second = model.probe_points()
    assert (first.act, first.mlp, len(first.head), len(first.softmax)) == ((), (), 3, 1)
    assert (second.head, second.softmax, second.act) == ((), (), (computing.mlp.activation,))
    attention = attending.attention
    assert set(first.linear) == {*first.head, attention.position, attention.output}
    assert second.linear == second.mlp == (computing.mlp.expand, computing.mlp.contract)


@settings(max_examples=50, deadline=None)
@given(spec=transformer_xl_specs())
def test_counts_equal_the_built_module(spec):
    model = spec.build(seed=0)

    def size(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    assert size(model) == spec.parameters()
    assert size(model.blocks) == spec.body_parameters()
    assert size(*(b.attention for b in model.blocks if b.attention)) == spec.attention_parameters()
    assert size(*(b.mlp for b in model.blocks if b.mlp)) == spec.mlp_parameters()
    tables = size(model.vocabulary.tables, model.vocabulary.projections)
    assert tables == spec.embedding_parameters()
    linear = [one for one in model.blocks.modules() if isinstance(one, nn.Linear)]
    assert sum(one.weight.numel() for one in linear) == spec.matrices()
    # Of every pair of a query and a key not after it: content, position and value.
    length = spec.max_length
    pairs = sum(i + 1 for i in range(length))
    products = sum(3 * spec.width * pairs for heads in spec.heads if heads)
    assert length * spec.multiply_adds() == length * spec.matrices() + products


def test_weights_and_offsets_have_the_standard_deviations_of_the_spec():
    spec = tiny(width=64, inner=(300, 300), embedding_width=128, vocabulary=900, cutoffs=(300, 600))
    model = spec.build(seed=0)
    block = model.blocks[0]
    attention = block.attention
    for weight in (block.mlp.contract.weight, attention.output.weight, attention.position.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    for offset in (attention.content_offset, attention.position_offset):
        assert offset.std().item() == pytest.approx(0.02, rel=0.5)
    assert model.vocabulary.projections[0].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not block.mlp.expand.bias.any()
    assert block.mlp_norm.weight.eq(1).all()
    assert torch.equal(spec.build(seed=0).blocks[0].mlp.expand.weight, block.mlp.expand.weight)


def test_a_width_without_halves_is_refused():
    with pytest.raises(LmscoutError, match=r"Transformer-XL spec: width is 9; .* an even one"):
        tiny(width=9, heads=(3, 3))
    with pytest.raises(LmscoutError, match=r"11 tokens are too long.* 10 positions"):
        tiny().build(seed=0).loss(torch.zeros(1, 11, dtype=torch.int64))
