import csv
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from model_strategies import flexibert_specs
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lmscout.benchmarks import load
from lmscout.errors import LmscoutError
from lmscout.models import FlexibertBlock, FlexibertSpec
from lmscout.models.flexibert import MIXERS


def block(mixer="SDP", heads=2, feed_forward=6, stack=1):
    return FlexibertBlock(mixer=mixer, heads=heads, feed_forward=feed_forward, stack=stack)


def tiny(*blocks, **changes):
    settings = {"width": 8, "embedding_width": 4, "vocabulary": 11, "max_length": 9}
    return FlexibertSpec(blocks=blocks or (block(),), **{**settings, **changes})


@pytest.fixture(scope="module")
def benchmark(shared_data):
    return load(f"flexibert:{shared_data / 'flexibert' / 'BERT_benchmark.json'}")


def test_counts_equal_those_recorded_upstream_for_all_500(benchmark, shared_data):
    # Upstream measured models 256 wide with MLPs of 1,024, whatever was trained.
    path = shared_data / "flexibert" / "BERT_results_activation.csv"
    if not path.exists():
        pytest.skip(f"{path.name}, with upstream's parameter counts, is not there")
    with path.open() as file:
        recorded = {row["ID"]: int(row["Number of Parameters"]) for row in csv.DictReader(file)}
    assert len(recorded) == 500
    for identifier, spec in zip(benchmark.identifiers, benchmark.specs, strict=True):
        blocks = tuple(dataclasses.replace(b, feed_forward=1024) for b in spec.blocks)
        measured = dataclasses.replace(spec, width=256, blocks=blocks)
        assert measured.parameters() == recorded[identifier], identifier


def test_counts_equal_the_built_module_on_real_rows(benchmark):
    mixers = set()
    for row in (0, 1, 2, 100, 499):
        spec = benchmark.specs[row]
        model = spec.build(seed=0)
        mixers |= {b.mixer for b in spec.blocks}
        assert sum(p.numel() for p in model.parameters()) == spec.parameters()
        assert sum(p.numel() for p in model.blocks.parameters()) == spec.body_parameters()
    assert mixers == set(MIXERS)


@settings(max_examples=50, deadline=None)
@given(spec=flexibert_specs)
def test_counts_equal_the_built_module(spec):
    model = spec.build(seed=0)
    assert spec.depth == len(model.blocks)
    assert sum(p.numel() for p in model.parameters()) == spec.parameters()
    assert sum(p.numel() for p in model.blocks.parameters()) == spec.body_parameters()


def test_a_block_is_mixer_then_mlp_each_normed_after_its_residual():
    model = tiny(block(stack=3)).build(seed=1)
    hidden = torch.randn(2, 5, 8)
    layer = model.blocks[0]
    mixed = layer.output(layer.mixer(hidden)) + hidden
    mixed = functional.layer_norm(mixed, (8,), eps=1e-12)
    inner = mixed
    for linear in layer.feed_forward.layers:
        pre = linear(inner)
        inner = pre * 0.5 * (1 + torch.erf(pre / 2**0.5))
    expected = functional.layer_norm(layer.feed_forward.output(inner) + mixed, (8,), eps=1e-12)
    torch.testing.assert_close(layer(hidden), expected)


@pytest.mark.parametrize("mixer", ["DFT", "DCT"])
def test_a_transforming_block_has_nothing_between_mixer_and_mlp(mixer):
    model = tiny(block(mixer)).build(seed=1)
    hidden = torch.randn(2, 5, 8)
    layer = model.blocks[0]
    mixed = layer.mixer(hidden)
    expected = functional.layer_norm(layer.feed_forward(mixed) + mixed, (8,), eps=1e-12)
    torch.testing.assert_close(layer(hidden), expected)


def test_embedding_adds_word_position_and_type_then_norms_and_projects():
    model = tiny().build(seed=2)
    tokens = torch.tensor([[3, 0, 3, 10]])
    added = model.tokens.weight[tokens] + model.positions.weight[:4] + model.token_types.weight[0]
    normed = functional.layer_norm(added, (4,), eps=1e-12)
    expected = functional.linear(normed, model.project.weight, model.project.bias)
    torch.testing.assert_close(model.embed(tokens), expected)
    assert not model.tokens.weight[0].any()


def test_an_embedding_of_the_models_width_is_not_projected():
    model = tiny(embedding_width=8).build(seed=2)
    assert isinstance(model.project, nn.Identity)


def test_forward_is_encode_after_embed():
    model = tiny(block("DSC5"), block("DCT")).build(seed=2)
    tokens = torch.randint(0, 11, (2, 9))
    hidden = model.embed(tokens)
    for layer in model.blocks:
        hidden = layer(hidden)
    assert torch.equal(model(tokens), hidden)


