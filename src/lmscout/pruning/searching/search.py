"""Search for plans that the predictor expects to lose least under a budget.

A genetic algorithm whose individuals are plans that meet the budget: a mutation moves units
from one block to another, and what a step leaves over or lacks is made up by `fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.optimize import minimize

from lmscout.pruning.searching.breeding import (
    Mixing,
    Moving,
    PlanProblem,
    Predict,
    Spanning,
    moved,
)
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.evolution import evolved
from lmscout.pruning.searching.ranges import Ranges, fit, meets
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.plan_arrays import Floats, Rows, as_plans, as_rows, dense_row

POPULATION = 150
GENERATIONS = 120
DISTANCE = 0.01  # mean change of the kept share over blocks and kinds between two results


@dataclass(frozen=True)
class Candidate:
    """A plan that a search found.

    Attributes:
        plan: the plan.
        rise: predicted, in nats a token.
        cost: by the search's budget.
    """

    plan: Plan
    rise: float
    cost: float


def search(
    predict: Predict,
    shape: Shape,
    ranges: Ranges,
    budget: Budget,
    *,
    seed: int,
    count: int = 10,
    begin: Sequence[Plan] = (),
    population: int = POPULATION,
    generations: int = GENERATIONS,
    distance: float = DISTANCE,
) -> list[Candidate]:
    """The best distinct plans under a budget, by prediction.

    Args:
        predict: rises of plans, [n, 2L] to [n], such as `Predictor.cautious`.
        shape: of the dense model.
        ranges: within which plans lie.
        budget: that they meet.
        seed: of the search.
        count: of candidates wanted; fewer come back where no more differ enough.
        begin: plans to begin from, such as the best measured; fitted to ranges and budget.
        population: plans a generation.
        generations: how many at most; it ends earlier when they hardly gain any more.
        distance: least mean difference of kept shares between two candidates.

    Returns:
        Best first.

    Raises:
        LmscoutError: no plan within the ranges meets the budget.
    """
    ranges.require(budget)
    rng = np.random.default_rng([seed, 1])
    first = _first_rows(shape, ranges, budget, begin, population, rng)
    rows, rises = evolved(
        predict,
        first,
        shape,
        ranges,
        budget,
        population=population,
        generations=generations,
        seed=_drawing_seed(seed),
    )
    costs = budget.cost(rows)
    order = _best_first(rows, rises)
    order = order[meets(rows[order], budget)]
    chosen = apart(rows[order], dense_row(shape), count, distance)
    return [
        Candidate(plan, float(rises[index]), float(costs[index]))
        for index, plan in zip(order[chosen], as_plans(rows[order[chosen]]), strict=True)
    ]


def pareto(
    predict: Predict,
    shape: Shape,
    ranges: Ranges,
    budgets: Sequence[Budget],
    *,
    seed: int,
    begin: Sequence[Plan] = (),
    population: int = 2 * POPULATION,
    generations: int = GENERATIONS,
) -> list[Candidate]:
    """Plans that no other beats in both predicted rise and cost, by NSGA-II.

    Args:
        predict: rises of plans, [n, 2L] to [n], such as `Predictor.cautious`.
        shape: of the dense model.
        ranges: within which plans lie.
        budgets: of one kind with different limits, which the front is to span; the cost is
            the first one's.
        seed: of the search.
        begin: plans to begin from.
        population: plans a generation.
        generations: how many.

    Returns:
        From the smallest cost to the largest, rises falling.

    Raises:
        LmscoutError: no plan within the ranges meets one of the budgets.
    """
    for budget in budgets:
        ranges.require(budget)
    rng = np.random.default_rng([seed, 2])
    each = max(2, population // len(budgets))
    first = np.concatenate(
        [_first_rows(shape, ranges, budget, begin, each, rng) for budget in budgets]
    )
    problem = PlanProblem(predict, shape, (budgets[0],))
    minimize(
        problem,
        NSGA2(
            pop_size=len(first),
            sampling=first,
            crossover=Mixing(),
            mutation=Moving(shape, drift=0.02),
            repair=Spanning(ranges, budgets),
        ),
        ("n_gen", generations),
        seed=_drawing_seed(seed),
    )
    rows, rises = problem.seen()
    costs = budgets[0].cost(rows)
    # Sorting by cost first leaves a front of those whose rise is the lowest so far.
    order = np.lexsort((*rows.T, rises, costs))
    best = np.minimum.accumulate(np.append(np.inf, rises[order][:-1]))
    front = order[rises[order] < best]
    return [
        Candidate(plan, float(rises[index]), float(costs[index]))
        for index, plan in zip(front, as_plans(rows[front]), strict=True)
    ]


def drawn(ranges: Ranges, count: int, rng: np.random.Generator) -> Floats:
    """Uniform draws within ranges, [count, 2L], not yet fitted to a budget."""
    low, high = as_rows([ranges.low, ranges.high])
    return np.asarray(rng.uniform(low, high, (count, len(low))))


def apart(rows: Rows, units: Rows, count: int, distance: float) -> list[int]:
    """The first rows that differ enough from each one taken before.

    Args:
        rows: [n, 2L], best first.
        units: [2L] of the dense model.
        count: of rows wanted.
        distance: least mean difference of kept shares.

    Returns:
        Their places, ascending.
    """
    shares = rows / units
    taken: list[int] = []
    for place, share in enumerate(shares):
        if len(taken) == count:
            break
        if not taken or np.abs(shares[taken] - share).mean(axis=1).min() >= distance:
            taken.append(place)
    return taken


def _best_first(rows: Rows, rises: Floats) -> Rows:
    """Places of rows by their rises, and of equal rises by the rows, from their last column."""
    order = np.argsort(rises, kind="stable")
    equal = np.append(False, np.diff(rises[order]) == 0)
    tied = np.flatnonzero(equal | np.append(equal[1:], False))
    among = order[tied]
    order[tied] = among[np.lexsort((*rows[among].T, rises[among]))]
    return order


def _first_rows(
    shape: Shape,
    ranges: Ranges,
    budget: Budget,
    begin: Sequence[Plan],
    count: int,
    rng: np.random.Generator,
) -> Rows:
    """Plans to begin from, their mutations, and uniform draws; fitted."""
    wanted = drawn(ranges, count, rng)
    known = as_rows(begin)[: count // 2] if begin else np.zeros((0, wanted.shape[1]), np.int64)
    if len(known):
        wanted[: len(known)] = known
        mutants = known[rng.integers(0, len(known), count // 4)]
        wanted[count - len(mutants) :] = moved(mutants, shape, rng)
    return fit(wanted, ranges, budget)


def _drawing_seed(seed: int) -> int:
    return int(np.random.default_rng([seed, 3]).integers(2**31))
