import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscout.errors import LmscoutError
from lmscout.pruning.plan import Plan, Shape

SHAPE = Shape((10,) * 12, (864,) * 12, (40_960,) * 12, (960,) * 12)


@given(keep=st.floats(0.1, 1.0))
def test_a_uniform_plan_meets_its_budget(keep):
    plan = SHAPE.uniform(keep)
    SHAPE.check(plan)
    assert abs(SHAPE.kept_share(plan) - keep) < 0.0005


@given(
    keep=st.floats(0.3, 0.95),
    wanted=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=12, max_size=12),
)
def test_any_wish_is_fitted_to_the_budget(keep, wanted):
    plan = SHAPE.fit(
        tuple(10 * share for share, _ in wanted), tuple(864 * share for _, share in wanted), keep
    )
    SHAPE.check(plan)
    groups = sum(plan.attention) * 40_960 / SHAPE.parameters
    channels_can = 1 - sum(SHAPE.groups) * 40_960 / SHAPE.parameters
    if groups <= keep <= groups + channels_can:  # else no number of channels meets it
        assert abs(SHAPE.kept_share(plan) - keep) < 0.001


def test_a_wish_that_meets_the_budget_is_granted():
    wish = Plan((10, 5) * 6, (864, 300) * 6)
    keep = SHAPE.kept_share(wish)
    assert SHAPE.fit(wish.attention, wish.mlp, keep) == wish


def test_rounding_of_groups_is_carried_on():
    plan = SHAPE.uniform(0.85)
    assert sum(plan.attention) == pytest.approx(0.85 * 120, abs=1)
    assert set(plan.attention) == {8, 9}


def test_names_round_trip():
    plan = Plan((1, 2), (30, 40))
    assert plan.as_dict() == {
        "block00.attention": 1,
        "block00.mlp": 30,
        "block01.attention": 2,
        "block01.mlp": 40,
    }
    assert Plan.from_dict(plan.as_dict()) == plan
    with pytest.raises(LmscoutError, match=r"block01\.mlp is missing or unknown"):
        Plan.from_dict({"block00.attention": 1, "block00.mlp": 2, "block01.attention": 1, "x": 3})


def test_dropped_blocks_and_counts():
    plan = Plan((0, 3, 0), (0, 0, 7))
    assert plan.dropped == (0,)
    shape = Shape((4, 4, 4), (9, 9, 9), (100, 100, 100), (10, 10, 10))
    assert shape.parameters == 3 * (400 + 90)
    assert shape.parameters_of(plan) == 300 + 70
    assert shape.kept_share(shape.dense) == 1.0


@pytest.mark.parametrize("plan", [Plan((5, 1), (1, 1)), Plan((1, 1), (-1, 1)), Plan((1,), (1,))])
def test_plans_that_do_not_fit_are_refused(plan):
    shape = Shape((4, 4), (9, 9), (100, 100), (10, 10))
    with pytest.raises(LmscoutError, match="plan: "):
        shape.check(plan)


def test_fit_is_deterministic():
    rng = np.random.default_rng(0)
    wish = tuple(10 * rng.random(12)), tuple(864 * rng.random(12))
    assert SHAPE.fit(*wish, 0.7) == SHAPE.fit(*wish, 0.7)
