"""Search where the best is known."""

import numpy as np
import pytest
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.termination import Termination
from pymoo.optimize import minimize
from synthetic_quality import Synthetic

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import keep_budget, latency_budget
from lmscout.pruning.plan import as_rows, dense_row, unit_parameters
from lmscout.pruning.ranges import Ranges, Target, fit, uniform
from lmscout.pruning.search import apart, crossover, evolve, mutate, search
from lmscout.pruning.space import PlanSpace

MODEL = Synthetic(depth=5, noise=0)
SHAPE = MODEL.shape
RANGES = Ranges.above(SHAPE)
SPACE = PlanSpace(SHAPE)
SHORT = {"population": 60, "generations": 40}


def draws(budget, count=20_000):
    wish = np.random.default_rng(9).uniform(0.1, 1, (count, 10)) * dense_row(SHAPE)
    return fit(wish, RANGES, budget)


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_it_beats_twenty_thousand_draws(keep):
    budget = keep_budget(SHAPE, keep)
    found = search(SPACE, MODEL.loss_increase, Target(budget, RANGES), seed=0, **SHORT)
    rows = as_rows([one.plan for one in found])
    assert MODEL.loss_increase(rows)[0] < MODEL.loss_increase(draws(budget)).min()
    assert budget.meets(rows).all()
    assert RANGES.holds(rows).all()
    assert [one.loss_increase for one in found] == pytest.approx(list(MODEL.loss_increase(rows)))
    assert [one.loss_increase for one in found] == sorted(one.loss_increase for one in found)


def test_it_comes_to_the_known_optimum():
    # Squares of what is removed, times weights: at the best, Lagrange says, what a block
    # loses is in proportion to its parameters over its weight.
    weight = np.array([1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 8.0, 2.0, 1.0, 4.0])
    units = dense_row(SHAPE)

    def quality(rows):
        return (weight * (1 - rows / units) ** 2).sum(axis=1)

    size = unit_parameters(SHAPE) * units / SHAPE.parameters
    removed = size / weight * 0.15 / (size**2 / weight).sum()
    found = search(
        SPACE, quality, Target(keep_budget(SHAPE, 0.85), RANGES), seed=1, generations=80
    )[0]
    best = (weight * removed**2).sum()
    assert removed.max() < 0.9  # within the ranges
    assert found.loss_increase == pytest.approx(best, rel=0.05)  # groups are tenths
    assert 1 - as_rows([found.plan])[0, 5:] / units[5:] == pytest.approx(removed[5:], abs=0.05)


def test_results_differ_by_the_distance():
    budget = keep_budget(SHAPE, 0.8)
    found = search(
        SPACE, MODEL.loss_increase, Target(budget, RANGES), seed=0, count=8, distance=0.03, **SHORT
    )
    shares = as_rows([one.plan for one in found]) / dense_row(SHAPE)
    apart_by = np.abs(shares[:, None] - shares).mean(axis=2)[np.triu_indices(len(found), 1)]
    assert len(found) == 8
    assert apart_by.min() >= 0.03


def test_apart_keeps_the_first_of_those_that_are_close():
    rows = np.array([[0, 0], [1, 0], [5, 5], [5, 6], [9, 0]])
    assert apart(rows, np.array([10, 10]), 10, 0.1) == [0, 2, 4]
    assert apart(rows, np.array([10, 10]), 2, 0.1) == [0, 2]


def test_the_same_seed_finds_the_same():
    target = Target(keep_budget(SHAPE, 0.7), RANGES)
    asked = {"initial": [uniform(SHAPE, RANGES, target.budget)]} | SHORT
    first = search(SPACE, MODEL.loss_increase, target, seed=3, **asked)
    assert search(SPACE, MODEL.loss_increase, target, seed=3, **asked) == first
    assert search(SPACE, MODEL.loss_increase, target, seed=4, **asked) != first


def test_the_result_is_no_worse_than_the_initial_plans():
    budget = keep_budget(SHAPE, 0.7)
    good = search(SPACE, MODEL.loss_increase, Target(budget, RANGES), seed=3, **SHORT)[0]
    after = search(
        SPACE,
        MODEL.loss_increase,
        Target(budget, RANGES),
        seed=9,
        initial=[good.plan],
        population=10,
        generations=2,
    )
    assert after[0].loss_increase <= good.loss_increase


def test_latency_is_a_budget_too():
    attention, mlp = np.arange(11) * 3e-4, np.ceil(np.arange(865) / 32) * 32e-6
    budget = latency_budget(SHAPE, 0.012, attention=[attention], mlp=[mlp], fixed=1e-3)
    found = search(SPACE, MODEL.loss_increase, Target(budget, RANGES), seed=0, **SHORT)
    for one in found:
        seconds = 1e-3 + sum(attention[kept] for kept in one.plan.attention)
        seconds += sum(mlp[kept] for kept in one.plan.mlp)
        assert budget.cost(as_rows([one.plan]))[0] == pytest.approx(seconds)
        assert seconds <= 0.012
    assert found[0].loss_increase < MODEL.loss_increase(draws(budget, 2000)).min()


