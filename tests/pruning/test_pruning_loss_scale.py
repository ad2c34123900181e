"""Gradients of models in float16, against those of the same weights in float32."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_language_models import random_model, random_windows
from torch import nn

from lmscout.errors import LmscoutError
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of
from lmscout.pruning.importance import (
    gradients_by_block,
    importance,
    loss_scale,
    lower_scale,
)
from lmscout.pruning.plan import dense_row
from lmscout.pruning.prefix_tables import visit_tensors
from lmscout.pruning.proxy_objective import compute_objectives, parse_proxy
from lmscout.pruning.recovery.training import RecoverySettings, train

CPU = torch.device("cpu")


@given(tokens=st.integers(1, 10**7))
def test_a_factor_is_a_power_of_two_below_the_tokens_and_falls_to_one(tokens):
    scale = loss_scale(torch.float16, tokens)
    assert np.log2(scale) % 1 == 0
    assert 1 <= scale <= max(1, tokens / 4)
    while scale > 1:
        lower = lower_scale(scale)
        assert 1 <= lower < scale
        scale = lower
    for wide in (torch.bfloat16, torch.float32, torch.float64):
        assert loss_scale(wide, tokens) == 1


def faint(name="llama"):
    """A model whose gradients are small, its weights such that float16 holds them."""
    model = random_model(name)
    with torch.no_grad():
        norm = model.transformer.ln_f if name == "gpt2" else model.model.norm
        norm.weight *= 2**-6
        if name == "gpt2":
            norm.bias *= 2**-6
    return model.half().float()


def steep():
    """A model whose gradients are so large that a multiple of them overflows."""
    model = random_model("llama-bias")
    with torch.no_grad():
        model.lm_head.weight *= 2**5
        model.model.embed_tokens.weight *= 2**-7
        for block in model.model.layers:
            for output in (block.self_attn.o_proj, block.mlp.down_proj):
                output.weight *= 2**-7
                output.bias *= 2**-7
    return model.half().float()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_taylor_importance_is_that_of_wider_weights(name):
    model, windows = faint(name), random_windows(256)
    family = family_of(model.config)
    wide = importance("taylor", model, family, windows=windows)
    narrow = importance("taylor", model.half(), family, windows=windows)
    for place, scores in wide.items():
        torch.testing.assert_close(narrow[place], scores, rtol=1e-2, atol=0)


def test_a_factor_falls_where_a_blocks_gradients_overflow():
    model, windows = steep(), random_windows(256)
    family = family_of(model.config)
    wide = {one.index: one.parts for one in gradients_by_block(model, family, windows)}
    scales = []
    for block in gradients_by_block(model.half(), family, windows):
        scales.append(block.scale)
        for kind, part in block.parts.sublayers.items():
            both = [
                one.changed(lambda tensor: tensor.grad).views()
                for one in (part, wide[block.index].sublayers[kind])
            ]
            for one, other in zip(*both, strict=True):
                error = one.float() / block.scale - other
                assert error.norm() < 0.02 * other.norm()
    assert max(scales) < loss_scale(torch.float16, windows[:, 1:].numel())
    assert scales == sorted(scales, reverse=True)


def read(model, windows):
    places = []

    def visit(place):
        places.append({name: one.clone() for name, one in place.tensors.items()})

    visit_tensors(model, family_of(model.config), windows, visit)
    return places


def test_what_a_proxy_reads_is_that_of_wider_weights():
    model, windows = faint(), random_windows(256)
    wide = read(model, windows)
    for one, other in zip(read(model.half(), windows), wide, strict=True):
        for name, tensor in one.items():
            assert (tensor - other[name]).norm() < 0.01 * other[name].norm(), name


def test_gradients_that_overflow_where_a_proxy_reads_are_one_line():
    with pytest.raises(LmscoutError, match="overflow in float16: load it in bfloat16") as error:
        read(steep().half(), random_windows(256))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "snip",
        "fisher",
        "synaptic-diversity",  # which float16 has no decomposition for
        "sum(average(square(grad)))",
        "sum(average(invert(weight)))",  # some are 0
        "sum(average(square(minmax(grad))))",  # by its definition
        "sum(average(invert(relu(normalize(weight)))))",  # by its definition, of which most are 0
    ],
)
def test_proxies_compute_in_float32(text):
    model, windows = faint(), random_windows(64)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.up_proj.weight[::5, ::7] = 0.0
    family = family_of(model.config)
    shape = shape_of(family.all_parts(model))
    units = dense_row(shape)
    rows = np.stack([units, np.maximum(1, units // 2)])
    asked = [parse_proxy(f"proxy:+{text}")]
    (wide,) = (one.scores(rows) for one in compute_objectives(asked, model, family, shape, windows))
    narrow = compute_objectives(asked, model.half(), family, shape, windows)
    np.testing.assert_allclose(narrow[0].scores(rows), wide, rtol=2e-2)


def trained(tmp_path, dtype, factor, *, steps=3):
    """A vector trained by a loss whose gradient passes through a dtype, as through a model."""
    vector = nn.Parameter(torch.linspace(-1.0, 1.0, 8))
    slopes = torch.linspace(0.25, 1.0, 8)
    settings = RecoverySettings(batch_tokens=2048, steps=steps, learning_rate=0.1)
    train(
        {"vector": vector},
        lambda *_: (vector.to(dtype) * slopes.to(dtype)).float().square().sum() * factor,
        torch.zeros(64, 64, dtype=torch.int64),
        settings,
        tmp_path / f"{dtype}.safetensors",
        {},
        device=CPU,
        dtype=dtype,
    )
    return vector.detach()


@pytest.mark.parametrize("factor", [1e-7, 1.0, 1e3])
def test_a_step_in_float16_is_that_in_float32(tmp_path, factor):
    wide = trained(tmp_path, torch.float32, factor)
    narrow = trained(tmp_path, torch.float16, factor)
    assert not torch.equal(wide, torch.linspace(-1.0, 1.0, 8))
    torch.testing.assert_close(narrow, wide, rtol=1e-2, atol=1e-2)


def test_a_gradient_that_is_not_finite_makes_no_step(tmp_path):
    with pytest.raises(LmscoutError, match="gradient of step 0 is not finite") as error:
        trained(tmp_path, torch.float16, 1e7)
    assert "\n" not in str(error.value)
