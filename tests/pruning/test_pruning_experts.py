"""Experts, or their channels, as units: orders against plain references, and whole runs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from builtin_model import two_texts
from tiny_language_models import random_windows
from torch.nn import functional
from transformers import LlamaConfig, MixtralConfig, Qwen3MoeConfig

from lmscout.builtin import load_tokenizer
from lmscout.errors import LmscoutError
from lmscout.evaluation import LoadedModel, load_model
from lmscout.pruning import CalibrationConfig, PruneConfig, prune
from lmscout.pruning.budgets import budget_of
from lmscout.pruning.calibration import calibrate
from lmscout.pruning.cutting import cut
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of, set_units, units_of
from lmscout.pruning.importance import METHODS, loss_metrics
from lmscout.pruning.plan import Plan, as_rows
from lmscout.pruning.removal import order_of_experts, routed
from lmscout.testing import masked_model, random_model

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 3, "head_dim": 8}
CONFIGS = {
    "mixtral": MixtralConfig(
        **SMALL, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2
    ),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, **EXPERTS, norm_topk_prob=False),
    "some": Qwen3MoeConfig(**SMALL, **EXPERTS, intermediate_size=40, mlp_only_layers=[0]),
    "mixtral-channels": MixtralConfig(
        **SMALL, intermediate_size=32, num_local_experts=3, num_experts_per_tok=2
    ),
    "some-channels": Qwen3MoeConfig(**SMALL, **EXPERTS, intermediate_size=40, mlp_only_layers=[0]),
}
for _name, _config in CONFIGS.items():
    if _name.endswith("channels"):
        set_units(_config, "channels")
PLACE = 1, "mlp"


def entering(model, windows):
    """The hidden state before the experts of block 1."""
    found = []
    norm = model.model.layers[1].post_attention_layernorm
    hook = norm.register_forward_hook(lambda module, args, output: found.append(args[0]))
    with torch.no_grad():
        model(windows)
    hook.remove()
    return found[0]


def experts_of(model):
    return family_of(model.config).all_sublayers(model)[PLACE]


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_the_order_has_the_least_increase_of_a_model_without_the_experts_at_every_step(name):
    model, windows = random_model(CONFIGS[name]), random_windows(8)
    hidden, experts = entering(model, windows), experts_of(model)
    metric = loss_metrics(model, family_of(model.config), windows)[PLACE].double()
    normed = experts.norm(hidden)
    before = model.model.layers[1].mlp(normed).detach().double()

    def increase(kept):
        """By the block itself, with the router's other rows cut off."""
        change = -before
        if kept:
            logits = functional.linear(normed, experts.router[kept]).softmax(-1).double()
            top, index = logits.topk(min(experts.selected, len(kept)), dim=-1)
            if name == "mixtral":
                top = top / top.sum(-1, keepdim=True)
            for place, number in enumerate(kept):
                share = (top * (index == place)).sum(-1, keepdim=True)
                change = change + share * experts.expert(number, normed).double()
        change = change.flatten(0, 1)
        return ((change @ metric) * change).sum(1).mean().item() / 2

    kept, removed, totals = list(range(experts.units)), [], [0.0]
    while kept:
        increases = {one: increase([x for x in kept if x != one]) for one in kept}
        gone = min(increases, key=increases.get)
        kept.remove(gone)
        removed.append(gone)
        totals.append(max(totals[-1], increases[gone]))
    got = order_of_experts(experts, hidden, metric.float())
    assert got.order.tolist() == removed[::-1]
    np.testing.assert_allclose(got.scores, np.diff(totals)[::-1], rtol=1e-3, atol=1e-6 * totals[-1])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_the_weighted_norm_is_the_mean_over_an_experts_own_tokens(name):
    model, windows = random_model(CONFIGS[name]), random_windows(8)
    found = {}
    block = model.model.layers[1].mlp
    block.gate.register_forward_hook(lambda module, args, output: found.update(gate=output))
    hidden, experts = entering(model, windows), experts_of(model)
    _, scores, index = found["gate"]
    normed = experts.norm(hidden).flatten(0, 1)
    use = routed(experts, hidden)
    for number in range(experts.units):
        tokens, places = (index == number).nonzero(as_tuple=True)
        norms = experts.expert(number, normed[tokens]).norm(dim=-1) * scores[tokens, places]
        assert use.frequency[number] == pytest.approx(len(tokens) / len(normed))
        assert use.weighted_norm[number] == pytest.approx(norms.mean().item(), rel=1e-4)


