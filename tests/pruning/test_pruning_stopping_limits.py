"""Early-stopping limits of plans that are not among the best of their size."""

import numpy as np
from synthetic_quality import Synthetic

from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.plan import as_plans, dense_row
from lmscout.pruning.proposer import stopping_limits
from lmscout.pruning.ranges import Ranges, fit
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair

MODEL = Synthetic(depth=4, groups=4, channels=60)
SPACE = PlanSpace(MODEL.shape)
LARGE, SMALL = (keep_budget(MODEL.shape, keep) for keep in (0.8, 0.6))
RNG = np.random.default_rng(0)


def plans(budget, count):
    wanted = RNG.uniform(0.2, 1, (count, 8)) * dense_row(MODEL.shape)
    return as_plans(fit(wanted, Ranges.above(MODEL.shape), budget))


def pairs(budget, count):
    trajectories = RNG.uniform(1, 2, (count, 3))
    return [
        Pair(
            plan,
            trajectory[-1],
            300,
            trajectory=tuple(zip((100, 200, 300), trajectory, strict=True)),
        )
        for plan, trajectory in zip(plans(budget, count), trajectories.tolist(), strict=True)
    ]


def test_a_plan_races_with_the_best_of_its_own_size():
    large, small = pairs(LARGE, 40), pairs(SMALL, 30)
    asked = [*plans(LARGE, 2), *plans(SMALL, 1), MODEL.shape.dense]
    found = stopping_limits(asked, [*small, *large], SPACE, [LARGE, SMALL])
    best = sorted(large, key=lambda one: one.value)[:24]
    for chunk in (0, 1):
        loss_increases = [one.trajectory[chunk][1] for one in best]
        error = np.std(
            [
                loss_increase - one.value
                for loss_increase, one in zip(loss_increases, best, strict=True)
            ],
            ddof=1,
        )
        assert np.isclose(found[0][chunk], sorted(loss_increases)[11] + error)
    assert found[0] == found[1] != found[2] == stopping_limits(asked[2:3], small, SPACE, [SMALL])[0]
    assert found[3] == ()  # of neither size


def test_there_is_no_race_before_there_are_enough_to_race_with():
    (asked,) = plans(LARGE, 1)
    assert stopping_limits([asked], pairs(LARGE, 23), SPACE, [LARGE]) == [()]
    assert stopping_limits([], pairs(LARGE, 40), SPACE, [LARGE]) == []
