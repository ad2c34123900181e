"""How plans breed in a search, and pymoo's problem and operators for rows of unit counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair

from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.ranges import Ranges, fit
from lmscout.pruning.subnetworks.plan import Shape
from lmscout.pruning.subnetworks.plan_arrays import (
    Floats,
    Rows,
    as_rows,
    dense_row,
    unit_parameters,
)

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
        self._rises: list[Floats] = []

    def _evaluate(self, x: Rows, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        rows = x.astype(np.int64)
        rises = self._predict(rows)
        self._rows.append(rows)
        self._rises.append(rises)
        out["F"] = np.stack([rises, *(budget.cost(rows) for budget in self._costs)], axis=1)

    def seen(self) -> tuple[Rows, Floats]:
        """Distinct plans and their predicted rises."""
        rows, first = np.unique(np.concatenate(self._rows), axis=0, return_index=True)
        return rows, np.concatenate(self._rises)[first]


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
