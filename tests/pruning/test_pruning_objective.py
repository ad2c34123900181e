"""Proxies as objectives and as features of the predictor, on a small random model."""

import numpy as np
import pytest
import torch
from tiny_language_models import random_model

from lmscout.errors import LmscoutError
from lmscout.evaluation import Text
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.calibration import CalibrationConfig, calibrate
from lmscout.pruning.config import PruneConfig, check_request
from lmscout.pruning.features import PlanFeatures
from lmscout.pruning.finalists import Contest
from lmscout.pruning.measuring import fitted_to_proxy, proxy_columns, proxy_objectives
from lmscout.pruning.plan import as_plans, as_rows, dense_row
from lmscout.pruning.predictor import fit_predictor
from lmscout.pruning.ranges import Ranges, Target, fit
from lmscout.pruning.space import PlanSpace, UniformChoices
from lmscout.pruning.study import Pair

SNIP = "proxy:snip"


@pytest.fixture(scope="module")
def calibrated():
    windows = torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(0))
    settings = CalibrationConfig(
        measured_tokens=160, final_tokens=160, moment_tokens=160, gradient_windows=4
    )
    return calibrate(random_model("llama"), windows, settings)


def drawn(shape, budget, count, seed=0):
    rng = np.random.default_rng(seed)
    wanted = rng.uniform(0.1, 1, (count, 2 * shape.depth)) * dense_row(shape)
    rows = fit(wanted, Ranges.above(shape), budget)
    return np.unique(rows[budget.meets(rows)], axis=0)


def contest_of(calibrated, fitted, space):
    """Without studies, as a proxy needs no measured plans."""
    studies = None, None, None
    return Contest(calibrated, *studies, fitted, space, None, refit=False, seed=0)


def test_the_best_plan_scores_higher_than_any_drawn_and_nothing_is_measured(calibrated):
    shape = calibrated.shape
    budget = keep_budget(shape, 0.7)
    target = Target(budget, Ranges.above(shape))
    fitted = fitted_to_proxy(SNIP, calibrated, [target])
    contest = contest_of(calibrated, fitted, PlanSpace(shape))
    plans = contest.candidates(target)
    assert len(plans) == 1
    scores = fitted.objective.scores
    assert scores(as_rows(plans))[0] >= scores(drawn(shape, budget, 500)).max()
    assert budget.meets(as_rows(plans)).all()
    ((winner,),) = contest.measured([plans])
    assert winner.plan == plans[0]
    assert (winner.predicted, winner.measured, winner.held_out) == (None, None, None)


def test_uniform_plans_are_scored_too(calibrated):
    shape = calibrated.shape
    space = PlanSpace(shape, uniform=UniformChoices.of(shape, calibrated.model.config))
    budget = keep_budget(shape, 0.6)
    target = Target(budget, Ranges.above(shape))
    fitted = fitted_to_proxy(SNIP, calibrated, [target])
    (plan,) = contest_of(calibrated, fitted, space).candidates(target)
    assert space.meets(as_rows([plan]), budget).all()


def test_a_column_is_the_score_of_its_proxy_and_predictors_use_it(calibrated):
    shape = calibrated.shape
    (column,) = proxy_columns([SNIP], calibrated)
    (objective,) = proxy_objectives([SNIP], calibrated)
    rows = drawn(shape, keep_budget(shape, 0.7), 400)
    assert (column.values(rows) == objective.scores(rows)).all()
    features = PlanFeatures(shape, calibrated.mass, [column])
    assert features.names[-1] == "proxy.snip"
    assert (features(rows)[:, -1] == objective.scores(rows)).all()
    # Quality is quadratic in the column, which sums of the other columns do not express.
    scores = objective.scores(rows)
    values = 0.1 + (scores.max() - scores) ** 2
    pairs = [
        Pair(plan, float(value), 100)
        for plan, value in zip(as_plans(rows[:40]), values[:40], strict=True)
    ]
    quick = {"seed": 0, "repeats": 1, "kinds": ["ridge"]}
    with_it = fit_predictor(pairs, shape, calibrated.mass, extra=[column], **quick)
    without = fit_predictor(pairs, shape, calibrated.mass, **quick)
    errors = [np.abs(one.predict(rows[40:]) - values[40:]).mean() for one in (with_it, without)]
    assert errors[0] < errors[1]


def test_no_features_cost_no_pass(calibrated):
    assert proxy_columns([], calibrated) == []


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (PruneConfig(objective="proxy:snipp"), "did you mean 'snip'"),
        (PruneConfig(objective="sum(abs(weight))"), "write proxy:"),
        (PruneConfig(features=("proxy:grasp",)), "runs the model again"),
        (PruneConfig(objective=SNIP, features=(SNIP,)), "leave out the objective or the features"),
    ],
)
def test_bad_proxies_are_refused_before_any_work(request_, says, tmp_path):
    with pytest.raises(LmscoutError, match=says):
        check_request(request_, Text("a", "words", "x"), None, tmp_path / "run")
