import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lmscout.metrics import log_pearson

VECTOR = st.lists(st.floats(-1e6, 1e6), min_size=12, max_size=12, unique_by=lambda x: round(x, 3))
POSITIVE = st.lists(st.floats(1e-9, 1e9), min_size=12, max_size=12)
QUALITY = np.random.default_rng(0).normal(size=12)


def expected(scores):
    return pytest.approx(scipy.stats.pearsonr(scores, QUALITY).statistic, abs=1e-9)


@given(POSITIVE.filter(lambda one: np.ptp(np.log(one)) > 1e-3))
def test_it_is_pearsons_of_the_logarithm(scores):
    scores = np.array(scores)
    assert log_pearson(scores, QUALITY) == expected(np.log(scores))
    assert log_pearson(-scores, QUALITY) == pytest.approx(-log_pearson(scores, QUALITY))
    # A power and a unit change nothing: proxies are multiplied with these.
    assert log_pearson(3e5 * scores**2, QUALITY) == pytest.approx(log_pearson(scores, QUALITY))


@given(POSITIVE.filter(lambda one: np.ptp(np.log(one)) > 1e-3))
def test_a_power_law_is_straight(quality):
    quality = np.array(quality)
    assert log_pearson(2 * quality**0.3, quality) == pytest.approx(1)
    assert log_pearson(2 * quality**-0.3, -quality) == pytest.approx(1)
    assert log_pearson(quality**-0.3, quality) == pytest.approx(-1)


@given(VECTOR.filter(lambda one: min(one) <= 0 <= max(one)))
def test_scores_of_both_signs_count_as_they_are(scores):
    assert log_pearson(scores, QUALITY) == expected(scores)


def test_huge_scores_do_not_overflow():
    scores = np.array([-1e308, 1e308, *np.linspace(-1e307, 1e307, 10)])
    assert log_pearson(scores, QUALITY) == expected(scores / 1e308)


@pytest.mark.parametrize(
    "scores",
    [np.zeros(12), np.full(12, 0.1), 3 * (1 + 1e-15 * QUALITY), [math.nan, *QUALITY[1:]]],
    ids=["zero", "constant", "rounding", "not a number"],
)
def test_what_ranks_nothing_has_no_correlation(scores):
    assert math.isnan(log_pearson(scores, QUALITY))
    assert math.isnan(log_pearson(QUALITY, np.full(12, 0.3)))
