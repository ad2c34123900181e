import pytest
import torch
from torch import nn

from lmscout.models.layers import (
    CausalAttention,
    Conv1d,
    Embedding,
    Linear,
    Projection,
    ResidualLinear,
    draw_weights,
    fuse_attention,
    merge_heads,
    split_heads,
)


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = Linear(100, 200)
        self.tied = self.linear
        self.projection = Projection(100, 200)
        self.residual = ResidualLinear(100, 200)
        self.embedding = Embedding(300, 50, padding_idx=3)
        self.convolution = Conv1d(40, 50, 5)
        self.norm = nn.LayerNorm(7)
        self.rms_norm = nn.RMSNorm(7)
        self.some_bias = nn.Parameter(torch.empty(5))


def test_draw_weights_gives_every_kind_its_distribution():
    model = Everything()
    draw_weights(model, seed=1, std=0.5, std_of={Projection: 0.1, ResidualLinear: 0.2})
    weights = {
        "linear": (model.linear.weight, 0.5),
        "embedding": (model.embedding.weight, 0.5),
        "convolution": (model.convolution.weight, 0.5),
        "projection": (model.projection.weight, 0.1),
        "residual": (model.residual.weight, 0.2),
    }
    for name, (weight, std) in weights.items():
        assert weight.std().item() == pytest.approx(std, rel=0.05), name
        assert abs(weight.mean().item()) < 0.05 * std, name
    assert not model.linear.bias.any()
    assert not model.convolution.bias.any()
    assert not model.some_bias.any()
    assert torch.equal(model.norm.weight, torch.ones(7))
    assert torch.equal(model.norm.bias, torch.zeros(7))
    assert torch.equal(model.rms_norm.weight, torch.ones(7))
    assert not model.embedding.weight[3].any()
    assert model.embedding.weight[4].any()


@pytest.mark.parametrize("size", [(5,), (16,), (3, 7), (50, 81), (1 << 9, 129)])
def test_weights_are_those_that_pytorch_draws_but_for_rounding(size):
    module = nn.Module()
    module.some = nn.Parameter(torch.empty(size))
    draw_weights(module, seed=7, std=0.5)
    expected = torch.empty(size).normal_(0.0, 0.5, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(module.some.detach(), expected, rtol=1e-5, atol=1e-6)


def test_projections_share_the_std_unless_given_one():
    model = Projection(200, 200)
    draw_weights(model, seed=1, std=0.5)
    assert model.weight.std().item() == pytest.approx(0.5, rel=0.05)


def test_a_tied_tensor_is_drawn_once():
    tied = nn.ModuleList([Linear(3, 3, bias=False), Linear(3, 3, bias=False)])
    tied[1].weight = tied[0].weight
    single = nn.ModuleList([Linear(3, 3, bias=False)])
    draw_weights(tied, seed=4, std=1.0)
    draw_weights(single, seed=4, std=1.0)
    assert torch.equal(tied[0].weight, single[0].weight)


def test_neither_making_nor_drawing_moves_the_global_generator():
    before = torch.get_rng_state()
    draw_weights(Everything(), seed=0, std=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_heads_are_contiguous_slices_of_the_width():
    hidden = torch.randn(2, 5, 12)
    heads = split_heads(hidden, 3)
    assert heads.shape == (2, 3, 5, 4)
    for head in range(3):
        assert torch.equal(heads[:, head], hidden[..., 4 * head : 4 * head + 4])
    assert torch.equal(merge_heads(heads), hidden)


def test_causal_attention_is_softmax_over_what_came_before():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 5, 4, generator=generator, dtype=torch.float64)
    expected = torch.zeros(2, 5, 12, dtype=torch.float64)
    for sample in range(2):
        for head in range(3):
            for place in range(5):
                keys = key[sample, head, : place + 1]
                weights = (keys @ query[sample, head, place] / 2).softmax(0)
                mixed = weights @ value[sample, head, : place + 1]
                expected[sample, place, 4 * head : 4 * head + 4] = mixed
    attend = CausalAttention()
    torch.testing.assert_close(attend(query, key, value), expected)
    seen = []
    attend.softmax.register_forward_hook(lambda _m, _a, output: seen.append(output.shape))
    attend(query, key, value)
    assert seen == [(2, 3, 5, 5)]
    fuse_attention(nn.Sequential(attend))
    torch.testing.assert_close(attend(query, key, value), expected)
    assert len(seen) == 1
