"""Latency tables of models that are slow in known places."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_language_models import CONFIGS, random_model, random_windows

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import budget_of
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of
from lmscout.pruning.families.llama import Llama
from lmscout.pruning.latency import Curve, Latency, from_json, measure_latency, to_json
from lmscout.pruning.plan import dense_row

MEASURED = Latency(
    attention=(Curve((0, 1, 2), (0.0, 0.125, 0.25)),) * 2,
    mlp=(Curve((0, 1, 3), (0.0, 1 / 3, 0.5)), Curve((0, 1, 4), (0.0, 0.1, 0.3))),
    fixed=0.7,
    windows=3,
    tokens=16,
)


def family_and_shape(model):
    family = family_of(model.config)
    return family, shape_of([family.parts(block) for block in family.blocks(model)])


def sleeping(module, seconds):
    """Let a module take so many seconds more; no wait is ever shorter than asked for."""
    module.register_forward_pre_hook(lambda *_: time.sleep(seconds))


@pytest.mark.parametrize("name", CONFIGS)
def test_curves_span_all_units_and_never_fall(name):
    model = random_model(name)
    family, shape = family_and_shape(model)
    latency = measure_latency(model, family, random_windows(2), repeats=3)
    for curves, units in ((latency.attention, shape.groups), (latency.mlp, shape.channels)):
        assert len(curves) == shape.depth
        for curve, most in zip(curves, units, strict=True):
            assert curve.units[:2] == (0, 1)
            assert curve.units[-1] == most
            assert len(curve.units) == min(most, 9) + 1
            assert curve.seconds[0] == 0 < curve.seconds[1]
            assert (np.diff(curve.table()) >= 0).all()
            assert len(curve.table()) == most + 1
            assert curve.table()[list(curve.units)] == pytest.approx(curve.seconds)
    assert latency.fixed > 0
    assert (latency.windows, latency.tokens) == (2, 16)
    assert from_json(to_json(latency)) == latency


class SlowToAttend(Llama):
    """Takes five milliseconds before attention in the first block."""

    def parts(self, block):
        parts = super().parts(block)
        if block.self_attn.layer_idx:
            return parts

        def norm(hidden):
            time.sleep(0.005)
            return parts.attention.norm(hidden)

        return replace(parts, attention=replace(parts.attention, norm=norm))


def test_time_is_found_where_it_is_spent():
    model = random_model("llama")
    (_, shape), family = family_and_shape(model), SlowToAttend()
    sleeping(model.lm_head, 0.03)
    activation = model.model.layers[0].mlp.act_fn
    activation.register_forward_pre_hook(lambda _, given: time.sleep(2e-4 * given[0].shape[-1]))
    latency = measure_latency(model, family, random_windows(2), repeats=3)
    assert latency.fixed >= 0.03
    assert min(latency.attention[0].seconds[1:]) >= 0.005
    channels = np.arange(49)
    assert (latency.mlp[0].table() >= 2e-4 * channels - 1e-9).all()
    # What takes no time here takes little, even where other processes take turns.
    assert latency.mlp[0].seconds[1] < latency.mlp[0].seconds[-1]

    # A whole model that sleeps alike takes about what the parts add up to.
    for layer in model.model.layers:
        sleeping(layer.input_layernorm, 0.005)
    for layer in model.model.layers[1:]:
        layer.mlp.act_fn.register_forward_pre_hook(lambda *_: time.sleep(2e-4 * 48))
    budget = budget_of("latency", 1.0, model, family, shape, window=16, latency=latency)
    predicted = budget.cost(dense_row(shape)[None])[0]
    asleep = 0.03 + 3 * (0.005 + 2e-4 * 48)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            model(random_windows(2))
        taken.append(time.perf_counter() - start)
    assert asleep <= min(taken)
    assert asleep <= predicted
    assert predicted / min(taken) < 5


def test_blocks_of_one_shape_are_timed_once():
    model = random_model("gpt2")
    family, _ = family_and_shape(model)
    called = []
    for number, block in enumerate(family.blocks(model)):
        for norm in (block.ln_1, block.ln_2):
            norm.register_forward_pre_hook(lambda *_, number=number: called.append(number))
    latency = measure_latency(model, family, random_windows(2), points=3, repeats=2)
    assert set(called) == {0}
    assert len(called) == 2 * 3 * 3  # two kinds, three points, a warm-up and two rounds
    assert latency.attention == (latency.attention[0],) * 3


def test_measuring_leaves_the_model_as_it_was():
    model = random_model("qwen3")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_latency(model, family_of(model.config), random_windows(2), points=2, repeats=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_what_was_written_is_read_again():
    assert from_json(to_json(MEASURED)) == MEASURED


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ([], None),
        ([], []),
        (["fixed"], float("nan")),
        (["fixed"], "soon"),
        (["tokens"], float("inf")),
        (["attention"], 3),
        (["mlp", 0], {}),
        (["mlp", 0, "units"], []),
        (["mlp", 0, "units"], [0, 3, 1]),
        (["mlp", 0, "units"], [1, 2, 3]),
        (["mlp", 1, "seconds"], [0.0, 0.1]),
        (["mlp", 1, "seconds"], [0.0, -0.1, 0.2]),
    ],
)
def test_what_was_not_written_is_refused(path, value):
    written = json.loads(to_json(MEASURED))
    if path:
        inner = written
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    else:
        written = value
    with pytest.raises(LmscoutError, match="no tables of measured seconds") as caught:
        from_json(json.dumps(written))
    assert "\n" not in str(caught.value)
