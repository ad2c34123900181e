"""One adapter for all plans: prefixes of it are adapters of prefixes, before and after merging."""

import pytest
import torch
from tiny_language_models import CONFIGS, random_model, random_windows

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import CalibrationConfig, calibrate
from lmscout.pruning.families import family_of
from lmscout.pruning.plan import Plan
from lmscout.pruning.recovery.elastic import ElasticAdapter, drawn_plans, recover_all_plans
from lmscout.pruning.recovery.training import RecoverySettings
from lmscout.pruning.space import PlanSpace
from lmscout.testing import functional_logits

PLAN = Plan((1, 0, 2), (30, 48, 0))
SETTINGS = RecoverySettings(rank=4, batch_tokens=128, steps=24, learning_rate=5e-3)


def noisy(adapter):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in adapter.weights.values():
            one.copy_(0.05 * torch.randn(one.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("name", CONFIGS)
def test_a_plan_of_the_merged_model_computes_what_the_adapted_plan_did(name):
    model, tokens = random_model(name).requires_grad_(False), random_windows()
    family = family_of(model.config)
    plain = functional_logits(family, model, tokens, PLAN)
    adapter = ElasticAdapter(model, family, rank=3, seed=0)
    torch.testing.assert_close(adapter.head(adapter.hidden(PLAN, tokens)), plain)  # adds nothing
    dense = adapter.dense_hidden(tokens)
    noisy(adapter)
    assert torch.equal(adapter.dense_hidden(tokens), dense)
    adapted = adapter.head(adapter.hidden(PLAN, tokens)).detach()
    assert (adapted - plain).abs().max() > 0.1
    adapter.merge()
    merged = functional_logits(family, model, tokens, PLAN)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            adapter.head(adapter.dense_hidden(tokens)), model(tokens).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_a_plan_leaves_out_does_not_learn_and_the_rest_does(name):
    model, tokens = random_model(name).requires_grad_(False), random_windows()
    adapter = noisy(ElasticAdapter(model, family_of(model.config), rank=3, seed=0))
    adapter.head(adapter.hidden(PLAN, tokens)).square().mean().backward()
    assert all(one.grad is None for one in model.parameters())
    for key, one in adapter.weights.items():
        gone = key.startswith(("1.attention", "2.mlp"))
        assert (one.grad is None) == gone, key
    up = adapter.weights["0.mlp.0.up"].grad
    assert (up[30:] == 0).all()
    assert (up[:30].abs().sum(1) > 0).all()
    last = "0.mlp.1" if name == "gpt2" else "0.mlp.2"
    down = adapter.weights[f"{last}.down"].grad
    assert (down[:, 30:] == 0).all()
    assert (down[:, :30].abs().sum(0) > 0).all()


def test_a_half_precision_model_has_wide_adapters_and_keeps_its_dtype():
    model = random_model("llama").to(torch.bfloat16).requires_grad_(False)
    adapter = noisy(ElasticAdapter(model, family_of(model.config), rank=3, seed=0))
    hidden = adapter.hidden(PLAN, random_windows())
    assert hidden.dtype == torch.bfloat16
    hidden.float().sum().backward()
    assert {one.dtype for one in adapter.weights.values()} == {torch.float32}
    adapter.merge()
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


def calibrated_example(quality="nll"):
    windows = random_windows(count=40)
    settings = CalibrationConfig(
        importance="taylor",
        quality=quality,
        window=16,
        measured_tokens=128,
        final_tokens=96,
        moment_tokens=256,
        gradient_windows=2,
    )
    return calibrate(random_model("llama"), windows, settings), windows


@pytest.fixture(scope="module", params=["lora", "distill"])
def recovered(request, tmp_path_factory):
    # of a random model, which knows nothing of the text, each loss betters what it measures
    calibrated, windows = calibrated_example("nll" if request.param == "lora" else "kl")
    settings = RecoverySettings(request.param, 4, 1e-2, batch_tokens=128, steps=48)
    sizes = {0.7: keep_budget(calibrated.shape, 0.7)}
    file = tmp_path_factory.mktemp("run") / "elastic.safetensors"
    space = PlanSpace(calibrated.shape)
    after, done = recover_all_plans(calibrated, windows, space, sizes, settings, file)
    return calibrated, after, done


def test_plans_are_better_after_than_before(recovered):
    _, _, done = recovered
    (order,) = done.orders
    assert len(order.before) == len(order.after) == 24
    assert sum(order.after) < sum(order.before)
    assert -1 <= order.kendall <= 1


def test_loss_increases_stay_those_over_the_dense_model_as_it_was(recovered):
    calibrated, after, _ = recovered
    given, _ = calibrated_example(calibrated.settings.quality)
    assert torch.equal(given.measured, after.measured)
    before, changed = (one.model(after.measured).logits.log_softmax(-1) for one in (given, after))
    targets = after.measured[:, 1:, None]
    if after.settings.quality == "nll":
        expected = (before - changed)[:, :-1].gather(-1, targets).mean().item()
    else:  # the 32 likeliest of 64 tokens are distinguished, the others are one outcome
        order = before.argsort(-1, descending=True)
        one, two = (x.gather(-1, order)[:, :-1].exp() for x in (before, changed))
        one, two = (torch.cat([x[..., :32], x[..., 32:].sum(-1, True)], -1) for x in (one, two))
        expected = (one * (one / two).log()).sum(-1).mean().item()
    (dense,) = after.evaluator(after.measured).measure([after.shape.dense])
    assert abs(dense.loss_increase) > 1e-4
    assert dense.loss_increase == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_plans_are_measured_in_the_chunks_of_an_earlier_run(tmp_path):
    calibrated, windows = calibrated_example()
    begun = calibrated.with_chunks(2, 3)  # four each in a new run
    settings = RecoverySettings(rank=2, batch_tokens=128, steps=1)
    sizes = {0.7: keep_budget(calibrated.shape, 0.7)}
    file = tmp_path / "elastic.safetensors"
    space = PlanSpace(calibrated.shape)
    after, _ = recover_all_plans(begun, windows, space, sizes, settings, file)
    for text, chunks in ((after.measured, 2), (after.final, 3)):
        (measured,) = after.evaluator(text).measure([PLAN])
        assert len(measured.trajectory) == chunks


def test_pairs_of_other_weights_are_told_apart(recovered):
    calibrated, after, _ = recovered
    assert "adapter" in after.study_settings["elastic"]
    assert "elastic" not in calibrated.study_settings
    plain = {k: v for k, v in after.study_settings.items() if k != "elastic"}
    assert plain == calibrated.study_settings


def test_a_text_that_is_only_measured_on_is_refused(tmp_path):
    calibrated, _ = calibrated_example()
    sizes = {0.7: keep_budget(calibrated.shape, 0.7)}
    text = torch.cat([calibrated.measured, calibrated.final])
    with pytest.raises(LmscoutError, match="give a longer recover text"):
        recover_all_plans(
            calibrated, text, PlanSpace(calibrated.shape), sizes, SETTINGS, tmp_path / "x"
        )


def test_plans_are_of_the_sizes_asked_for():
    calibrated, _ = calibrated_example()
    budgets = [keep_budget(calibrated.shape, keep) for keep in (0.8, 0.6)]
    plans = drawn_plans(calibrated, PlanSpace(calibrated.shape), budgets, 40, 1)
    shares = [calibrated.shape.kept_share(plan) for plan in plans]
    assert len(set(plans)) == 40
    assert sum(share > 0.7 for share in shares) == 20
    others = drawn_plans(calibrated, PlanSpace(calibrated.shape), budgets, 40, 2)
    assert len(set(plans) & set(others)) < 10
