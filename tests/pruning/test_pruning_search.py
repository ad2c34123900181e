"""Searching where the best is known."""

import numpy as np
import pytest
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.repair import Repair
from pymoo.core.termination import Termination
from pymoo.optimize import minimize
from synthetic_quality import Synthetic

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import keep_budget, latency_budget
from lmscout.pruning.plan import as_rows, dense_row, unit_parameters
from lmscout.pruning.ranges import Ranges, fit, meets, uniform
from lmscout.pruning.search import (
    Mixing,
    Moving,
    PlanProblem,
    apart,
    evolved,
    moved,
    pareto,
    search,
)

MODEL = Synthetic(depth=5, noise=0)
SHAPE = MODEL.shape
RANGES = Ranges.above(SHAPE)
SHORT = {"population": 60, "generations": 40}


def draws(budget, count=20_000):
    wish = np.random.default_rng(9).uniform(0.1, 1, (count, 10)) * dense_row(SHAPE)
    return fit(wish, RANGES, budget)


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_it_beats_twenty_thousand_draws(keep):
    budget = keep_budget(SHAPE, keep)
    found = search(MODEL.loss_increase, SHAPE, RANGES, budget, seed=0, **SHORT)
    rows = as_rows([one.plan for one in found])
    assert MODEL.loss_increase(rows)[0] < MODEL.loss_increase(draws(budget)).min()
    assert meets(rows, budget).all()
    assert RANGES.holds(rows).all()
    assert [one.loss_increase for one in found] == pytest.approx(list(MODEL.loss_increase(rows)))
    assert [one.cost for one in found] == pytest.approx(list(budget.cost(rows)))
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
    found = search(quality, SHAPE, RANGES, keep_budget(SHAPE, 0.85), seed=1, generations=80)[0]
    best = (weight * removed**2).sum()
    assert removed.max() < 0.9  # within the ranges
    assert found.loss_increase == pytest.approx(best, rel=0.05)  # groups are tenths
    assert 1 - as_rows([found.plan])[0, 5:] / units[5:] == pytest.approx(removed[5:], abs=0.05)