def test_an_expert_that_is_never_selected_is_removed_first_and_costs_nothing():
    model, windows = random_model(CONFIGS["mixtral"]), random_windows(8)
    hidden, experts = entering(model, windows).flatten(0, 1), experts_of(model)
    logits = functional.linear(experts.norm(hidden), experts.router)
    hidden = hidden[experts.shares(logits)[:, 3] == 0]
    assert routed(experts, hidden).frequency[3] == 0
    metric = loss_metrics(model, family_of(model.config), windows)[PLACE]
    got = order_of_experts(experts, hidden, metric)
    assert got.order[-1] == 3
    assert got.scores[-1] == pytest.approx(0, abs=1e-9 * got.scores.sum().item())


def test_channels_of_each_expert_are_ordered_and_compensated_on_its_own_tokens():
    model, kept = random_model(CONFIGS["mixtral-channels"]), 8  # of 32 channels
    dense = copy.deepcopy(model)
    calibrated = calibrate(model, random_windows(30), CalibrationConfig())
    metric = loss_metrics(dense, calibrated.family, calibrated.moments)[PLACE].double()
    block = dense.model.layers[1].mlp
    found, expected = experts_of(model), 0.0
    with torch.no_grad():
        normed = found.norm(entering(dense, calibrated.moments)).flatten(0, 1)
        _, shares, index = block.gate(normed)
    for number, expert in enumerate(found.members):
        gate, up = functional.linear(normed, block.experts.gate_up_proj[number]).chunk(2, dim=-1)
        share = (shares * (index == number)).sum(-1, keepdim=True)
        x = (functional.silu(gate) * up * share).detach().double()
        gram = x.T @ x / len(x)
        gram += 1e-3 * gram.diagonal().mean() * torch.eye(32)
        down = block.experts.down_proj[number].detach().double()

        def without(gone, left, gram=gram, down=down):
            """The loss increase with the other channels fitted again, these, and their weights."""
            others = [one for one in left if one != gone]
            fitted = down @ gram[:, others] @ gram[others][:, others].inverse()
            change = down.clone()
            change[:, others] -= fitted
            return (metric @ change @ gram @ change.T).trace().item() / 2, others, fitted

        left = list(range(32))
        while len(left) > kept:
            increase, left, fitted = min(
                (without(one, left) for one in left), key=lambda one: one[0]
            )
        expected += increase
        columns = expert.output.weight.T[:kept]
        places = [left.index((column == down.float().T).all(1).nonzero()) for column in columns]
        ours = calibrated.compensation.output(*PLACE, kept).weight[number].double()
        torch.testing.assert_close(ours, fitted[:, places], rtol=1e-3, atol=1e-3)
    assert calibrated.mass.mlp[1][1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "importance"),
    [
        *(("mixtral", "obs"), ("qwen3_moe", "activation")),
        *((name, one) for name in ("some", "some-channels") for one in METHODS),
    ],
)
def test_every_importance_orders_experts_and_the_model_stays_the_same(name, importance):
    model = random_model(CONFIGS[name])
    windows = random_windows(30)
    with torch.no_grad():
        before = model(windows).logits
    settings = CalibrationConfig(importance=importance, measured_tokens=60, final_tokens=60)
    calibrated = calibrate(model, windows, settings)
    with torch.no_grad():
        torch.testing.assert_close(model(windows).logits, before, rtol=0, atol=1e-3)
    units = calibrated.shape.channels
    plan = Plan((2, 1), tuple(one // 2 for one in units))
    (measured,) = calibrated.evaluator(calibrated.final).measure([plan])
    again = calibrated.measured_held_out(calibrated.subnetwork(plan, "compensated"))
    assert measured.loss_increase == pytest.approx(again.loss_increase, abs=1e-4)
    with torch.no_grad():
        expected = masked_model(calibrated.family, model, plan)(windows).logits
        cut = calibrated.subnetwork(plan, "cut")(windows).logits
    torch.testing.assert_close(cut, expected, rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def loaded():
    """Random models with the built-in tokenizer."""

    def of(name):
        config = type(CONFIGS[name]).from_dict(CONFIGS[name].to_dict() | {"vocab_size": 4096})
        return LoadedModel(random_model(config), load_tokenizer(), name)

    return of


SETTINGS = PruneConfig(
    keep=(0.6,),
    pairs=0,
    calibration=CalibrationConfig(measured_tokens=600, final_tokens=600, moment_tokens=1000),
    report_tokens=600,
)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("mixtral", "uniform", "mixtral"),
        ("some", "any", "lmscout_qwen3_moe"),
        ("mixtral-channels", "uniform", "mixtral"),
    ],
)
def test_a_saved_model_has_fewer_experts_or_channels(loaded, tmp_path, name, shape, kind):
    units = units_of(CONFIGS[name])
    config = replace(SETTINGS, shape=shape, units=units)
    result = prune(loaded(name), two_texts()[0], config, tmp_path / "out", report_on=two_texts()[1])
    (size,) = result.sizes
    again = load_model(str(size.folder)).model
    assert again.config.model_type == kind
    family = family_of(again.config)
    assert units_of(again.config) == "experts"
    set_units(again.config, units)
    units = [parts.mlp.units for parts in family.all_parts(again)]
    assert units == [one for one in result.plan.mlp if one]
    if name == "mixtral-channels":
        assert again.config.intermediate_size == 8 * units[0] < 32
        assert again.config.num_local_experts == 3
    elif shape == "uniform":
        assert again.config.num_local_experts == units[0] < 5
        assert {len(block.mlp.gate.weight) for block in again.model.layers} == {units[0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"of": "multiply-adds"}, "multiply-adds: removing experts leaves those of a token"),
        ({"objective": "proxy:snip"}, "a proxy has no values of experts"),
        ({"units": "heads"}, "unknown units 'heads': expected one of experts, channels"),
        (
            {"units": "channels", "channel_multiple": 4},
            "channel_multiple: is not for units channels",
        ),
    ],
)
def test_what_experts_do_not_have_is_one_line(loaded, tmp_path, changes, message):
    with pytest.raises(LmscoutError, match=message):
        prune(loaded("mixtral"), two_texts()[0], replace(SETTINGS, **changes), tmp_path / "out")


