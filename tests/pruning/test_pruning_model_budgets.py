"""Budgets of models against models that were cut."""

import numpy as np
import pytest
import torch
from tiny_language_models import CONFIGS, random_model, random_windows

from lmscout.errors import LmscoutError
from lmscout.evaluation import parameter_bytes
from lmscout.evaluation.cost import multiply_adds
from lmscout.pruning.budgets import MEASURES, budget_of, keep_budget
from lmscout.pruning.cutting import cut
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of
from lmscout.pruning.latency import Curve, Latency
from lmscout.pruning.plan import Plan, as_rows
from lmscout.pruning.ranges import Ranges

WINDOW = 16


def parts_of(model):
    family = family_of(model.config)
    return family, shape_of([family.parts(block) for block in family.blocks(model)])


def latency_of(shape, slow=1.0):
    """A group takes 2 ms, a channel 0.1 ms, head and embedding 6 ms."""
    return Latency(
        tuple(Curve((0, most), (0.0, 2e-3 * slow * most)) for most in shape.groups),
        tuple(Curve((0, most), (0.0, 1e-4 * slow * most)) for most in shape.channels),
        6e-3 * slow,
        windows=1,
        tokens=WINDOW,
    )


def budget_for(model, measure, keep):
    family, shape = parts_of(model)
    return budget_of(measure, keep, model, family, shape, window=WINDOW, latency=latency_of(shape))


def plans(model, dropping=False):
    """The dense plan, and some with something of everything kept but for a dropped block."""
    _, shape = parts_of(model)
    rng = np.random.default_rng(3)
    found = [shape.dense]
    for _ in range(2):
        groups = [int(rng.integers(1, most + 1)) for most in shape.groups]
        channels = [int(rng.integers(1, most + 1)) for most in shape.channels]
        if dropping:
            groups[1] = channels[1] = 0
        found.append(Plan(tuple(groups), tuple(channels)))
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_multiply_adds_are_those_of_a_cut_model_and_its_attention(name):
    model = random_model(name)
    budget = budget_for(model, "multiply-adds", 0.8)
    config = model.config
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    heads_a_group = config.num_attention_heads // getattr(
        config, "num_key_value_heads", config.num_attention_heads
    )
    # The token at place t attends to t + 1: as many products with keys, as many with values.
    attended = sum(2 * (place + 1) for place in range(WINDOW)) / WINDOW
    for plan in [*plans(model), *plans(model, dropping=True)]:
        heads = sum(plan.attention) * heads_a_group
        wanted = multiply_adds(cut(model, plan)) + attended * heads * head_size
        assert budget.cost(as_rows([plan]))[0] == pytest.approx(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_that_of_a_cut_model_and_its_cache(name, dtype):
    model = random_model(name).to(dtype)
    budget = budget_for(model, "memory", 0.8)
    tokens = random_windows(1, WINDOW)
    for dropping in (False, True):
        for plan in plans(model, dropping):
            smaller = cut(model, plan)
            with torch.no_grad():
                cache = smaller(tokens, use_cache=True).past_key_values
            cached = sum(
                layer.keys.nbytes + layer.values.nbytes
                for layer in cache.layers
                if layer.keys is not None
            )
            beyond = budget.cost(as_rows([plan]))[0] - parameter_bytes(smaller) - cached
            # A block that is dropped takes its norms and output biases along.
            around = 6 * model.config.hidden_size * dtype.itemsize if plan.dropped else 0
            assert 0 <= beyond <= around


def test_parameters_are_the_kept_share():
    model = random_model("qwen2")
    _, shape = parts_of(model)
    budget, plain = budget_for(model, "parameters", 0.7), keep_budget(shape, 0.7)
    rows = as_rows(plans(model))
    assert (budget.cost(rows) == plain.cost(rows)).all()
    assert (budget.limit, budget.slack) == (plain.limit, plain.slack)


def test_seconds_are_added_up():
    model = random_model("llama")
    plan = Plan((2, 1, 0), (48, 7, 0))
    cost = budget_for(model, "latency", 0.5).cost(as_rows([plan]))[0]
    assert cost == pytest.approx(6e-3 + 3 * 2e-3 + 55 * 1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_budget_is_a_share_of_the_dense_model(measure):
    model = random_model("llama-bias")
    _, shape = parts_of(model)
    for keep in (0.6, 1.0):
        budget = budget_for(model, measure, keep)
        dense = budget.cost(as_rows([shape.dense]))[0]
        assert budget.limit == pytest.approx(keep * dense, rel=1e-4)
        Ranges.above(shape).require(budget)
    assert dense <= budget.limit  # the dense model meets a budget of all


def test_messages_tell_what_a_person_asked_for():
    model = random_model("llama")
    _, shape = parts_of(model)
    messages = {}
    for measure in MEASURES:
        with pytest.raises(LmscoutError) as caught:
            Ranges.above(shape, 0.25).require(budget_for(model, measure, 0.125))
        messages[measure] = str(caught.value)
    start = "no plan meets the budget of "
    between = ": the nearest that can be met is "
    # By hand: 2 groups a block, of 16 + 8 + 8 + 16 rows 32 wide; 48 channels of 3 rows.
    # A quarter of the units is one group and 12 channels a block.
    units, fewest = 3 * (2 * 1536 + 48 * 96), 3 * (1536 + 12 * 96)
    share = np.ceil(fewest / units * 1e4) / 1e4
    assert messages["parameters"] == (f"{start}0.125 (kept share){between}{share:.4g} (kept share)")
    for measure, unit in (
        ("multiply-adds", "million multiply-adds a token"),
        ("memory", "MB"),
        ("latency", "ms"),
    ):
        budget = budget_for(model, measure, 0.125)
        least = budget.cost(as_rows([Plan((1,) * 3, (12,) * 3)]))[0]
        dense = budget.cost(as_rows([shape.dense]))[0]
        scale = {"multiply-adds": 1e6, "memory": 1e6, "latency": 1e-3}[measure]
        share = np.ceil(least / dense * 1e4) / 1e4
        assert messages[measure] == (
            f"{start}{dense / 8 / scale:.3g} {unit} (0.125 of the dense model){between}"
            f"{least / scale:.3g} {unit} ({share:.4g} of the dense model)"
        )


def test_seconds_of_another_model_are_refused():
    model = random_model("gpt2")
    _, shape = parts_of(random_model("llama"))
    with pytest.raises(LmscoutError, match=r"attention tables .*got 3 tables of 3 entries"):
        budget_of(
            "latency",
            0.8,
            model,
            *parts_of(model),
            window=WINDOW,
            latency=latency_of(shape),
        )
