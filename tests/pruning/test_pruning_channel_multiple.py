"""Plans whose MLP widths are multiples of some channels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_quality import Synthetic

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import keep_budget, latency_budget
from lmscout.pruning.plan import as_rows
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.sampler import propose
from lmscout.pruning.search import search
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair

MODEL = Synthetic(depth=4, groups=4, channels=60)
SHAPE = MODEL.shape
CHANNEL = SHAPE.channel_parameters[0] / SHAPE.parameters


class Knowing:
    """Predicts the synthetic model as it is; sees channels, not steps, or fails."""

    def cautious(self, rows):
        assert rows.max() > 60 // 8
        return MODEL.measure(rows)

    def spread(self, rows):
        return np.zeros(len(rows))

    def error_near(self, loss_increase):
        return 0.01


def on_grid(plan, multiple):
    return all(kept % multiple == 0 or kept == 60 for kept in plan.mlp)


@given(
    keep=st.floats(0.4, 0.9), multiple=st.sampled_from([1, 3, 7, 8, 16]), seed=st.integers(0, 99)
)
def test_what_covers_the_space_is_on_the_grid_and_of_the_size(keep, multiple, seed):
    space, target = PlanSpace(SHAPE, multiple), target_of(keep)
    found = propose(space, [target], count=12, seed=seed, round_=0, pairs=[], predictor=None)
    assert found
    for one in found:
        SHAPE.check(one.plan)
        assert on_grid(one.plan, multiple)
        assert keep + 1e-4 >= SHAPE.kept_share(one.plan) >= keep - multiple * CHANNEL - 1e-3
    assert space.meets(as_rows([one.plan for one in found]), target.budget).all()


def target_of(keep):
    return Target(keep_budget(SHAPE, keep), Ranges.above(SHAPE))


def test_later_rounds_and_the_search_stay_on_the_grid_and_repeat_nothing():
    space, target = PlanSpace(SHAPE, 8), target_of(0.7)
    first = propose(space, [target], count=20, seed=0, round_=0, pairs=[], predictor=None)
    pairs = [
        Pair(one.plan, float(MODEL.measure(as_rows([one.plan]))[0]), 100, round=0) for one in first
    ]
    later = propose(space, [target], count=10, seed=0, round_=1, pairs=pairs, predictor=Knowing())
    assert len(later) == 10
    assert not {one.plan for one in first} & {one.plan for one in later}
    best = space.best_pairs(pairs, target.budget, 3)
    assert [one.value for one in best] == sorted(pair.value for pair in pairs)[:3]
    found = search(
        space, MODEL.measure, target, seed=0, count=3, initial=[one.plan for one in best]
    )
    assert all(on_grid(one.plan, 8) for one in [*later, *found])
    assert found[0].loss_increase <= best[0].value
    assert found[0].loss_increase == pytest.approx(MODEL.measure(as_rows([found[0].plan]))[0])


def test_pairs_off_the_grid_are_not_among_the_best():
    space, budget = PlanSpace(SHAPE, 8), keep_budget(SHAPE, 0.7)
    (plan, *_) = (
        one.plan
        for one in propose(
            PlanSpace(SHAPE, 7),
            [target_of(0.7)],
            count=4,
            seed=0,
            round_=0,
            pairs=[],
            predictor=None,
        )
        if not on_grid(one.plan, 8)
    )
    assert space.best_pairs([Pair(plan, 0.1, 100)], budget, 5) == []


def test_a_budget_that_no_plan_meets_is_refused_in_the_users_units():
    with pytest.raises(LmscoutError, match=r"budget of 0\.05 \(kept share\)"):
        PlanSpace(SHAPE, 8).require(keep_budget(SHAPE, 0.05))


def test_a_step_costs_what_its_channels_cost():
    rng = np.random.default_rng(0)
    measured = latency_budget(  # with falls, which tables hold level
        SHAPE,
        1.0,
        attention=[rng.uniform(size=5) for _ in range(4)],
        mlp=[np.cumsum(rng.uniform(-0.5, 1, 61)) for _ in range(4)],
        fixed=0.3,
    )
    rows = rng.integers(0, [5] * 4 + [10] * 4, (50, 8))  # 60 channels are nine steps at most
    channels = np.minimum(rows * ([1] * 4 + [7] * 4), [4] * 4 + [60] * 4)
    for budget in (measured, keep_budget(SHAPE, 0.7)):
        in_steps = PlanSpace(SHAPE, 7).in_steps(Target(budget, Ranges.above(SHAPE))).budget
        assert (in_steps.cost(rows) == budget.cost(channels)).all()


def test_what_is_being_measured_is_not_proposed_again():
    space, target = PlanSpace(SHAPE, 7), Target(keep_budget(SHAPE, 0.7), Ranges.above(SHAPE))
    asked = {"count": 12, "seed": 0, "round_": 0, "pairs": [], "predictor": None}
    waiting = [one.plan for one in propose(space, [target], **asked)]
    again = [one.plan for one in propose(space, [target], waiting=waiting, **asked)]
    assert len(again) == 12
    assert not {*again} & {*waiting}