def test_channels_of_experts_are_refused_where_there_are_none(tmp_path):
    model = LoadedModel(random_model(LlamaConfig(**SMALL)), load_tokenizer(), "llama")
    with pytest.raises(LmscoutError, match=r"units channels: the model has no experts \(got llama"):
        prune(model, two_texts()[0], replace(SETTINGS, units="channels"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_channel_costs_the_multiply_adds_of_the_experts_that_a_token_selects():
    model = random_model(CONFIGS["some-channels"])
    family = family_of(model.config)
    shape = shape_of(family.all_parts(model))
    budget = budget_of("multiply-adds", 0.5, model, family, shape, window=16)
    one = Plan((2, 2), (39, 1))
    less = budget.cost(as_rows([shape.dense])) - budget.cost(as_rows([one]))
    # of the MLP's 40 channels one; of the 16 channels of 3 selected experts all but 8
    assert less.item() == pytest.approx(3 * 32 * (1 + 3 * 8))


@pytest.mark.parametrize("name", ["mixtral-channels", "some-channels"])
@pytest.mark.parametrize("order", [("experts", "channels"), ("channels", "experts")])
def test_a_model_that_was_cut_one_way_is_cut_the_other_way(name, order):
    model, windows = random_model(CONFIGS[name]), random_windows()
    family, attention = family_of(model.config), [(2, 1), (1, 0)]
    for units, groups in zip(order, attention, strict=True):
        set_units(model.config, units)
        parts = family.all_parts(model)
        plan = Plan(groups, tuple(part.mlp.units - 1 for part in parts))
        with torch.no_grad():
            expected = masked_model(family, model, plan)(windows).logits
            model = cut(model, plan)
            torch.testing.assert_close(model(windows).logits, expected, rtol=0, atol=1e-4)