def test_a_build_is_in_eval_mode_repeats_by_seed_and_leaves_the_global_generator():
    spec = tiny(*(block(mixer) for mixer in MIXERS))
    before = torch.get_rng_state()
    first, again, other = spec.build(seed=5), spec.build(seed=5), spec.build(seed=6)
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.tokens.weight, other.tokens.weight)


def gradients(model, loss):
    linear = [layer.weight for points in model.probe_points() for layer in points.linear]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, linear)])


def test_the_plain_sum_of_the_last_hidden_state_has_no_gradient():
    """Why the loss has signs: without them there is nothing but rounding noise."""
    spec = tiny(block(feed_forward=32), block("WMA", feed_forward=32), width=32)
    model = spec.build(seed=0)
    tokens = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(0))
    signed = gradients(model, model.loss(tokens))
    plain = gradients(model, model(tokens).sum())
    assert plain.norm() < 1e-5 * signed.norm()
    assert signed.abs().max() > 0.1


def test_the_loss_is_the_hidden_state_under_fixed_signs():
    model = tiny().build(seed=0)
    tokens = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    assert model.loss(tokens) == model.loss(tokens)
    kept = []
    model.blocks[-1].register_forward_hook(lambda _m, _a, output: kept.append(output))
    loss = model.loss(tokens)
    (signs,) = torch.autograd.grad(loss, kept)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.5
    torch.testing.assert_close((kept[0] * signs).sum(), loss)


def test_probe_points_name_every_place_once():
    model = tiny(block("WMA", stack=3), block("DSC9"), block("DFT")).build(seed=0)
    weighted, convolving, fourier = model.probe_points()
    assert [len(p.act) for p in (weighted, convolving, fourier)] == [3, 1, 1]
    assert [len(p.head) for p in (weighted, convolving, fourier)] == [3, 3, 1]
    assert [len(p.softmax) for p in (weighted, convolving, fourier)] == [1, 1, 0]
    assert [len(p.spectrum) for p in (weighted, convolving, fourier)] == [0, 0, 1]
    # q, k, v, WMA's own, output, 3 + 1 of the MLP; q, k, v, 2 of the convolution, output, 2.
    assert [len(p.linear) for p in (weighted, convolving, fourier)] == [9, 8, 3]
    assert model.blocks[0].mixer.weight in weighted.linear
    assert model.blocks[0].mixer.weight not in weighted.head
    for points, layer in zip(model.probe_points(), model.blocks, strict=True):
        assert points.block is layer
        assert len(set(points.act)) == len(points.act)
        assert len(set(points.linear)) == len(points.linear)


def test_hooks_on_probe_points_see_each_activation():
    model = tiny(block(stack=3)).build(seed=0)
    shapes = []
    for module in model.probe_points()[0].act:
        module.register_forward_hook(lambda _m, _a, output: shapes.append(tuple(output.shape)))
    model(torch.randint(0, 11, (2, 5)))
    assert shapes == [(2, 5, 6)] * 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tiny(width=0), "width must be a whole number above 0"),
        (lambda: tiny(vocabulary=2.5), "vocabulary must be a whole number above 0"),
        (lambda: tiny(max_length=True), "max_length must be a whole number above 0"),
        (lambda: FlexibertSpec(blocks=(), width=8), "blocks is empty"),
        (lambda: tiny(block(), block(heads=3)), r"blocks\[1\]: heads 3 does not divide"),
        (lambda: tiny(block(mixer="LSTM")), r"blocks\[0\]: mixer 'LSTM' is unknown"),
        (lambda: tiny(block("DSC5", heads=1)), "heads 1 is odd"),
        (lambda: tiny(block(stack=0)), "stack must be a whole number above 0"),
        (lambda: tiny(block(feed_forward="6")), "feed_forward must be a whole number"),
    ],
)
def test_a_bad_spec_names_the_field(make, said):
    with pytest.raises(LmscoutError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_sequences_longer_than_the_positions_are_refused():
    with pytest.raises(LmscoutError, match=r"10 tokens are too long.* 9 positions"):
        tiny().build(seed=0).loss(torch.zeros(1, 10, dtype=torch.int64))


@pytest.mark.parametrize("name", [*MIXERS, "stacked"])
def test_multiply_adds_are_those_that_pytorch_counts(name):
    """PyTorch counts no fast transform: 2 log2 of the length and of a head, for each number."""
    first = block("SDP", stack=3) if name == "stacked" else block(name, heads=4, feed_forward=24)
    blocks = (first, block("WMA", feed_forward=40))
    spec = FlexibertSpec(width=32, blocks=blocks, embedding_width=8, vocabulary=50, max_length=12)
    model = spec.build(0)
    with torch.no_grad():
        hidden = model.embed(torch.zeros(1, spec.max_length, dtype=torch.int64))
        with FlopCounterMode(display=False) as counter:
            model.encode(hidden)
    fourier = 32 * 2 * (4 + 3) if name == "DFT" else 0  # 12 positions of 16, 8 features
    assert spec.multiply_adds() == counter.get_total_flops() / 2 / spec.max_length + fourier
