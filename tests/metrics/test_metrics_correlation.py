import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lmscout.metrics import kendall, kendall_many, midranks, spearman, spearman_many

COEFFICIENTS = {
    spearman_many: lambda x, y: scipy.stats.spearmanr(x, y).statistic,
    kendall_many: lambda x, y: scipy.stats.kendalltau(x, y).statistic,
}

# Few different values, so that ties in either vector and in both are the rule.
tied = st.integers(-4, 4).map(float)
spread = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def scores_and_quality(draw):
    n = draw(st.integers(2, 30))
    element = draw(st.sampled_from([tied, spread]))
    rows = draw(hnp.arrays(np.float64, (draw(st.integers(1, 4)), n), elements=element))
    return rows, draw(hnp.arrays(np.float64, n, elements=element))


@pytest.mark.parametrize("many", COEFFICIENTS)
@given(data=scores_and_quality())
@settings(deadline=None, max_examples=150)
def test_equals_scipy_with_ties(many, data):
    rows, quality = data
    got = many(rows, quality)
    for value, row in zip(got, rows, strict=True):
        if np.ptp(row) == 0 or np.ptp(quality) == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(COEFFICIENTS[many](row, quality), abs=1e-12)


@pytest.mark.parametrize("many", COEFFICIENTS)
def test_equals_scipy_on_a_benchmark_sized_table(many):
    rng = np.random.default_rng(0)
    quality = np.round(rng.normal(size=500), 2)
    rows = np.concatenate([rng.normal(size=(20, 500)), rng.integers(0, 5, (20, 500))])
    expected = [COEFFICIENTS[many](row, quality) for row in rows]
    np.testing.assert_allclose(many(rows, quality), expected, atol=1e-12)


@pytest.mark.parametrize("many", COEFFICIENTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_no_coefficient_and_spoils_no_other(many, bad):
    rng = np.random.default_rng(1)
    rows, quality = rng.normal(size=(3, 40)), rng.normal(size=40)
    clean = many(rows, quality)
    rows[1, 7] = bad
    got = many(rows, quality)
    assert np.isnan(got[1])
    assert got[0] == clean[0]
    assert got[2] == clean[2]


@given(data=scores_and_quality())
@settings(deadline=None)
def test_a_rising_map_of_the_scores_changes_nothing_and_a_falling_one_the_sign(data):
    rows, quality = data
    for many in COEFFICIENTS:
        plain = many(rows, quality)
        np.testing.assert_array_equal(many(rows * 2 + 1, quality), plain)
        np.testing.assert_allclose(many(-rows, quality), -plain, atol=1e-12)


def test_scores_that_differ_by_rounding_alone_are_tied():
    quality = np.arange(6.0)
    scores = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    noise = scores * (1 + np.array([0, 1e-15, -1e-15, 2e-15, 1e-15, 0]))
    assert spearman(noise, quality) == spearman(scores, quality)
    assert kendall(noise, quality) == kendall(scores, quality)
    apart = scores * (1 + np.array([0, 1e-9, 0, 1e-9, 0, 1e-9]))
    assert spearman(apart, quality) == pytest.approx(1.0)


def test_zero_has_no_sign():
    quality = np.array([1.0, 2.0, 3.0, 4.0])
    assert np.isnan(spearman(np.array([0.0, -0.0, 0.0, -0.0]), quality))


def test_shapes_and_quality_are_checked():
    with pytest.raises(ValueError, match="do not fit"):
        spearman_many(np.zeros((2, 3)), np.zeros(4))
    with pytest.raises(ValueError, match="NaN"):
        kendall_many(np.zeros((1, 3)), np.array([1.0, np.nan, 2.0]))


@pytest.mark.parametrize("many", COEFFICIENTS)
def test_more_architectures_than_a_key_has_room_for(many):
    rng = np.random.default_rng(0)
    quality = rng.integers(0, 900, 2500).astype(float)
    rows = quality + rng.integers(0, 900, (3, 2500))
    rows[1] = 7.0
    rows[2, 5] = np.nan
    got = many(rows * (1 + 1e-14 * rng.normal(size=rows.shape)), quality)
    assert got[0] == pytest.approx(COEFFICIENTS[many](rows[0], quality), abs=1e-12)
    assert np.isnan(got[1:]).all()


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=tied))
def test_midranks_are_scipys_from_zero(values):
    np.testing.assert_array_equal(midranks(values), scipy.stats.rankdata(values) - 1)
