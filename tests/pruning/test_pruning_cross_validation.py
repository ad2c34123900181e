"""Cross-validation: its correlation, its folds, its margin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscout.metrics import kendall
from lmscout.pruning.predictor import folds, margin, same_size_kendall


def plainly(predicted, measured, sizes):
    agree = ahead = better = 0
    for one in range(len(sizes)):
        for other in range(one):
            if abs(sizes[one] - sizes[other]) < 0.005:
                first = np.sign(predicted[one] - predicted[other])
                second = np.sign(measured[one] - measured[other])
                agree += first * second
                ahead += first != 0
                better += second != 0
    return agree / np.sqrt(ahead * better) if ahead and better else 0.0


@given(st.integers(0, 10**6), st.integers(2, 30))
def test_only_plans_of_one_size_are_compared(seed, count):
    rng = np.random.default_rng(seed)
    predicted, measured = rng.integers(0, 9, (2, count)).astype(float)
    sizes = rng.choice([0.5, 0.501, 0.8], count)
    assert same_size_kendall(predicted, measured, sizes) == pytest.approx(
        plainly(predicted, measured, sizes)
    )


def test_of_one_size_it_is_kendalls():
    rng = np.random.default_rng(0)
    predicted, measured = rng.integers(0, 20, (2, 80)).astype(float)
    assert same_size_kendall(predicted, measured, np.full(80, 0.8)) == pytest.approx(
        kendall(predicted, measured)
    )


@given(st.integers(20, 200), st.integers(0, 9))
def test_folds_are_all_rows_once(count, repeat):
    parts = folds(count, 3, repeat)
    assert sorted(np.concatenate(parts)) == list(range(count))
    assert np.ptp([len(part) for part in parts]) <= 1
    assert all(
        (one == other).all() for one, other in zip(parts, folds(count, 3, repeat), strict=True)
    )
    assert any(
        len(one) != len(other) or (one != other).any()
        for one, other in zip(parts, folds(count, 4, repeat), strict=True)
    )


def test_the_margins_error_is_that_of_nadeau_and_bengio():
    ahead, behind = [0.8, 0.9, 0.7, 0.85], [0.7, 0.85, 0.72, 0.8]
    difference = np.subtract(ahead, behind)
    mean, error = margin(ahead, behind)
    assert mean == pytest.approx(difference.mean())
    # Four differences, each from a fold of a fifth of the rows.
    assert error == pytest.approx(np.sqrt((1 / 4 + 0.2 / 0.8) * difference.var(ddof=1)))
