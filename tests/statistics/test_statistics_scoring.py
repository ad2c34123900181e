import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_specs import EVERY_KIND, gpt2
from torch import nn

from lmscout.errors import LmscoutError
from lmscout.proxies import CATALOG, CATALOG_ENTRY, LITERATURE, evaluate, parse, resolve
from lmscout.statistics import (
    OPERATIONS,
    Batch,
    Workers,
    collect,
    full_reading,
    score,
    score_proxies,
)
from lmscout.statistics.deep_values import with_ones

BATCH = Batch(size=4, length=6)
SETTINGS = {"name": "tiny", "batch": BATCH, "workers": Workers(1)}
FUNCTIONS = tuple(entry.name for entry in CATALOG if entry.function)
every_kind = pytest.mark.parametrize("kind", EVERY_KIND)


def built(kind):
    spec = EVERY_KIND[kind]
    model, tokens = spec.build(0), BATCH.tokens(spec)
    return spec, model, tokens


@every_kind
def test_weights_and_gradients_are_those_of_the_linears_in_their_order(kind):
    spec, model, tokens = built(kind)
    reading = full_reading(model, tokens, spec.parameters())
    assert reading.model is model
    assert reading.tokens is tokens
    assert reading.parameters == sum(one.numel() for one in model.parameters())
    loss = model.loss(tokens)
    for number, block in enumerate(model.blocks):
        linears = tuple(one for one in block.modules() if isinstance(one, nn.Linear))
        assert [id(one) for one in reading.linears[number]] == [id(one) for one in linears]
        plain = torch.autograd.grad(loss, [one.weight for one in linears], retain_graph=True)
        weights, gradients = (reading.inputs[name][number] for name in ("weight", "grad"))
        for layer, weight, gradient, expected in zip(
            linears, weights, gradients, plain, strict=True
        ):
            assert torch.equal(weight, layer.weight)
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


@every_kind
def test_act_gradients_are_those_of_the_activations(kind):
    spec, model, tokens = built(kind)
    reading = full_reading(model, tokens, spec.parameters())
    for number, block in enumerate(model.blocks):
        outputs = []
        handles = [
            module.register_forward_hook(lambda _, __, output, to=outputs: to.append(output))
            for module in block.modules()
            if isinstance(module, nn.GELU | nn.SiLU | nn.ReLU)
        ]
        loss = model.loss(tokens)
        plain = torch.autograd.grad(loss, outputs) if outputs else ()
        for handle in handles:
            handle.remove()
        assert len(reading.act_grad[number]) == len(reading.inputs["act"][number]) == len(outputs)
        for output, gradient, act, act_grad in zip(
            outputs, plain, reading.inputs["act"][number], reading.act_grad[number], strict=True
        ):
            torch.testing.assert_close(act, output.detach())
            torch.testing.assert_close(act_grad, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "mixing"),
    [
        ("SDP", [True] * 4 + [False] * 2),  # query, key, value, output
        ("WMA", [True] * 5 + [False] * 2),  # and the matrix between
        ("DFT", [True] + [False] * 2),  # the mixing layer alone
        ("DCT", [True] + [False] * 2),
        ("DSC5", [True] * 6 + [False] * 2),  # and what makes kernels, and what they convolve
        ("DSC9", [True] * 6 + [False] * 2),
        ("stacked", [True] * 5 + [False] * 4),
        ("GPT-2", [True] * 4 + [False] * 2),
        ("LLaMA", [True] * 4 + [False] * 3),
        ("GPT-2 halves", [True] * 4),
    ],
)
def test_mixing_tells_the_mixer_from_the_mlp(kind, mixing):
    spec, model, tokens = built(kind)
    reading = full_reading(model, tokens, spec.parameters())
    assert list(reading.mixing[0]) == mixing
    assert [len(block) for block in reading.mixing] == [len(block) for block in reading.linears]
    for layer, mixes in zip(reading.linears[0], mixing, strict=True):
        (path,) = [path for path, one in model.blocks[0].named_modules() if one is layer]
        mlp = (
            path.startswith("feed_forward")
            or path.startswith("mlp.")
            or path in ("expand", "contract")
        )
        assert mixes == (not mlp)


