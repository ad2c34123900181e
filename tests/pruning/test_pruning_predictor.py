"""The predictor on a synthetic model, against what is known of it."""

import hypothesis.extra.numpy as hnp
import lightgbm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from synthetic_quality import Synthetic
from threadpoolctl import threadpool_limits

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.features import PlanFeatures
from lmscout.pruning.plan import as_plans, dense_row
from lmscout.pruning.predictor import (
    Agreement,
    PredictorReport,
    _extrapolated,
    fit_predictor,
)
from lmscout.pruning.ranges import Ranges, fit
from lmscout.pruning.regressors import (
    KINDS,
    GaussianProcess,
    Likelihood,
    TreeTables,
    new_regressor,
)
from lmscout.pruning.study import Pair

MODEL = Synthetic(depth=6)


def sample(model, count, keeps=(0.8,), seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for place in range(count):
        budget = keep_budget(model.shape, keeps[place % len(keeps)])
        wish = rng.uniform(0.1, 1, (1, 2 * model.depth)) * dense_row(model.shape)
        rows.append(fit(wish, Ranges.above(model.shape), budget)[0])
    return np.unique(rows, axis=0)[rng.permutation(len(np.unique(rows, axis=0)))]


@pytest.fixture(scope="module")
def rows():
    return sample(MODEL, 700)


@pytest.fixture(scope="module")
def predictor(rows):
    return fit_predictor(MODEL.pairs(rows[:120]), MODEL.shape, MODEL.mass, seed=0, repeats=1)


def test_it_ranks_plans_that_it_has_not_seen(predictor, rows):
    measured = MODEL.measure(rows[150:])
    tau = kendalltau(predictor.predict(rows[150:]), measured)[0]
    assert tau > 0.8
    assert predictor.report.chosen.kendall == pytest.approx(tau, abs=0.06)
    error = predictor.predict(rows[150:]) - measured
    assert predictor.report.chosen.r2 == pytest.approx(
        1 - (error**2).mean() / measured.var(), abs=0.1
    )
    assert predictor.report.chosen.rmse == pytest.approx(np.sqrt((error**2).mean()), rel=0.6)


def test_the_report_names_winner_and_others(predictor):
    report = predictor.report
    kinds = [report.chosen.kind, *(one.kind for one in report.others)]
    assert sorted(kinds) == sorted(KINDS)
    taus = [report.chosen.kendall_same_size, *(one.kendall_same_size for one in report.others)]
    assert taus == sorted(taus, reverse=True)
    assert report.pairs == 120
    assert f"τ {report.chosen.kendall:.3f}" in report.words
    assert ("within the noise" in report.words) == (report.margin <= report.margin_error)


def test_a_lead_within_its_error_is_said_to_be_noise():
    first = Agreement("ridge", "log", 0.85, 0.85, 0.9, 0.02)
    second = Agreement("lightgbm", "sqrt", 0.84, 0.84, 0.9, 0.02)
    ahead = PredictorReport(first, (second,), 100, 0.01, 0.008)
    assert not ahead.within_noise
    assert "noise" not in ahead.words
    tied = PredictorReport(first, (second,), 100, 0.01, 0.02)
    assert tied.words.endswith("; within the noise of LightGBM")
    assert not PredictorReport(first, (), 100, 0.0, 0.0).within_noise


def test_where_there_is_nothing_to_learn_nothing_is_learnt(rows):
    values = np.random.default_rng(0).uniform(0.3, 0.6, 60)
    pairs = [
        Pair(plan, float(v), 6000) for plan, v in zip(as_plans(rows[:60]), values, strict=True)
    ]
    report = fit_predictor(
        pairs, MODEL.shape, MODEL.mass, seed=0, repeats=2, kinds=["ridge", "lightgbm"]
    ).report
    assert abs(report.chosen.kendall) < 0.3
    assert report.chosen.r2 < 0.2
    assert report.margin_error > 0


def test_partial_pairs_count_less(rows):
    wrong = MODEL.pairs(rows[:40])
    pairs = MODEL.pairs(rows[40:120])
    spoiled = [Pair(one.plan, one.value + 0.4, 60, partial=True) for one in wrong]
    trusted = [Pair(one.plan, one.value + 0.4, 6000) for one in wrong]
    errors = []
    for extra in (spoiled, trusted):
        fitted = fit_predictor(
            [*pairs, *extra], MODEL.shape, MODEL.mass, seed=0, repeats=1, kinds=["ridge"]
        )
        errors.append(
            np.abs(fitted.predict(rows[200:400]) - MODEL.loss_increase(rows[200:400])).mean()
        )
    assert errors[0] < 0.5 * errors[1]


def test_partial_pairs_are_brought_to_the_level_of_the_whole_text(rows):
    """On its first chunk a plan rises by a half or so of what it does in all."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.4, 0.6, 40)
    plans = as_plans(rows[:60])
    values = MODEL.loss_increase(rows[:60])
    whole = [
        Pair(plan, value, 6000, trajectory=((1500, share * value), (6000, value)))
        for plan, value, share in zip(plans[:40], values[:40], shares, strict=True)
    ]
    partial = [
        Pair(plan, 0.5 * value, 1500, partial=True, trajectory=((1500, 0.5 * value),))
        for plan, value in zip(plans[40:59], values[40:59], strict=True)
    ]
    # nothing whole says how much of a rise shows on so few tokens
    unknown = [Pair(plans[59], 0.3, 60, partial=True, trajectory=((60, 0.3),))]
    level = sorted(1 / shares)[19:21]
    wanted = [*values[:40], *(0.5 * values[40:59] * np.mean(level)), 0.3]
    np.testing.assert_allclose(_extrapolated([*whole, *partial, *unknown]), wanted, rtol=1e-9)


def test_several_sizes_are_judged_each_by_itself():
    rows = sample(MODEL, 120, keeps=(0.5, 0.7, 0.9))
    report = fit_predictor(
        MODEL.pairs(rows), MODEL.shape, MODEL.mass, seed=0, repeats=1, kinds=["gaussian_process"]
    ).report
    assert report.chosen.kendall > report.chosen.kendall_same_size > 0.6
    assert "among plans of one size" in report.words


def test_caution_is_the_worst_that_any_kind_expects(rows):
    alone = [
        fit_predictor(
            MODEL.pairs(rows[:50]), MODEL.shape, MODEL.mass, seed=0, repeats=1, kinds=[kind]
        )
        for kind in KINDS
    ]
    together = fit_predictor(MODEL.pairs(rows[:50]), MODEL.shape, MODEL.mass, seed=0, repeats=1)
    worst = np.max([one.predict(rows[100:200]) for one in alone], axis=0)
    assert together.cautious(rows[100:200]) == pytest.approx(worst)


def test_the_order_of_pairs_changes_nothing(rows):
    pairs = MODEL.pairs(rows[:40])
    first, again = (
        fit_predictor(
            ordered, MODEL.shape, MODEL.mass, seed=0, repeats=1, kinds=["lightgbm", "ridge"]
        )
        for ordered in (pairs, pairs[::-1])
    )
    assert again.report == first.report
    assert (again.cautious(rows) == first.cautious(rows)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_nothing(rows, kind):
    features, target = PlanFeatures(MODEL.shape, MODEL.mass)(rows), MODEL.loss_increase(rows)
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            model = new_regressor(kind, MODEL.depth, 0)
            model.fit(features[:150], target[:150], np.ones(150))
            results.append(model.predict(np.tile(features, (15, 1))).tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_process_learns_and_predicts_as_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((60, 7)) * np.arange(1, 8)
    target = np.sin(features[:, 0]) + features[:, 1] / 3 + 2 + 0.1 * rng.standard_normal(60)
    weights = rng.choice([1.0, 0.5, 0.25], 60)
    kernel = (
        ConstantKernel(1.0, (1e-3, 1e3)) * RBF(7**0.5, (0.1 * 7**0.5, 100 * 7**0.5))
        + ConstantKernel(1 / 7, (1e-6, 1e2)) * DotProduct(1.0, "fixed")
        + WhiteKernel(0.1, (1e-6, 1.0))
    )
    plain = GaussianProcessRegressor(kernel, alpha=1e-8 + 0.01 * (1 / weights - 1))
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    plain.fit(scaled, (target - target.mean()) / target.std())
    mine = GaussianProcess()
    mine.fit(features, target, weights)
    assert np.log(mine.kernel) == pytest.approx(plain.kernel_.theta, abs=1e-4)
    wanted = plain.predict(scaled) * target.std() + target.mean()
    assert mine.predict(features) == pytest.approx(wanted, rel=1e-6)
    again = GaussianProcess(mine.kernel)  # begun where it ended, it stays
    again.fit(features, target, weights)
    assert again.kernel == pytest.approx(mine.kernel, rel=1e-3)


@given(hnp.arrays(float, 4, elements=st.floats(-4, 2)))
def test_the_likelihood_and_its_slopes_are_those_of_the_plain_formula(logarithms):
    rng = np.random.default_rng(0)
    points, target, variances = (
        rng.standard_normal((12, 3)),
        rng.standard_normal(12),
        rng.uniform(0, 1, 12),
    )
    likelihood = Likelihood(points, target, variances)

    def plain(numbers):
        smooth, length, linear, noise = np.exp(numbers)
        apart = ((points[:, None] - points) ** 2).sum(axis=2)
        covariance = smooth * np.exp(-apart / 2 / length**2) + linear * (points @ points.T + 1)
        covariance += np.diag(noise + variances)
        return multivariate_normal(np.zeros(12), covariance).logpdf(target)

    value, slopes = likelihood(np.exp(logarithms))
    assert value == pytest.approx(plain(logarithms), rel=1e-9)
    steps = 1e-5 * np.eye(4)
    wanted = [(plain(logarithms + one) - plain(logarithms - one)) / 2e-5 for one in steps]
    assert slopes == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_kernel_matrix_that_is_not_positive_has_no_likelihood():
    same = np.ones((5, 2))
    value, slopes = Likelihood(same, np.arange(5.0), np.full(5, -1.0))(np.array([1, 1, 1, 1e-6]))
    assert value == -np.inf
    assert not slopes.any()


@pytest.mark.parametrize("rounds", [1, 50, 300])
def test_tables_answer_as_lightgbm_does_to_the_bit(rows, rounds):
    features, target = PlanFeatures(MODEL.shape, MODEL.mass)(rows), MODEL.loss_increase(rows)
    settings = {"num_leaves": 4, "min_data_in_leaf": 4, "verbosity": -1, "num_threads": 1}
    data = lightgbm.Dataset(features[:40], target[:40], params=settings)
    booster = lightgbm.train(settings, data, num_boost_round=rounds)  # in the end, single leaves
    tables = TreeTables(booster)
    asked = np.concatenate([features, features[:40]])  # among them those on a threshold's side
    for count in (1, 2, 3, len(asked)):
        assert (tables(asked[:count]) == booster.predict(asked[:count])).all()


def test_trees_asked_twice_answer_the_same(rows):
    features, target = PlanFeatures(MODEL.shape, MODEL.mass)(rows), MODEL.loss_increase(rows)
    trees = new_regressor("lightgbm", MODEL.depth, 0)
    trees.fit(features[:100], target[:100], np.ones(100))
    first, again = trees.predict(features), trees.predict(features)
    assert (first == again).all()


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_never_vary_do_no_harm(kind):
    rng = np.random.default_rng(0)
    features = rng.uniform(0, 1, (80, 15))
    features[:, [3, 13]] = 0.7
    target = features[:, 0] + 2 * features[:, 1]
    model = new_regressor(kind, 2, 0)
    model.fit(features, target, np.ones(80))
    changed = features.copy()
    changed[:, 3] = 0.0
    assert np.corrcoef(model.predict(changed), target)[0, 1] > 0.9


def test_too_few_pairs_are_refused(rows):
    with pytest.raises(LmscoutError, match="19 pairs are too few"):
        fit_predictor(MODEL.pairs(rows[:19]), MODEL.shape, MODEL.mass, seed=0)


def test_pairs_that_do_not_differ_are_refused(rows):
    same = [Pair(one.plan, 0.5, 6000) for one in MODEL.pairs(rows[:30])]
    with pytest.raises(LmscoutError, match="same quality"):
        fit_predictor(same, MODEL.shape, MODEL.mass, seed=0)


def test_real_shapes_with_two_hundred_pairs():
    model = Synthetic()  # twelve blocks, ten groups, 864 channels
    rows = sample(model, 400, seed=5)
    fitted = fit_predictor(
        model.pairs(rows[:200]), model.shape, model.mass, seed=0, repeats=1, kinds=["ridge"]
    )
    tau = kendalltau(fitted.predict(rows[200:]), model.loss_increase(rows[200:]))[0]
    print(fitted.report.words, tau)
    assert fitted.report.chosen.kendall > 0.8
    assert tau > 0.8