def test_results_differ_as_much_as_asked_for():
    budget = keep_budget(SHAPE, 0.8)
    found = search(
        MODEL.loss_increase, SHAPE, RANGES, budget, seed=0, count=8, distance=0.03, **SHORT
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
    budget = keep_budget(SHAPE, 0.7)
    begin = [uniform(SHAPE, RANGES, budget)]
    first = search(MODEL.loss_increase, SHAPE, RANGES, budget, seed=3, begin=begin, **SHORT)
    assert search(MODEL.loss_increase, SHAPE, RANGES, budget, seed=3, begin=begin, **SHORT) == first
    assert search(MODEL.loss_increase, SHAPE, RANGES, budget, seed=4, begin=begin, **SHORT) != first


def test_what_it_begins_with_is_never_beaten_by_what_it_ends_with():
    budget = keep_budget(SHAPE, 0.7)
    good = search(MODEL.loss_increase, SHAPE, RANGES, budget, seed=3, **SHORT)[0]
    after = search(
        MODEL.loss_increase,
        SHAPE,
        RANGES,
        budget,
        seed=9,
        begin=[good.plan],
        population=10,
        generations=2,
    )
    assert after[0].loss_increase <= good.loss_increase


def test_latency_is_a_budget_too():
    attention, mlp = np.arange(11) * 3e-4, np.ceil(np.arange(865) / 32) * 32e-6
    budget = latency_budget(SHAPE, 0.012, attention=[attention], mlp=[mlp], fixed=1e-3)
    found = search(MODEL.loss_increase, SHAPE, RANGES, budget, seed=0, **SHORT)
    for one in found:
        seconds = 1e-3 + sum(attention[kept] for kept in one.plan.attention)
        seconds += sum(mlp[kept] for kept in one.plan.mlp)
        assert one.cost == pytest.approx(seconds)
        assert seconds <= 0.012
    assert found[0].loss_increase < MODEL.loss_increase(draws(budget, 2000)).min()


def test_a_front_is_as_good_as_single_searches():
    budgets = [keep_budget(SHAPE, keep) for keep in (0.5, 0.6, 0.7, 0.8, 0.9)]
    front = pareto(
        MODEL.loss_increase, SHAPE, RANGES, budgets, seed=0, population=100, generations=60
    )
    costs, loss_increases = (
        np.array([getattr(one, name) for one in front]) for name in ("cost", "loss_increase")
    )
    assert (np.diff(costs) > 0).all()
    assert (np.diff(loss_increases) < 0).all()
    assert list(MODEL.loss_increase(as_rows([one.plan for one in front]))) == pytest.approx(
        list(loss_increases)
    )
    assert costs.min() > 0.49
    assert costs.max() <= 0.9001
    for budget in budgets:
        best = loss_increases[costs <= budget.limit + 1e-9].min()
        assert best < MODEL.loss_increase(draws(budget, 5000)).min()
        alone = search(MODEL.loss_increase, SHAPE, RANGES, budget, seed=0, **SHORT)[0].loss_increase
        assert best < 1.15 * alone + 0.01
    again = pareto(
        MODEL.loss_increase, SHAPE, RANGES, budgets, seed=0, population=20, generations=5
    )
    assert again == pareto(
        MODEL.loss_increase, SHAPE, RANGES, budgets, seed=0, population=20, generations=5
    )


def test_moves_keep_the_size_within_a_unit_each():
    rng = np.random.default_rng(0)
    rows = np.rint(rng.uniform(0.45, 0.55, (200, 10)) * dense_row(SHAPE)).astype(int)
    after = moved(rows, SHAPE, rng, most=1)
    change = (after - rows) @ unit_parameters(SHAPE)
    # Four tenths and more of a block's units seldom move at once, so nothing is clipped.
    assert (np.abs(change) <= unit_parameters(SHAPE).max()).mean() > 0.99
    assert (after != rows).any(axis=1).mean() > 0.5


def test_tiny_models_are_searched_whole():
    tiny = Synthetic(depth=1, groups=2, channels=3, noise=0)
    ranges, budget = Ranges.above(tiny.shape, 0), keep_budget(tiny.shape, 0.52)
    found = search(
        tiny.loss_increase, tiny.shape, ranges, budget, seed=0, population=10, generations=5
    )
    assert [one.plan.attention for one in found] == [(1,)]


def test_a_budget_that_no_plan_meets_is_refused():
    with pytest.raises(LmscoutError, match=r"nearest that can be met is 0\.1"):
        search(MODEL.loss_increase, SHAPE, RANGES, keep_budget(SHAPE, 0.05), seed=0)
    with pytest.raises(LmscoutError, match="nearest that can be met"):
        pareto(
            MODEL.loss_increase, SHAPE, RANGES, [keep_budget(SHAPE, k) for k in (0.05, 0.5)], seed=0
        )


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
        (MODEL, 31, 20, 1),  # plans that are equally good are drawn lots for
        (Synthetic(depth=2, groups=3, channels=7, noise=0), 40, 12, 12),  # hardly as many plans
        (Synthetic(depth=1, groups=2, channels=3, noise=0), 10, 5, 12),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_generations_are_pymoos_draw_by_draw(model, population, generations, digits, seed):
    ranges, budget = Ranges.above(model.shape, 0.0), keep_budget(model.shape, 0.7)
    rng = np.random.default_rng(seed)
    wish = rng.uniform(0, 1, (population, 2 * model.depth)) * dense_row(model.shape)
    first = fit(wish, ranges, budget)

    def predict(rows):
        return np.round(model.loss_increase(rows), digits)

    problem = PlanProblem(predict, model.shape, ())
    algorithm = GA(
        pop_size=population,
        sampling=first,
        crossover=Mixing(),
        mutation=Moving(model.shape),
        repair=Fitting(ranges, budget),
    )
    minimize(problem, algorithm, Stalling(generations), seed=seed)
    rows, loss_increases = evolved(
        predict,
        first,
        model.shape,
        ranges,
        budget,
        population=population,
        generations=generations,
        seed=seed,
    )
    expected = {
        tuple(row): loss_increase for row, loss_increase in zip(*problem.seen(), strict=True)
    }
    assert dict(zip(map(tuple, rows), loss_increases, strict=True)) == expected
    assert len(rows) == len(expected)


def test_plans_that_are_equally_good_come_in_an_order_of_their_own():
    budget = keep_budget(SHAPE, 0.7)

    def coarse(rows):
        return np.round(MODEL.loss_increase(rows), 1)

    found = search(coarse, SHAPE, RANGES, budget, seed=0, count=200, distance=0.0, **SHORT)
    keys = [(one.loss_increase, *(one.plan.attention + one.plan.mlp)[::-1]) for one in found]
    assert keys == sorted(keys)
    assert len({one.loss_increase for one in found}) < 50
