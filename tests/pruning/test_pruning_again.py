"""A saved model with blocks of different sizes as the model that is pruned."""

from dataclasses import replace

import pytest
import torch
from builtin_model import two_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pruning_export import DENSE, TOKENS, assert_close, logits
from transformers import LlamaConfig

from lmscout.builtin import load_tokenizer
from lmscout.errors import LmscoutError
from lmscout.evaluation import load_model, perplexity
from lmscout.pruning import CalibrationConfig, PruneConfig, prune
from lmscout.pruning.calibration import calibrate
from lmscout.pruning.cutting import cut
from lmscout.pruning.evaluator import SubnetworkEvaluator
from lmscout.pruning.export import save
from lmscout.pruning.families import family_of
from lmscout.pruning.importance import METHODS
from lmscout.pruning.latency import measure_latency
from lmscout.pruning.plan import Plan
from lmscout.pruning.recovery.run import RecoveryConfig
from lmscout.pruning.recovery.training import RecoverySettings
from lmscout.testing import masked_model, random_model

FAMILIES = sorted({*DENSE} - {"mistral", "qwen2"})
GROUPS = {"gpt2": 4}


@given(data=st.data(), name=st.sampled_from(FAMILIES))
@settings(max_examples=30, deadline=None)
def test_a_plan_of_what_a_plan_has_left_is_a_plan_of_the_dense_model(data, name):
    model = DENSE[name]
    first = data.draw(st.builds(Plan, *_units((GROUPS.get(name, 2),) * 3, (24,) * 3)))
    if not (any(first.attention) and any(first.mlp)):
        return
    once = cut(model, first)
    attention, mlp = (
        [kept[block] for block in first.kept] for kept in (first.attention, first.mlp)
    )
    second = data.draw(st.builds(Plan, *_units(attention, mlp)).filter(lambda plan: plan.kept))
    both = [[0] * 3, [0] * 3]
    for place, block in enumerate(first.kept):
        both[0][block], both[1][block] = second.attention[place], second.mlp[place]
    whole = Plan(tuple(both[0]), tuple(both[1]))
    twice, expected = cut(once, second), cut(model, whole)
    assert twice.config.to_dict() == expected.config.to_dict()
    weights = expected.state_dict()
    assert weights.keys() == twice.state_dict().keys()
    assert all(torch.equal(one, weights[key]) for key, one in twice.state_dict().items())
    family = family_of(once.config)
    evaluator = SubnetworkEvaluator(once, family, TOKENS)
    assert_close(evaluator.logits(second, TOKENS), logits(expected))
    assert_close(logits(masked_model(family, once, second)), logits(expected))


def _units(attention, mlp):
    return [st.tuples(*(st.integers(0, most) for most in kept)) for kept in (attention, mlp)]


@pytest.mark.parametrize("importance", METHODS)
def test_every_importance_orders_what_is_left(importance):
    once = cut(random_model(DENSE["qwen3"].config), Plan((2, 0, 1), (24, 9, 0)))
    expected = logits(once)
    windows = torch.randint(64, (40, 12), generator=torch.Generator().manual_seed(2))
    settings = CalibrationConfig(importance=importance, measured_tokens=60, final_tokens=60)
    calibrated = calibrate(once, windows, settings)
    assert calibrated.shape.groups == (2, 0, 1)
    assert calibrated.shape.channels == (24, 9, 0)
    assert [len(one) for one in calibrated.mass.columns] == [3, 1, 2, 25, 10, 1]
    assert_close(logits(once), expected)
    smaller = Plan((1, 0, 1), (12, 9, 0))
    (measured,) = calibrated.evaluator(calibrated.final).measure([smaller])
    again = calibrated.measured_held_out(calibrated.subnetwork(smaller, "compensated"))
    assert measured.loss_increase == pytest.approx(again.loss_increase, abs=1e-5)


def test_the_time_of_what_is_not_there_is_none():
    once = cut(random_model(DENSE["qwen3"].config), Plan((2, 0, 1), (24, 9, 0)))
    latency = measure_latency(once, family_of(once.config), TOKENS, points=2, repeats=1)
    assert [one.units[-1] for one in latency.attention] == [2, 0, 1]
    assert [one.table()[-1] > 0 for one in latency.mlp] == [True, True, False]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model without attention in one block, without MLP in another, less one block."""
    config = DENSE["llama"].config.to_dict() | {"vocab_size": 4096, "num_hidden_layers": 6}
    config["max_position_embeddings"] = 128
    model = random_model(LlamaConfig.from_dict(config))
    plan = Plan((2, 0, 2, 0, 1, 2), (24, 20, 0, 0, 24, 10))
    folder = tmp_path_factory.mktemp("once") / "saved"
    save(model, plan, folder, shape="any", tokenizer=load_tokenizer())
    return str(folder)


SETTINGS = PruneConfig(
    keep=(0.7,),
    pairs=24,
    calibration=CalibrationConfig(
        measured_tokens=600, final_tokens=600, moment_tokens=1000, gradient_windows=4
    ),
    report_tokens=600,
)
STEPS = RecoverySettings(rank=2, batch_tokens=256, steps=2)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "of": "memory",
            "keep": (0.97,),  # of a model that is mostly embeddings
            "recovery": RecoveryConfig(winners=STEPS, elastic=STEPS),
        },
        {"objective": "proxy:snip"},
    ],
    ids=["recovery", "proxy"],
)
def test_a_saved_model_is_pruned_again_and_loads_like_the_first(saved, tmp_path, changes):
    loaded = load_model(saved)
    before = loaded.model.config
    config = replace(SETTINGS, **changes)
    result = prune(loaded, two_texts()[0], config, tmp_path / "out", report_on=two_texts()[1])
    (size,) = result.sizes
    again = load_model(str(size.folder)).model
    had = dict(zip(before.block_numbers, _sizes(before), strict=True))
    assert {*had} == {0, 1, 2, 4, 5}
    for number, kept in zip(again.config.block_numbers, _sizes(again.config), strict=True):
        assert all(one <= most for one, most in zip(kept, had[number], strict=True))
    text = two_texts()[1]
    measured = perplexity(again, loaded.tokenizer, text, "llm-pruner", limit_tokens=600)
    values = [row.perplexity.value for row in size.models]
    assert any(measured.value == pytest.approx(one, rel=1e-5) for one in values)


def _sizes(config):
    return zip(config.attention_groups, config.mlp_channels, strict=True)


def test_a_plain_model_cannot_be_part_of_one_with_blocks_of_different_sizes(saved, tmp_path):
    config = replace(SETTINGS, pairs=0, shape="uniform")
    with pytest.raises(LmscoutError, match="blocks of this model have different sizes"):
        prune(load_model(saved), two_texts()[0], config, tmp_path / "out")


def test_a_model_without_any_attention_is_refused():
    once = cut(DENSE["llama"], Plan((0, 0, 0), (24, 9, 1)))
    with pytest.raises(LmscoutError, match="the model has no attention in any block"):
        family_of(once.config).all_parts(once)
