from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscout.metrics import equivalent_trials, expected_best_rank, true_ranks

QUALITIES = st.lists(st.integers(0, 6), min_size=1, max_size=9)


def by_listing(ranks, k):
    """The mean over every way to draw k."""
    best = [min(drawn) for drawn in combinations(ranks, k)]
    return sum(best) / len(best)


def test_ranks_begin_with_1_for_the_best_and_ties_share_their_mean():
    assert true_ranks([3.0, 9.0, 5.0, 5.0]).tolist() == [4, 1, 2.5, 2.5]


@given(quality=QUALITIES, data=st.data())
def test_the_expected_best_rank_is_the_mean_over_all_ways_to_draw(quality, data):
    ranks = true_ranks(quality)
    k = data.draw(st.integers(1, len(quality)))
    assert expected_best_rank(ranks, k) == pytest.approx(by_listing(ranks, k), rel=1e-12)


@given(n=st.integers(1, 600), data=st.data())
def test_without_ties_it_has_a_closed_form(n, data):
    k = data.draw(st.integers(1, n))
    assert expected_best_rank(np.arange(1, n + 1), k) == pytest.approx((n + 1) / (k + 1))
    if n < 60:  # and by the binomial coefficients themselves, in whole numbers
        exact = sum(Fraction(i * comb(n - i, k - 1), comb(n, k)) for i in range(1, n + 1))
        assert exact == Fraction(n + 1, k + 1)


def test_simulated_draws_agree():
    rng = np.random.default_rng(0)
    ranks = true_ranks(rng.integers(0, 20, 50))
    for k in (1, 3, 10, 40):
        best = [rng.choice(ranks, k, replace=False).min() for _ in range(4000)]
        error = np.std(best) / np.sqrt(len(best))
        assert abs(np.mean(best) - expected_best_rank(ranks, k)) < 4 * error + 1e-9


@given(quality=QUALITIES, data=st.data())
def test_the_trials_are_the_fewest_whose_best_is_as_good(quality, data):
    ranks = true_ranks(quality)
    rank = data.draw(st.sampled_from(ranks.tolist()))
    expected = next(k for k in range(1, len(ranks) + 1) if by_listing(ranks, k) <= rank + 1e-9)
    assert equivalent_trials(ranks, rank) == expected


def test_the_median_is_worth_one_trial_and_the_best_of_all_every_one():
    ranks = np.arange(1, 100)
    assert equivalent_trials(ranks, 50) == 1
    assert equivalent_trials(ranks, 49.9) == 2
    assert equivalent_trials(ranks, 10) == 9  # 100 / (k + 1) is 10
    assert equivalent_trials(ranks, 1) == 99
    assert equivalent_trials(ranks, 99) == 1


@pytest.mark.parametrize("k", [0, 4])
def test_what_cannot_be_drawn_is_refused(k):
    with pytest.raises(ValueError, match=f"{k} of 3"):
        expected_best_rank([1, 2, 3], k)
