from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.stats
from tiny_benchmark import tiny_benchmark

from lmscout.discovery.explain import (
    formula_scores,
    formula_text,
    formulas,
    surrogate,
)
from lmscout.discovery.splits import halves

BENCHMARK = tiny_benchmark(60)
DEPTH = np.array([spec.depth for spec in BENCHMARK.specs], float)
WIDTH = np.array([spec.width for spec in BENCHMARK.specs], float)
PARAMS = np.array([spec.parameters() for spec in BENCHMARK.specs], float)


def rho(one, other):
    return scipy.stats.spearmanr(one, other).statistic


def test_formulas_are_some_hundred_the_short_ones_first():
    found = formulas()
    assert len(found) == len(set(found)) == 145
    assert set(found[:3]) == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    factors = [sum(power != 0 for power in one) for one in found]
    assert factors == sorted(factors)
    # Any exponents from -3 to 3 are one of them, up to a power and an inverse.
    for exponents in product(range(-3, 4), repeat=3):
        if any(exponents):
            alike = [one for one in found if np.linalg.matrix_rank([one, exponents]) == 1]
            assert len(alike) == 1


def test_what_a_formula_says():
    np.testing.assert_allclose(formula_scores((2, 1, -3), BENCHMARK), DEPTH**2 * WIDTH / PARAMS**3)


@pytest.mark.parametrize(
    ("exponents", "text"),
    [
        ((1, 0, 0), "depth"),
        ((2, 1, 0), "depth^2 * width"),
        ((0, 2, -1), "width^2 / params"),
        ((1, -1, -3), "depth / (width * params^3)"),
        ((0, 0, -1), "1 / params"),
    ],
)
def test_a_formula_as_text(exponents, text):
    assert formula_text(exponents) == text


@pytest.mark.parametrize(
    ("scores", "formula"),
    [
        (PARAMS, "params"),
        (-np.log(PARAMS), "1 / params"),
        (DEPTH**2 * PARAMS, "depth^2 * params"),
        (WIDTH / DEPTH, "width / depth"),
    ],
)
def test_a_formula_is_found_again(scores, formula):
    found = surrogate(BENCHMARK, scores, seed=0)
    assert found.formula == formula
    assert found.fitted == found.held_out == pytest.approx(1.0)
    assert found.says_as_much
    assert found.quality == pytest.approx(
        rho(formula_scores(found.exponents, BENCHMARK), BENCHMARK.quality)
    )


def test_what_no_formula_says_is_not_approximated():
    noise = np.random.default_rng(1).normal(size=60)
    found = surrogate(BENCHMARK, noise, seed=0)
    assert not found.says_as_much
    assert found.fitted > 0  # the formula increases with the proxy on the half that chose it
    assert found.fitted > abs(found.held_out)


def test_the_choice_is_made_on_one_half_and_reported_on_the_other():
    scores = PARAMS + 2000 * np.random.default_rng(2).normal(size=60)
    found = surrogate(BENCHMARK, scores, seed=3)
    chosen, others = halves(BENCHMARK.specs, 3)
    row = formula_scores(found.exponents, BENCHMARK)
    assert found.fitted == pytest.approx(rho(row[chosen], scores[chosen]))
    assert found.held_out == pytest.approx(rho(row[others], scores[others]))
    best = max(abs(rho(formula_scores(one, BENCHMARK)[chosen], scores[chosen]))
               for one in formulas())  # fmt: skip
    assert found.fitted == pytest.approx(best)
    # what the other half says has no part in the choice
    changed = scores.copy()
    changed[others] = changed[others][::-1]
    assert surrogate(BENCHMARK, changed, seed=3).exponents == found.exponents
    assert surrogate(BENCHMARK, scores, seed=3) == found


def test_formulas_that_order_a_benchmark_alike_are_one():
    narrow = BENCHMARK.subset(np.flatnonzero(WIDTH == 8))
    found = surrogate(narrow, np.array([spec.depth for spec in narrow.specs], float), seed=0)
    assert found.formula == "depth"
    assert found.tried < surrogate(BENCHMARK, DEPTH, seed=0).tried < 145


def test_where_all_are_alike_there_is_no_formula():
    same = replace(BENCHMARK, specs=(BENCHMARK.specs[0],) * 60)
    assert surrogate(same, np.arange(60.0), seed=0) is None


def test_halves_keep_equal_architectures_together():
    specs = list("aabbccddeeffgghhi")
    first, second = halves(specs, 1)
    assert sorted([*first, *second]) == list(range(17))
    assert not {specs[one] for one in first} & {specs[one] for one in second}
    assert abs(len(first) - len(second)) <= 3
    assert all(np.array_equal(a, b) for a, b in zip(halves(specs, 1), (first, second), strict=True))
    assert not np.array_equal(halves(specs, 2)[0], first)


def test_json_has_every_figure():
    values = surrogate(BENCHMARK, PARAMS, seed=0).to_json()
    assert values["formula"] == "params"
    assert values["exponents"] == {"depth": 0, "width": 0, "params": 1}
    assert values["says_as_much"] is True
