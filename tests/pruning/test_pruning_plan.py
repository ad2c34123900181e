import pytest

from lmscout.errors import LmscoutError
from lmscout.pruning.plan import Plan, Shape


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
