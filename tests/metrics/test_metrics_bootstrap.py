import numpy as np
import pytest
import scipy.stats

from lmscout.metrics import agreement, multiplicities, spearman_difference, top_recall


def resampled(x, y, weights, coefficient):
    """Plain definition: repeat each architecture as often as it was drawn, then correlate."""
    values = []
    for row in weights.astype(int):
        drawn = np.repeat(np.arange(x.size), row)
        values.append(coefficient(x[drawn], y[drawn]).statistic)
    return np.array(values)


def test_intervals_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(3)
    y = np.round(rng.normal(size=40), 1)
    x = np.round(y + rng.normal(size=40), 1)
    got = agreement(x, y, seed=5, samples=200)
    weights = multiplicities(40, 5, 200)
    for interval, coefficient in (
        (got.spearman, scipy.stats.spearmanr),
        (got.kendall, scipy.stats.kendalltau),
    ):
        samples = resampled(x, y, weights, coefficient)
        assert interval.value == pytest.approx(coefficient(x, y).statistic)
        assert [interval.low, interval.high] == pytest.approx(
            np.quantile(samples, [0.025, 0.975]), abs=1e-12
        )
        assert interval.low < interval.value < interval.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    rho = 0.6
    # Spearman's ρ of a bivariate normal with correlation r is 6/π asin(r/2) (Pearson 1907).
    truth = 6 / np.pi * np.arcsin(rho / 2)
    covered = 0
    for trial in range(200):
        x = rng.normal(size=80)
        y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=80)
        interval = agreement(x, y, seed=trial, samples=300).spearman
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_difference_is_that_of_a_plain_paired_bootstrap():
    rng = np.random.default_rng(4)
    y = np.round(rng.normal(size=40), 1)
    x, other = (np.round(y + noise * rng.normal(size=40), 1) for noise in (0.6, 1.0))
    got = spearman_difference(x, other, y, seed=5, samples=200)
    weights = multiplicities(40, 5, 200)
    drawn = [resampled(one, y, weights, scipy.stats.spearmanr) for one in (x, other)]
    assert [got.low, got.high] == pytest.approx(
        np.quantile(drawn[0] - drawn[1], [0.025, 0.975]), abs=1e-12
    )
    assert got.low < got.value < got.high


def test_a_difference_to_what_ranks_nothing_is_not_defined():
    got = spearman_difference(np.arange(20.0), np.ones(20), np.arange(20.0))
    assert np.isnan([got.value, got.low, got.high]).all()


def test_scores_that_rank_nothing_have_no_interval():
    for scores in (np.ones(20), np.full(20, np.nan)):
        got = agreement(scores, np.arange(20.0))
        assert np.isnan([got.spearman.value, got.spearman.low, got.kendall.high]).all()


def test_multiplicities_sum_to_the_number_of_architectures():
    weights = multiplicities(30, seed=1, samples=50)
    assert weights.shape == (50, 30)
    assert (weights.sum(axis=1) == 30).all()
    np.testing.assert_array_equal(weights, multiplicities(30, seed=1, samples=50))


def test_rounding_noise_changes_no_interval():
    rng = np.random.default_rng(6)
    y = rng.normal(size=60)
    x, other = (np.round(y + noise * rng.normal(size=60)) for noise in (0.5, 1.0))
    jittered = x * (1 + 1e-14 * rng.normal(size=60))
    assert len(np.unique(jittered)) > len(np.unique(x))
    assert agreement(jittered, y) == agreement(x, y)
    assert spearman_difference(jittered, other, y) == spearman_difference(x, other, y)
    assert top_recall(jittered, y) == top_recall(x, y)
