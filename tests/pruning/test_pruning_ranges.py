"""Fitting plans into ranges and budgets."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import keep_budget, latency_budget, linear_budget
from lmscout.pruning.plan import (
    Plan,
    Shape,
    as_plans,
    as_rows,
    dense_row,
    kept_shares,
    unit_parameters,
)
from lmscout.pruning.ranges import Ranges, fit, protected_blocks, uniform

SHAPE = Shape((10,) * 12, (864,) * 12, (40_960,) * 12, (960,) * 12)
SMALL = Shape((4,) * 5, (172,) * 5, (3072,) * 5, (192,) * 5)  # that of stories260K

wishes = arrays(np.float64, (4, 24), elements=st.floats(0, 1))


@settings(deadline=None)
@given(wish=wishes, keep=st.floats(0.15, 1.0))
def test_any_wish_is_fitted_within_ranges_and_meets_the_budget(wish, keep):
    ranges, budget = Ranges.above(SHAPE), keep_budget(SHAPE, keep)
    rows = fit(wish * dense_row(SHAPE), ranges, budget)
    assert ranges.holds(rows).all()
    shares = kept_shares(SHAPE, rows)
    assert (shares <= keep + 1e-7).all()
    assert (shares >= keep - 0.002).all()
    assert budget.meets(rows).all()
    assert (fit(rows, ranges, budget) == rows).all()  # what fits is left as it is


@settings(deadline=None)
@given(
    wish=arrays(np.float64, (3, 10), elements=st.floats(0, 1)),
    keep=st.floats(0.2, 1.0),
)
def test_a_tiny_model_meets_its_budget_to_a_channel(wish, keep):
    rows = fit(wish * dense_row(SMALL), Ranges.above(SMALL), keep_budget(SMALL, keep))
    short = (keep - kept_shares(SMALL, rows)) * SMALL.parameters
    full = (rows[:, 5:] == 172).all(axis=1)
    assert ((short < 192 + 1) | full).all()
    assert (short > -1).all()
    assert (short <= 0.002 * SMALL.parameters).all()
    assert keep_budget(SMALL, keep).meets(rows).all()


@settings(deadline=None)
@given(wish=wishes, seed=st.integers(0, 100))
def test_columns_that_are_held_stay(wish, seed):
    rng = np.random.default_rng(seed)
    held = rng.random(24) < 0.4
    units = dense_row(SHAPE)
    low = np.where(held, np.rint(0.8 * units), np.rint(0.1 * units)).astype(int)
    high = np.where(held, low, units)
    rows = fit(wish * units, (low, high), keep_budget(SHAPE, 0.8))
    assert (rows[:, held] == low[held]).all()


def test_groups_move_where_channels_cannot_do_it():
    budget = keep_budget(SHAPE, 0.3)
    wish = np.concatenate([np.full(12, 10.0), np.full(12, 400.0)])[None]
    low, high = as_rows([Ranges.above(SHAPE, 0.1).low, SHAPE.dense])
    low = low.copy()
    low[12:] = 250  # channels may not go below 250, so all groups together are too many
    rows = fit(wish, (low, high), budget)
    assert budget.meets(rows).all()
    assert (rows[:, :12].sum(), rows[0, 12:].min()) > (12, 249)
    assert rows[:, :12].sum() < 120
    low[12:], high = 0, high.copy()
    high[12:] = 500  # and here too few
    rows = fit(np.ones((1, 24)), (low, high), keep_budget(SHAPE, 0.6))
    assert keep_budget(SHAPE, 0.6).meets(rows).all()


def test_any_budget_that_grows_can_be_fitted():
    rng = np.random.default_rng(0)
    steps = np.ceil(np.arange(865) / 64) * 64e-6  # as kernels step, in tiles of 64
    tables = {"attention": [np.arange(11) * 1e-5], "mlp": [steps]}
    budget = latency_budget(SHAPE, 8e-3, **tables)
    rows = fit(rng.uniform(0, 1, (50, 24)) * dense_row(SHAPE), Ranges.above(SHAPE), budget)
    costs = budget.cost(rows)
    assert (costs <= 8e-3).all()
    assert costs.min() > 8e-3 - 64e-6
    products = linear_budget("multiply-adds", SHAPE, 1.2e7, group=129 * 32)
    rows = fit(rng.uniform(0, 1, (50, 24)) * dense_row(SHAPE), Ranges.above(SHAPE), products)
    assert (products.cost(rows) <= 1.2e7).all()
    assert (products.cost(rows) > 1.2e7 - 961).all()


@given(keep=st.floats(0.1, 1.0))
def test_the_uniform_plan_is_uniform(keep):
    plan = uniform(SHAPE, Ranges.above(SHAPE, 0.0), keep_budget(SHAPE, keep))
    assert abs(SHAPE.kept_share(plan) - keep) < 0.0005
    groups, channels = as_rows([plan])[0, :12], as_rows([plan])[0, 12:]
    assert np.ptp(groups) <= 1
    assert np.ptp(channels) <= 1


def test_guarded_blocks_are_whole_and_the_others_alike():
    assert protected_blocks(12) == (True,) * 2 + (False,) * 8 + (True,) * 2
    assert protected_blocks(3) == (True, False, True)
    protected = Ranges.above(SHAPE).protected(SHAPE)
    plan = uniform(SHAPE, protected, keep_budget(SHAPE, 0.8))
    assert plan.attention[:2] == plan.attention[-2:] == (10, 10)
    assert plan.mlp[:2] == plan.mlp[-2:] == (864, 864)
    assert np.ptp(plan.mlp[2:-2]) <= 1
    assert abs(SHAPE.kept_share(plan) - 0.8) < 0.001


def test_a_budget_that_no_plan_meets_names_the_nearest():
    ranges = Ranges.above(SHAPE, 0.5)
    with pytest.raises(LmscoutError, match=r"of 0\.3 \(kept share\): .* is 0\.5 \(kept share\)$"):
        ranges.require(keep_budget(SHAPE, 0.3))
    small = Ranges(Plan((1,) * 12, (1,) * 12), Plan((5,) * 12, (432,) * 12))
    with pytest.raises(LmscoutError, match=r"nearest that can be met is 0\.5 \(kept share\)$"):
        small.require(keep_budget(SHAPE, 0.9))
    small.require(linear_budget("multiply-adds", SHAPE, 1e9))  # no need to use it up
    with pytest.raises(LmscoutError, match=r"million \(0\.\d+ of the dense"):
        ranges.require(linear_budget("size", SHAPE, 10.0, unit=("million", 1e6)))


def test_rows_and_plans_are_the_same_thing():
    plans = [Plan((1, 2), (3, 4)), Plan((5, 6), (7, 8))]
    assert as_plans(as_rows(plans)) == plans
    assert all(type(count) is int for count in as_plans(as_rows(plans))[0].mlp)
    assert (unit_parameters(SMALL) == [3072] * 5 + [192] * 5).all()


@settings(deadline=None)
@given(
    depth=st.integers(2, 6),
    group_seconds=st.floats(0.5, 40.0),  # all channels of a block: 1.7
    share=st.floats(0.3, 0.99),
    ends_whole=st.booleans(),
)
def test_groups_that_channels_cannot_pay_for_stay_out(depth, group_seconds, share, ends_whole):
    shape = Shape((4,) * depth, (172,) * depth, (3072,) * depth, (192,) * depth)
    seconds = {"attention": [group_seconds * np.arange(5)], "mlp": [0.01 * np.arange(173)]}
    units = 4 * group_seconds + 1.72
    budget = latency_budget(shape, 2.0 + share * depth * units, **seconds, fixed=2.0)
    ranges = Ranges.above(shape)
    if ends_whole:
        ranges = ranges.protected(shape)
    assume(ranges.can_meet(budget))
    wishes = np.linspace(0.0, 1.0, 7)[:, None] * dense_row(shape)
    assert (budget.cost(fit(wishes, ranges, budget)) <= budget.limit).all()
    assert budget.meets(as_rows([uniform(shape, ranges, budget)])).all()


@given(st.integers(0, 10_000), st.booleans())
def test_the_shift_is_that_of_halving_the_interval(seed, stepped):
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(1, 6))
    groups, channels = ((int(rng.integers(1, most)),) * depth for most in (9, 700))
    shape = Shape(groups, channels, (4000,) * depth, (900,) * depth)
    low, high = as_rows([Ranges.above(shape).low, shape.dense])
    budget = keep_budget(shape, float(rng.uniform(0.5, 0.9)))
    if stepped:
        tables = [rng.random((1, most + 1)).cumsum(axis=1) for most in groups]
        steps = [(rng.random((1, most + 1)) < 0.1).cumsum(axis=1) for most in channels]
        full = sum(table[0, -1] for table in (*tables, *steps))
        budget = latency_budget(
            shape, 0.8 * full, attention=[one[0] for one in tables], mlp=[one[0] for one in steps]
        )
    wanted = rng.uniform(0, 1, (8, 2 * depth)) * dense_row(shape)
    wanted[:, :depth] = np.clip(np.rint(wanted[:, :depth]), low[:depth], high[:depth])
    least, most = wanted.astype(int), wanted.astype(int)
    least[:, depth:], most[:, depth:] = low[depth:], high[depth:]
    # Groups that leave channels no way to meet the budget are another matter.
    wanted = wanted[(budget.cost(least) <= budget.limit) & (budget.cost(most) > budget.limit)]
    found = fit(wanted, (low, high), budget)
    for row, got in zip(wanted, found, strict=True):
        start = np.clip(row[depth:], low[depth:], high[depth:])
        thresholds = (np.arange(depth) + 0.5) / depth

        def moved(share, row=row, start=start, thresholds=thresholds):
            room = high[depth:] - start if share > 0 else start - low[depth:]
            after = np.floor(start + share * room + thresholds + 1e-9)
            return np.concatenate([row[:depth], np.clip(after, low[depth:], high[depth:])])

        def fits(plan):
            return budget.cost(plan[None].astype(int))[0] <= budget.limit

        below, above = -1.0, 1.0
        for _ in range(26):
            middle = (below + above) / 2
            below, above = (middle, above) if fits(moved(middle)) else (below, middle)
        plan = moved(below)
        for column in range(depth, 2 * depth):
            more = plan + (np.arange(2 * depth) == column)
            if more[column] <= high[column] and fits(more):
                plan = more
        assert got.tolist() == plan.tolist()


def test_least_steps_are_those_of_the_costs():
    shape = Shape((2, 3), (5, 4), (10, 20), (3, 7))
    times = latency_budget(
        shape,
        1.0,
        attention=[[0, 1, 3], [0, 4, 6, 6.5]],
        mlp=[[0, 0, 2, 4, 5, 9], [0, 1, 2, 3, 4]],
        fixed=0.25,
    )
    assert times.least_steps.tolist() == [1, 0.5, 0, 1]
