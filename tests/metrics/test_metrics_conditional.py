import math

import numpy as np
import pytest
import scipy.stats

from lmscout.metrics import (
    configuration_baselines,
    partial_spearman,
    top_recall,
    within_cell_spearman,
)


def residuals(values, given):
    slope, intercept = np.polyfit(given, values, 1)
    return values - slope * given - intercept


def test_partial_correlation_is_that_of_the_residuals_of_ranks():
    rng = np.random.default_rng(0)
    size = rng.normal(size=60)
    quality = size + rng.normal(size=60)
    scores = size + 0.5 * quality + rng.normal(size=60)
    x, y, z = (scipy.stats.rankdata(v) for v in (scores, quality, size))
    expected = scipy.stats.pearsonr(residuals(x, z), residuals(y, z)).statistic
    assert partial_spearman(scores, quality, size) == pytest.approx(expected)


def test_nothing_is_left_to_correlate_where_the_scores_are_the_size():
    size = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    quality = np.array([1.0, 3.0, 2.0, 5.0, 4.0])
    assert math.isnan(partial_spearman(size**3, quality, size))
    assert math.isnan(partial_spearman(-size, quality, size))


def test_within_cell_is_the_mean_over_cells_weighted_by_size():
    rng = np.random.default_rng(2)
    cells = ["a"] * 6 + ["b"] * 10 + ["small"] * 3
    scores, quality = rng.normal(size=19), rng.normal(size=19)
    scores += np.array([100.0] * 6 + [0.0] * 13)  # between cells: must not count
    by_cell = [
        scipy.stats.spearmanr(scores[rows], quality[rows]).statistic
        for rows in (slice(0, 6), slice(6, 16))
    ]
    expected = (6 * by_cell[0] + 10 * by_cell[1]) / 16
    assert within_cell_spearman(scores, quality, cells) == pytest.approx(expected)


def test_scores_that_only_tell_cells_apart_are_worth_nothing_within():
    cells = [1] * 5 + [2] * 5
    assert within_cell_spearman([1.0] * 5 + [2.0] * 5, np.arange(10.0), cells) == 0.0


def test_within_cell_needs_a_cell_and_finite_scores():
    assert math.isnan(within_cell_spearman([1.0, 2.0], [1.0, 2.0], ["a", "b"]))
    assert math.isnan(within_cell_spearman([np.nan, 2, 3, 4, 5], np.arange(5.0), ["a"] * 5))


def test_top_recall_counts_the_overlap_of_the_best_tenths():
    quality = np.arange(30.0)
    scores = quality.copy()
    assert top_recall(scores, quality) == 1.0
    scores[29] = -1  # of the best three, two are still on top
    assert top_recall(scores, quality) == pytest.approx(2 / 3)
    assert top_recall(-quality, quality) == 0.0
    assert math.isnan(top_recall(np.full(30, np.nan), quality))


def test_top_recall_of_constant_scores_is_chance():
    assert top_recall(np.ones(50), np.arange(50.0)) == pytest.approx(0.1)


def test_baselines_by_name():
    got = configuration_baselines(
        parameters=[10, 20], body_parameters=[5, 9], depth=[2, 4], width=[128, 256]
    )
    assert list(got) == ["parameters", "body-parameters", "depth", "width", "depth²×width"]
    assert got["depth²×width"].tolist() == [512.0, 4096.0]