def test_moves_keep_the_size_within_a_unit_each():
    rng = np.random.default_rng(0)
    rows = np.rint(rng.uniform(0.45, 0.55, (200, 10)) * dense_row(SHAPE)).astype(int)
    after = mutate(rows, SHAPE, rng, most=1)
    change = (after - rows) @ unit_parameters(SHAPE)
    # Four tenths and more of a block's units seldom move at once, so nothing is clipped.
    assert (np.abs(change) <= unit_parameters(SHAPE).max()).mean() > 0.99
    assert (after != rows).any(axis=1).mean() > 0.5


def test_tiny_models_are_searched_whole():
    tiny = Synthetic(depth=1, groups=2, channels=3, noise=0)
    target = Target(keep_budget(tiny.shape, 0.52), Ranges.above(tiny.shape, 0))
    found = search(
        PlanSpace(tiny.shape), tiny.loss_increase, target, seed=0, population=10, generations=5
    )
    assert [one.plan.attention for one in found] == [(1,)]


def test_a_budget_that_no_plan_meets_is_refused():
    with pytest.raises(LmscoutError, match=r"nearest that can be met is 0\.1"):
        search(SPACE, MODEL.loss_increase, Target(keep_budget(SHAPE, 0.05), RANGES), seed=0)


class Recorded(Problem):
    """Predicts plans, and remembers what it predicted."""

    def __init__(self, predict, units):
        super().__init__(n_var=len(units), n_obj=1, xl=0, xu=units, vtype=int)
        self._predict, self.seen = predict, {}

    def _evaluate(self, x, out, *args, **kwargs):
        rows = x.astype(np.int64)
        out["F"] = self._predict(rows)[:, None]
        self.seen |= zip(map(tuple, rows), out["F"][:, 0], strict=True)


class Mating(Crossover):
    """The crossover of the search."""

    def __init__(self):
        super().__init__(2, 2, prob=0.8)

    def _do(self, problem, rows, *args, random_state, **kwargs):
        return crossover(rows, random_state)


class Mutating(Mutation):
    """The mutation of the search, of every child."""

    def __init__(self, shape):
        super().__init__()
        self._shape = shape

    def _do(self, problem, rows, *args, random_state, **kwargs):
        return mutate(rows.astype(np.int64), self._shape, random_state)


class Fitting(Repair):
    """Fits plans into ranges and a budget."""

    def __init__(self, ranges, budget):
        super().__init__()
        self._ranges, self._budget = ranges, budget

    def _do(self, problem, rows, **kwargs):
        return fit(rows, self._ranges, self._budget)


class Stalling(Termination):
    """Ends after so many generations, or when 25 in a row have gained no thousandth."""

    def __init__(self, generations):
        super().__init__()
        self._generations = generations
        self._best, self._since = np.inf, 0

    def _update(self, algorithm):
        best, now = float(algorithm.opt.get("F").min()), int(algorithm.n_gen)
        if not best > self._best - 1e-3 * abs(best):
            self._best, self._since = best, now
        return max(now / self._generations, (now - self._since) / 25)


@pytest.mark.parametrize(
    ("model", "population", "generations", "digits"),
    [
        (MODEL, 30, 60, 12),
        (MODEL, 31, 20, 1),  # ties are drawn
        (Synthetic(depth=2, groups=3, channels=7, noise=0), 40, 12, 12),  # hardly as many plans
        (Synthetic(depth=1, groups=2, channels=3, noise=0), 10, 5, 12),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_generations_are_pymoos_draw_by_draw(model, population, generations, digits, seed):
    ranges, budget = Ranges.above(model.shape, 0.0), keep_budget(model.shape, 0.7)
    rng = np.random.default_rng(seed)
    wish = rng.uniform(0, 1, (population, 2 * model.depth)) * dense_row(model.shape)
    first = fit(wish, ranges, budget)

    def predict(rows):
        return np.round(model.loss_increase(rows), digits)

    problem = Recorded(predict, dense_row(model.shape))
    algorithm = GA(
        pop_size=population,
        sampling=first,
        crossover=Mating(),
        mutation=Mutating(model.shape),
        repair=Fitting(ranges, budget),
    )
    minimize(problem, algorithm, Stalling(generations), seed=seed)
    rows, loss_increases = evolve(
        predict,
        first,
        model.shape,
        Target(budget, ranges),
        population=population,
        generations=generations,
        seed=seed,
    )
    assert dict(zip(map(tuple, rows), loss_increases, strict=True)) == problem.seen
    assert len(rows) == len(problem.seen)


def test_equally_good_plans_are_ordered_by_their_units():
    budget = keep_budget(SHAPE, 0.7)

    def coarse(rows):
        return np.round(MODEL.loss_increase(rows), 1)

    found = search(SPACE, coarse, Target(budget, RANGES), seed=0, count=200, distance=0.0, **SHORT)
    keys = [(one.loss_increase, *(one.plan.attention + one.plan.mlp)[::-1]) for one in found]
    assert keys == sorted(keys)
    assert len({one.loss_increase for one in found}) < 50