def test_gates_are_told_from_other_activations():
    for kind, blocks in (("LLaMA halves", (1, 2)), ("GPT-2 halves", ())):
        spec, model, tokens = built(kind)
        reading = full_reading(model, tokens, spec.parameters())
        assert reading.gates == tuple(model.blocks[block].mlp.activation for block in blocks)


def test_a_reading_keeps_its_own_copies():
    spec, model, tokens = built("GPT-2")
    reading = full_reading(model, tokens, spec.parameters())
    before = {name: [[one.clone() for one in block] for block in blocks]
              for name, blocks in reading.inputs.items()}  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    full_reading(model, tokens, spec.parameters())
    for name, blocks in reading.inputs.items():
        for block, kept in zip(blocks, before[name], strict=True):
            assert all(torch.equal(one, two) for one, two in zip(block, kept, strict=True))


@every_kind
def test_every_proxy_of_the_catalog_scores_and_leaves_the_model_as_it_was(kind):
    spec, model, tokens = built(kind)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    flags = [one.requires_grad for one in model.parameters()]
    reading = full_reading(model, tokens, spec.parameters())
    for entry in CATALOG:
        value = score(entry, reading, spec)
        assert isinstance(value, float)
        assert math.isfinite(value), entry.name
    after = model.state_dict()
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert [one.requires_grad for one in model.parameters()] == flags
    assert all(one.grad is None for one in model.parameters())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_scores_are_kept_and_read_again(tmp_path, monkeypatch):
    specs = list(EVERY_KIND.values())
    names = [*FUNCTIONS, "lpzero-flexibert", "sum(abs(weight) * log(grad))"]
    first = score_proxies(specs, names, folder=tmp_path, **SETTINGS)
    assert list(first) == names
    for number, kind in enumerate(EVERY_KIND):
        spec, model, tokens = built(kind)
        reading = full_reading(model, tokens, spec.parameters())
        for name in names:
            proxy = CATALOG_ENTRY[name] if name in CATALOG_ENTRY else parse(name)
            assert first[name][number] == score(proxy, reading, spec)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("tiny-proxies-")

    def build(spec, seed):
        raise AssertionError("a model was built")

    for spec in specs:
        monkeypatch.setattr(type(spec), "build", build)
    second = score_proxies(specs, names, folder=tmp_path, **SETTINGS)
    for name in names:
        np.testing.assert_array_equal(first[name], second[name])
    with pytest.raises(AssertionError, match="was built"):  # other proxies are other numbers
        score_proxies(specs, names[:2], folder=tmp_path, **SETTINGS)


def test_a_score_beyond_float32_is_kept(tmp_path):
    # SynFlow multiplies from layer to layer, so that a deep model's is beyond 3e38.
    deep = replace(gpt2(heads=(2,) * 12, inner=(64,) * 12), weight_std=1.0)
    first = score_proxies([deep], ["synflow"], folder=tmp_path, **SETTINGS)["synflow"]
    assert 1e39 < first[0] < math.inf
    again = score_proxies([deep], ["synflow"], folder=tmp_path, **SETTINGS)["synflow"]
    assert again[0] == first[0]


def test_an_expression_scores_as_it_does_from_collected_statistics(tmp_path):
    specs = list(EVERY_KIND.values())
    chains = [(name,) for name in OPERATIONS]
    statistics = collect(specs, chains, folder=tmp_path, **SETTINGS)
    texts = [
        "sum(abslog(head) - sqrt(weight))",
        "mean(std(jacob) * softmax(act))",
        "max(frobenius(grad))",
        "min(logsoftmax(softmax) + sigmoid(act))",
        "sum(exp(head) @ square(weight))",
    ]
    plain = score_proxies(specs, texts, folder=tmp_path, **SETTINGS)
    for text in texts:
        fast = evaluate(parse(text), statistics.branch, statistics.depth)
        np.testing.assert_allclose(fast, plain[text], rtol=1e-4)


