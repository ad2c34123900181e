"""Pruning in closed form: removal order, allocation and refit, against plain references."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from builtin_model import BRIEF, CONFIG, pruned, small_model, two_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language_models import COMMON, CONFIGS, random_model, random_windows
from transformers import Gemma2Config, GraniteConfig, Olmo2Config

from lmscout import testing as kit
from lmscout.errors import LmscoutError
from lmscout.evaluation import load_model, perplexity
from lmscout.pruning import CalibrationConfig
from lmscout.pruning.budgets import keep_budget, linear_budget
from lmscout.pruning.calibration import calibrate
from lmscout.pruning.compensation import refit
from lmscout.pruning.families import family_of
from lmscout.pruning.features import ImportanceMass
from lmscout.pruning.importance import loss_metrics
from lmscout.pruning.moments import moments_by_block
from lmscout.pruning.plan import Plan, Shape, as_rows
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.removal import removal_order
from lmscout.pruning.sampler import propose
from lmscout.pruning.search import allocate
from lmscout.pruning.space import PlanSpace

NAMES = sorted(CONFIGS)
TOKEN_NUMBERS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BEHIND = {  # families with a norm or a factor behind their output projections
    "granite": GraniteConfig(**COMMON, residual_multiplier=0.5, embedding_multiplier=3.0),
    "olmo2": Olmo2Config(**COMMON, **TOKEN_NUMBERS),
    "gemma2": Gemma2Config(**COMMON, **TOKEN_NUMBERS, head_dim=8, query_pre_attn_scalar=8),
}


def any_model(name):
    return kit.random_model(BEHIND[name]) if name in BEHIND else random_model(name)


def plain_removal(weight, gram, metric, units):
    """Remove the unit of the least error, each error by a new least-squares fit of what is left."""
    size = gram.shape[0] // units
    damped = gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)

    def error(kept):
        columns = [unit * size + one for unit in kept for one in range(size)]
        inner = damped[columns][:, columns]
        fitted = torch.linalg.solve(inner, damped[columns] @ weight.T).T if columns else None
        change = weight.clone()
        if fitted is not None:
            change[:, columns] -= fitted
        return torch.trace(metric @ change @ damped @ change.T).item() / 2

    kept, order, errors, so_far = list(range(units)), [], [], 0.0
    while kept:
        totals = {unit: error([one for one in kept if one != unit]) for unit in kept}
        worst = min(totals, key=totals.get)
        kept.remove(worst)
        order.append(worst)
        errors.append(totals[worst] - so_far)
        so_far = totals[worst]
    return order[::-1], errors[::-1]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_the_order_of_removal_has_the_least_error_of_a_new_fit_at_every_step(name, kind):
    model = random_model(name)
    family = family_of(model.config)
    windows = random_windows(40)
    metric = loss_metrics(model, family, windows[:8])[1, kind]
    moments = dict(moments_by_block(model, family, windows))[1, kind]
    sublayer = family.all_sublayers(model)[1, kind]
    got = removal_order((1, kind), sublayer, moments, metric)
    order, errors = plain_removal(
        sublayer.output.weight.double(),
        moments.gram.double() / moments.tokens,
        metric.double(),
        sublayer.units,
    )
    assert got.order.tolist() == order
    np.testing.assert_allclose(got.scores, errors, rtol=1e-4, atol=1e-9 * max(errors))


@pytest.mark.parametrize("name", NAMES)
def test_the_metric_is_the_mean_outer_product_of_the_outputs_gradient(name):
    model = random_model(name)
    family = family_of(model.config)
    windows = random_windows(5)
    gradients = {}

    def keep(place):
        def after(module, args, output):
            output.register_hook(lambda gradient: gradients.__setitem__(place, gradient))

        return after

    for index, block in enumerate(family.blocks(model)):
        attention = block.attn.c_proj if name == "gpt2" else block.self_attn.o_proj
        mlp = block.mlp.c_proj if name == "gpt2" else block.mlp.down_proj
        attention.register_forward_hook(keep((index, "attention")))
        mlp.register_forward_hook(keep((index, "mlp")))
    got = loss_metrics(model, family, windows)
    model(windows, labels=windows).loss.backward()
    predicted = windows[:, 1:].numel()
    assert got.keys() == gradients.keys()
    for place, gradient in gradients.items():
        each = gradient.flatten(0, 1) * predicted
        expected = each.T @ each / windows.numel()
        torch.testing.assert_close(got[place], expected, rtol=1e-3, atol=1e-5 * expected.max())


SHAPE = Shape((2, 2), (3, 3), (40, 40), (10, 10))


@settings(deadline=None, max_examples=60)
@given(
    scores=st.lists(st.floats(1e-3, 1.0), min_size=10, max_size=10),
    keep=st.floats(0.3, 0.95),
)
def test_no_plan_of_the_size_has_less_mass_than_the_allocation_by_more_than_a_unit(scores, keep):
    units = np.split(np.array(scores), [2, 4, 7])
    # rising errors make convex masses, of which one multiplier finds the best
    falling = [np.sort(one)[::-1] for one in units]
    mass = ImportanceMass.of_scores(falling[:2], falling[2:], in_nats=True)
    budget = linear_budget("parameters", SHAPE, keep * SHAPE.parameters)
    ranges = Ranges.above(SHAPE, 0.0)
    space = PlanSpace(SHAPE)
    plan = allocate(space, Target(budget, ranges), mass)
    row = as_rows([plan])
    assert budget.cost(row)[0] <= budget.limit
    smaller = budget.limit - 40  # a group less
    every = itertools.product(range(3), range(3), range(4), range(4))
    rows = as_rows([Plan((a, b), (c, d)) for a, b, c, d in every])
    rows = rows[budget.cost(rows) <= smaller]
    if len(rows):
        assert mass.estimate(row)[0] <= mass.estimate(rows).min() + 1e-9


def test_the_first_plans_are_the_allocation_and_others_near_it():
    shape = Shape((4,) * 6, (40,) * 6, (400,) * 6, (30,) * 6)
    rng = np.random.default_rng(0)
    scores = [np.sort(rng.exponential(1.0, n))[::-1] for n in shape.groups + shape.channels]
    mass = ImportanceMass.of_scores(scores[:6], scores[6:], in_nats=True)
    target = Target(keep_budget(shape, 0.7), Ranges.above(shape))
    space = PlanSpace(shape)
    proposals = propose(space, [target], count=20, seed=0, round_=0, mass=mass)
    assert len({one.plan for one in proposals}) == 20
    allocated = [one.plan for one in proposals if one.origin == "allocated"]
    others = [one.plan for one in proposals if one.origin != "allocated"]
    assert len(allocated) == 12
    assert allocate(space, target, mass) in allocated
    estimates = mass.estimate(as_rows(allocated)), mass.estimate(as_rows(others))
    assert estimates[0].max() < np.median(estimates[1])
    assert target.budget.meets(as_rows([one.plan for one in proposals])).all()
    again = propose(space, [target], count=20, seed=0, round_=0, mass=mass)
    assert again == proposals


@pytest.mark.parametrize("name", ["olmo2", "gemma2"])
def test_the_errors_do_not_depend_on_a_scale_that_a_norm_removes(name):
    scores = []
    for scale in (1.0, 10.0):
        model = any_model(name)
        family = family_of(model.config)
        windows = random_windows(40)
        for sublayer in family.all_sublayers(model).values():
            sublayer.output.weight.mul_(scale)
        metrics = loss_metrics(model, family, windows[:8])
        sublayers = family.all_sublayers(model)
        orders = [
            removal_order(place, sublayers[place], moments, metrics[place])
            for place, moments in moments_by_block(model, family, windows)
        ]
        scores.append(torch.cat([one.scores for one in orders]))
    assert scores[0].min() > 0
    torch.testing.assert_close(*scores, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", [*NAMES, *BEHIND])
def test_a_refit_model_is_closer_to_the_dense_one_than_a_compensated_one(name):
    calibrated = calibrate(
        any_model(name),
        random_windows(80),
        CalibrationConfig(measured_tokens=200, final_tokens=200, moment_tokens=800),
    )
    dense = calibrated.shape.dense
    half = Plan(tuple(n // 2 for n in dense.attention), tuple(n // 2 for n in dense.mlp))
    windows = calibrated.moments
    with torch.no_grad():
        wanted = calibrated.model(windows).logits
        errors = {
            weights: (calibrated.subnetwork(half, weights)(windows).logits - wanted).norm().item()
            for weights in ("cut", "compensated", "refit")
        }
    assert errors["refit"] < errors["compensated"]
    assert errors["refit"] < errors["cut"]


def test_refit_does_not_depend_on_how_text_is_batched(monkeypatch):
    model, windows = random_model("qwen3"), random_windows(9)
    family = family_of(model.config)
    plan = Plan((1, 0, 2), (20, 0, 48))
    whole = refit(model, family, plan, {}, windows)
    monkeypatch.setattr("lmscout.pruning.compensation.BATCH_TOKENS", 32)
    parts = refit(model, family, plan, {}, windows)
    assert whole.sublayers.keys() == {(0, "attention"), (0, "mlp"), (2, "attention"), (2, "mlp")}
    torch.testing.assert_close(whole.norm, parts.norm, rtol=1e-4, atol=1e-5)
    for place, sublayer in whole.sublayers.items():
        for one, other in zip(sublayer.maps, parts.sublayers[place].maps, strict=True):
            torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-4)


NO_PAIRS = replace(CONFIG, pairs=0, calibration=replace(CONFIG.calibration, quality="nll"))


@pytest.fixture(scope="module")
def without_pairs(tmp_path_factory):
    out = tmp_path_factory.mktemp("closed") / "out"
    return pruned(out, NO_PAIRS, report_on=two_texts()[1])


def test_without_pairs_the_plan_follows_from_the_estimate_and_beats_uniform_cuts(without_pairs):
    (size,) = without_pairs.sizes
    rows = {row.name: row for row in size.models}
    assert without_pairs.pairs == 0
    assert without_pairs.predictor is None
    found = rows["found"]
    for name in ("uniform", "uniform_compensated", "uniform_refit", "uniform_protected"):
        assert found.perplexity.value < rows[name].perplexity.value
        assert found.loss_increase < rows[name].loss_increase
    (finalist,) = size.finalists
    assert finalist.refit == pytest.approx(found.loss_increase, abs=1e-6)
    assert found.kept == pytest.approx(0.8, rel=2e-3)


def test_the_saved_refit_model_measures_what_the_report_says(without_pairs):
    (size,) = without_pairs.sizes
    found = next(row for row in size.models if row.name == "found")
    loaded = load_model(str(size.folder))
    again = perplexity(
        loaded.model, loaded.tokenizer, two_texts()[1], "llm-pruner", limit_tokens=2_000
    )
    assert again.value == pytest.approx(found.perplexity.value, rel=1e-5)


def test_a_finished_run_without_pairs_is_loaded_again(without_pairs):
    (size,) = without_pairs.sizes
    again = pruned(size.folder, NO_PAIRS, report_on=two_texts()[1])
    assert again.to_json() == without_pairs.to_json()


def test_of_uniform_plans_the_one_of_the_least_estimate_is_taken(tmp_path):
    config = replace(CONFIG, pairs=0, shape="uniform", calibration=BRIEF)
    result = pruned(tmp_path / "out", config, model=small_model())
    kept = {(a, b) for a, b in zip(result.plan.attention, result.plan.mlp, strict=True) if a or b}
    assert len(kept) == 1
    assert math.isfinite(result.sizes[0].finalists[0].refit)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": 5}, "5 pairs are too few"),
        (
            {"pairs": 0, "calibration": replace(CONFIG.calibration, importance="taylor")},
            "pairs 0: without pairs a plan follows from importance obs",
        ),
        ({"refit": "twice"}, "unknown refit 'twice': expected one of sequential, none"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, changes, message):
    with pytest.raises(LmscoutError, match=message):
        pruned(tmp_path / "out", replace(CONFIG, **changes))
    assert not (tmp_path / "out").exists()
