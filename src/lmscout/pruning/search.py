"""Search for the plans of the lowest predicted loss increase under a budget.

How plans breed in a search, and pymoo's problem and operators for rows of unit counts.

A genetic algorithm over plans, a generation at a time as one array.

Step by step what pymoo's `GA` does with the operators of `breeding`, draw by draw: it keeps an
object for every plan, and that took half of a search.

Search for plans that the predictor expects to lose least under a budget.

A genetic algorithm whose individuals are plans that meet the budget: a mutation moves units
from one block to another, and what a step leaves over or lacks is made up by `fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.optimize import minimize

from lmscout.pruning.budgets import Budget
from lmscout.pruning.plan import (
    Floats,
    Plan,
    Rows,
    Shape,
    as_plans,
    as_rows,
    dense_row,
    unit_parameters,
    unseen,
)
from lmscout.pruning.ranges import Ranges, fit, meets

Predict = Callable[[Rows], Floats]

CROSSED = 0.8  # share of matings in which parents are mixed
_STEP = 0.1  # share of a column's units that a move takes, standard deviation


class PlanProblem(Problem):  # type: ignore[misc]
    """Predicted rise, and costs if there are any; remembers all that it was asked."""

    def __init__(self, predict: Predict, shape: Shape, costs: Sequence[Budget]) -> None:
        units = dense_row(shape)
        super().__init__(n_var=len(units), n_obj=1 + len(costs), xl=0, xu=units, vtype=int)
        self._predict, self._costs = predict, costs
        self._rows: list[Rows] = []
        self._loss_increases: list[Floats] = []

    def _evaluate(self, x: Rows, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        rows = x.astype(np.int64)
        loss_increases = self._predict(rows)
        self._rows.append(rows)
        self._loss_increases.append(loss_increases)
        out["F"] = np.stack(
            [loss_increases, *(budget.cost(rows) for budget in self._costs)], axis=1
        )

    def seen(self) -> tuple[Rows, Floats]:
        """Distinct plans and their predicted rises."""
        rows, first = np.unique(np.concatenate(self._rows), axis=0, return_index=True)
        return rows, np.concatenate(self._loss_increases)[first]


class Mixing(Crossover):  # type: ignore[misc]
    """`mixed` as a crossover."""

    def __init__(self) -> None:
        super().__init__(2, 2, prob=CROSSED)

    def _do(
        self,
        problem: Problem,
        rows: Rows,
        *args: Any,
        random_state: np.random.Generator,
        **kwargs: Any,
    ) -> Rows:
        return mixed(rows, random_state)


class Moving(Mutation):  # type: ignore[misc]
    """`moved` as a mutation of every child, and a change of size where that is free."""

    def __init__(self, shape: Shape, drift: float = 0.0) -> None:
        super().__init__()
        self._shape, self._drift = shape, drift

    def _do(
        self,
        problem: Problem,
        rows: Rows,
        *args: Any,
        random_state: np.random.Generator,
        **kwargs: Any,
    ) -> Rows:
        rows = moved(rows.astype(np.int64), self._shape, random_state)
        if self._drift:
            scale = 1 + self._drift * random_state.standard_normal((len(rows), 1))
            depth = self._shape.depth
            rows[:, depth:] = np.rint(rows[:, depth:] * scale)
        return rows


class Spanning(Repair):  # type: ignore[misc]
    """Fits plans into ranges, and between the smallest budget and the largest."""

    def __init__(self, ranges: Ranges, budgets: Sequence[Budget]) -> None:
        super().__init__()
        self._ranges = ranges
        self._least = min(budgets, key=lambda budget: budget.limit)
        self._most = max(budgets, key=lambda budget: budget.limit)

    def _do(self, problem: Problem, rows: Rows, **kwargs: Any) -> Rows:
        low, high = as_rows([self._ranges.low, self._ranges.high])
        rows = np.clip(rows.astype(np.int64), low, high)
        costs = self._least.cost(rows)
        for budget, outside in (
            (self._most, costs > self._most.limit),
            (self._least, costs < self._least.limit),
        ):
            if outside.any():
                rows[outside] = fit(rows[outside], self._ranges, budget)
        return rows


def mixed(parents: Rows, rng: np.random.Generator) -> Rows:
    """Two children of two parents each, [2, matings, 2L], that take whole blocks from either.

    Half of them take the first blocks of one and the last of the other, so that what fits
    together stays together; the others take each block from whichever.
    """
    matings, depth = parents.shape[1], parents.shape[2] // 2
    cut = rng.integers(1, max(depth, 2), matings)[:, None]
    begun = np.arange(depth) < cut
    either = rng.random((matings, depth)) < 0.5
    which = rng.random((matings, 1)) < 0.5
    taken = np.tile(np.where(which, begun, either), 2)
    first, second = parents
    return np.stack([np.where(taken, first, second), np.where(taken, second, first)])


def moved(rows: Rows, shape: Shape, rng: np.random.Generator, most: int = 3) -> Rows:
    """Plans with parameters moved from a block and kind to another, one to `most` times.

    A move takes a normally distributed share, a tenth typically, of one column's units, one
    at least, and gives another column as many units as those parameters make.  The results
    may lie outside of ranges, and off the budget by a unit: `fit` is to follow.
    """
    units, each = dense_row(shape), unit_parameters(shape)
    result = rows.copy()
    every = np.arange(len(rows))
    moves = rng.integers(1, most + 1, len(rows))
    for step in range(most):
        source = rng.integers(0, len(units), len(rows))
        target = rng.integers(0, len(units), len(rows))
        taken = np.maximum(1, np.abs(rng.normal(0, _STEP, len(rows))) * units[source]).astype(int)
        taken = np.minimum(taken, result[every, source]) * (step < moves)
        given = np.floor(taken * each[source] / each[target] + rng.random(len(rows)))
        result[every, source] -= taken
        result[every, target] += given.astype(np.int64)
    return np.asarray(np.clip(result, 0, units))


_PATIENCE = 25  # generations that may gain
_GAIN = 1e-3  # no more than this share of the best, until a search ends
_ATTEMPTS = 100  # at filling a generation with plans that it does not have


def evolved(
    predict: Predict,
    first: Rows,
    shape: Shape,
    ranges: Ranges,
    budget: Budget,
    *,
    population: int,
    generations: int,
    seed: int,
) -> tuple[Rows, Floats]:
    """All plans that a search comes by.

    Children of two parents, each the better of two drawn, are mixed, moved and fitted; the best
    of parents and children live on.  It ends when some generations in a row hardly gain.

    Args:
        predict: rises of plans, [n, 2L] to [n].
        first: [n, 2L] plans to begin with, fitted.
        shape: of the dense model.
        ranges: within which plans lie.
        budget: that they meet.
        population: plans a generation.
        generations: how many at most.
        seed: of the draws.

    Returns:
        Distinct plans [n, 2L] and their predicted rises.
    """
    rng = np.random.default_rng(seed)
    rows = fit(first, ranges, budget)
    rows = rows[unseen(rows, set())]
    loss_increases = predict(rows)
    asked, answers = [rows], [loss_increases]
    best, since = np.inf, 0
    for generation in range(1, generations + 1):
        lowest = float(loss_increases.min())
        if not lowest > best - _GAIN * abs(lowest):
            best, since = lowest, generation
        if generation == generations or generation - since >= _PATIENCE:
            break
        known = {row.tobytes() for row in rows}
        children = rows[:0]
        for _ in range(_ATTEMPTS):
            wanted = population - len(children)
            if not wanted:
                break
            parents = _parents(loss_increases, -(-wanted // 2), rng)
            young = _moved(_children(rows[parents], rng), shape, rng)
            fitted = fit(young, ranges, budget)
            new = unseen(fitted, known)[:wanted]
            children = np.concatenate([children, fitted[new]])
        if not len(children):
            break
        asked.append(children)
        answers.append(predict(children))
        rows, loss_increases = (
            np.concatenate([rows, children]),
            np.concatenate([loss_increases, answers[-1]]),
        )
        living = np.argsort(loss_increases, kind="stable")[:population]
        rows, loss_increases = rows[living], loss_increases[living]
    every = np.concatenate(asked)
    distinct = unseen(every, set())
    return every[distinct], np.concatenate(answers)[distinct]


def _parents(loss_increases: Floats, matings: int, rng: np.random.Generator) -> Rows:
    """Two for each mating, each the better of two that are drawn, [matings, 2]."""
    count = 4 * matings
    draws = np.concatenate(
        [rng.permutation(len(loss_increases)) for _ in range(-(-count // len(loss_increases)))]
    )
    pairs = draws[:count].reshape(-1, 2)
    one, other = loss_increases[pairs].T
    chosen = np.where(one < other, pairs[:, 0], pairs[:, 1])
    for place in np.flatnonzero(one == other):
        chosen[place] = rng.choice(pairs[place])
    return chosen.reshape(matings, 2)


def _children(parents: Rows, rng: np.random.Generator) -> Rows:
    """Mixed parents [matings, 2, 2L], or the parents again, [2 * matings, 2L]."""
    pairs = parents.swapaxes(0, 1)
    crossed = rng.random(len(parents)) < CROSSED
    children = pairs.copy()
    if crossed.any():
        children[:, crossed] = mixed(pairs, rng)[:, crossed]
    return children.reshape(-1, parents.shape[2])


def _moved(rows: Rows, shape: Shape, rng: np.random.Generator) -> Rows:
    result = moved(rows, shape, rng)
    rng.random(len(rows))  # whether each is moved, to pymoo; here all are
    return result


POPULATION = 150
GENERATIONS = 120
DISTANCE = 0.01  # mean change of the kept share over blocks and kinds between two results


@dataclass(frozen=True)
class Candidate:
    """A plan that a search found.

    Attributes:
        plan: the plan.
        loss_increase: predicted, in nats a token.
        cost: by the search's budget.
    """

    plan: Plan
    loss_increase: float
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
    rows, loss_increases = evolved(
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
    order = _best_first(rows, loss_increases)
    order = order[meets(rows[order], budget)]
    chosen = apart(rows[order], dense_row(shape), count, distance)
    return [
        Candidate(plan, float(loss_increases[index]), float(costs[index]))
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
    rows, loss_increases = problem.seen()
    costs = budgets[0].cost(rows)
    # Sorting by cost first leaves a front of those whose rise is the lowest so far.
    order = np.lexsort((*rows.T, loss_increases, costs))
    best = np.minimum.accumulate(np.append(np.inf, loss_increases[order][:-1]))
    front = order[loss_increases[order] < best]
    return [
        Candidate(plan, float(loss_increases[index]), float(costs[index]))
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


def _best_first(rows: Rows, loss_increases: Floats) -> Rows:
    """Places of rows by their rises, and of equal rises by the rows, from their last column."""
    order = np.argsort(loss_increases, kind="stable")
    equal = np.append(False, np.diff(loss_increases[order]) == 0)
    tied = np.flatnonzero(equal | np.append(equal[1:], False))
    among = order[tied]
    order[tied] = among[np.lexsort((*rows[among].T, loss_increases[among]))]
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