def test_an_unknown_proxy_is_refused_in_one_line(tmp_path):
    with pytest.raises(LmscoutError, match="snipp") as raised:
        score_proxies([gpt2()], ["snipp"], folder=tmp_path, **SETTINGS)
    assert "\n" not in str(raised.value)


@every_kind
def test_members_of_the_deep_space_score_as_the_literature_says(kind):
    spec, model, tokens = built(kind)
    reading = full_reading(model, tokens, spec.parameters())
    for name, node in LITERATURE.items():
        expected = score(CATALOG_ENTRY[name], reading, spec)
        assert score(node, reading, spec) == pytest.approx(expected, rel=1e-5), name


def test_a_deep_proxy_is_scored_by_its_text(tmp_path):
    text = "sum(total(abs(mul(weight, grad)))) / params"
    scores = score_proxies([gpt2()], ["snip", text], folder=tmp_path, **SETTINGS)
    assert scores[text][0] == pytest.approx(scores["snip"][0] / gpt2().parameters())


@every_kind
def test_ones_take_the_place_of_one_input_alone(kind):
    spec, model, tokens = built(kind)
    reading = full_reading(model, tokens, spec.parameters())
    for name in (*reading.inputs, "act_grad"):
        changed = with_ones(reading, name)
        before = {**reading.inputs, "act_grad": reading.act_grad}
        after = {**changed.inputs, "act_grad": changed.act_grad}
        assert list(changed.inputs) == list(reading.inputs)
        for other, blocks in before.items():
            for block, now in zip(blocks, after[other], strict=True):
                for one, two in zip(block, now, strict=True):
                    assert torch.equal(two, torch.ones_like(one) if other == name else one)


def test_scores_with_ones_are_kept_apart(tmp_path):
    specs = [gpt2()]
    plain = score_proxies(specs, ["fisher"], folder=tmp_path, **SETTINGS)["fisher"]
    ones = score_proxies(specs, ["fisher"], folder=tmp_path, ones="act", **SETTINGS)["fisher"]
    assert len(list(tmp_path.iterdir())) == 2
    reading = full_reading(specs[0].build(0), BATCH.tokens(specs[0]), specs[0].parameters())
    assert ones[0] == score(CATALOG_ENTRY["fisher"], with_ones(reading, "act"), specs[0])
    assert ones[0] != plain[0]
    again = score_proxies(specs, ["fisher"], folder=tmp_path, **SETTINGS)["fisher"]
    assert again[0] == plain[0]


def test_proxies_of_the_configuration_alone_are_scored_without_a_model(tmp_path):
    names = ["parameters", "depth", "3 - width", "negate(params * depth / (width - width))"]
    specs, steps = list(EVERY_KIND.values()), []
    scores = score_proxies(
        specs, names, folder=tmp_path, progress=lambda *one: steps.append(one), **SETTINGS
    )
    assert not list(tmp_path.iterdir())
    assert steps == [(len(specs), len(specs))]
    readings = [
        full_reading(*built(kind)[1:], spec.parameters()) for kind, spec in EVERY_KIND.items()
    ]
    for name in names:
        each = [score(resolve(name), *both) for both in zip(readings, specs, strict=True)]
        np.testing.assert_array_equal(scores[name], each)
    mixed = score_proxies(specs[:2], ["parameters", "snip"], folder=tmp_path, **SETTINGS)
    np.testing.assert_array_equal(mixed["parameters"], scores["parameters"][:2])
    assert list(tmp_path.iterdir())


def test_scores_in_float32_and_float64_of_one_draw_are_those_of_each_alone(tmp_path):
    specs = list(EVERY_KIND.values())
    names = ["sum(total(mul(weight, grad)))", "synflow", "snip", "mean(average(abs(jacob)))"]
    together = score_proxies(specs, names, folder=tmp_path / "all", **SETTINGS)
    for name in names:
        alone = score_proxies(specs, [name], folder=tmp_path / "one", **SETTINGS)[name]
        np.testing.assert_array_equal(together[name], alone)
