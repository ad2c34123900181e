"""Budgets against plain sums."""

import numpy as np
import pytest

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import (
    keep_budget,
    latency_budget,
    linear_budget,
)
from lmscout.pruning.plan import Shape, as_plans

SHAPE = Shape((4, 2, 3), (7, 5, 6), (100, 120, 110), (9, 11, 10))
ROWS = np.array([[4, 2, 3, 7, 5, 6], [1, 0, 3, 2, 5, 0], [0, 0, 0, 0, 0, 0]])


def test_kept_share_is_that_of_the_shape():
    shares = keep_budget(SHAPE, 0.5).cost(ROWS)
    assert shares == pytest.approx([SHAPE.kept_share(plan) for plan in as_plans(ROWS)])


def test_linear_costs_are_sums_over_units():
    budget = linear_budget("size", SHAPE, 1e9, parameter=2, group=40, channel=-3, fixed=64)
    wanted = [
        64 + 2 * SHAPE.parameters_of(plan) + 40 * sum(plan.attention) - 3 * sum(plan.mlp)
        for plan in as_plans(ROWS)
    ]
    assert budget.cost(ROWS) == pytest.approx(wanted)


def test_latency_is_read_from_tables_and_never_falls():
    attention = [np.arange(5) * 1.0, np.arange(3) * 2.0, [0.0, 3.0, 2.0, 4.0]]
    mlp = [np.arange(8) * 0.1, np.arange(6) * 0.2, np.zeros(7)]
    budget = latency_budget(SHAPE, 9.0, attention=attention, mlp=mlp, fixed=0.5)
    assert budget.cost(ROWS) == pytest.approx(
        [0.5 + 4 + 4 + 4 + 0.7 + 1, 0.5 + 1 + 0 + 4 + 0.2 + 1, 0.5]
    )
    two = np.array([[0, 0, 2, 0, 0, 0]])
    assert budget.cost(two) == pytest.approx([0.5 + 3])  # measured 2.0, after 3.0 for one


def test_one_latency_table_serves_all_blocks():
    same = Shape((2, 2), (3, 3), (1, 1), (1, 1))
    budget = latency_budget(same, 9.0, attention=[[0, 1, 2]], mlp=[[0, 5, 6, 7]])
    assert budget.cost(np.array([[1, 2, 3, 0]])) == pytest.approx([1 + 2 + 7])


def test_a_table_of_the_wrong_length_is_refused():
    with pytest.raises(LmscoutError, match=r"3, 7, 8 entries, expected 3 of 6, 7, 8"):
        latency_budget(
            SHAPE,
            1.0,
            attention=[np.arange(5), np.arange(3), np.arange(4)],
            mlp=[np.arange(8), np.arange(3), np.arange(7)],
        )
    with pytest.raises(LmscoutError, match=r"attention tables .*got 2 tables of 2 entries"):
        latency_budget(SHAPE, 1.0, attention=[[0, 1], [0, 1]], mlp=[np.arange(8)])
