"""Search for the plans of the lowest predicted loss increase under a budget.

Where blocks vary, a genetic algorithm: its individuals meet the budget, a mutation moves units
from one block to another, and `ranges.fit` makes up for what that leaves over or lacks.  Uniform
plans are listed and predicted; if there are too many, some are drawn and improved step by step.
Where the estimate of a plan is a sum over its blocks, `allocate` needs no search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.isotonic import isotonic_regression

from lmscout.pruning.features import ImportanceMass
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
from lmscout.pruning.ranges import Ranges, Target, fit
from lmscout.pruning.space import PlanSpace, UniformPlans

Predict = Callable[[Rows], Floats]

POPULATION = 150
GENERATIONS = 120
DISTANCE = 0.01  # mean change of the kept share over blocks and sublayers between two results

_CROSSED = 0.8  # share of matings with crossover
_STEP = 0.1  # standard deviation of a mutation, as a share of a column's units
_PATIENCE = 25  # generations without a gain, until a search ends
_GAIN = 1e-3  # of the best: less is no gain
_ATTEMPTS = 100  # at filling a generation with new plans
_LISTED = 20_000  # uniform plans that are all predicted; of more, so many are drawn
_CLIMBS = 20  # most steps of the local search
_FREE = 1e-300  # cost of a unit that a measured table gives none
_CLIMBERS = 10  # best predicted plans whose neighbours a step predicts


@dataclass(frozen=True)
class Candidate:
    """A plan that a search found, with its predicted loss increase, nats/token."""

    plan: Plan
    loss_increase: float


def search(
    space: PlanSpace,
    predict: Predict,
    target: Target,
    *,
    seed: int,
    count: int = 10,
    initial: Sequence[Plan] = (),
    population: int = POPULATION,
    generations: int = GENERATIONS,
    distance: float = DISTANCE,
) -> list[Candidate]:
    """The best distinct plans of one size, by prediction.

    Args:
        space: of plans.
        predict: loss increases of plans, [n, 2L] to [n], such as `Predictor.cautious`.
        target: the budget, and the ranges of blocks that vary.
        seed: of the search.
        count: of candidates wanted; fewer are returned if no more differ enough.
        initial: plans to start from, such as the best measured; fitted to the target.
        population: plans per generation.
        generations: at most; the search ends earlier without gains.
        distance: least mean difference of kept shares between two candidates of blocks that vary.

    Returns:
        Best first.

    Raises:
        LmscoutError: no plan meets the target.
    """
    if space.uniform is not None:
        plans = space.plans(target.budget)
        rng = np.random.default_rng([seed, 4])
        rows, loss_increases = rank_uniform(plans, plans.projected(initial), predict, rng)
        rows, loss_increases = rows[:count], loss_increases[:count]
    else:
        shape, inner = space.steps, space.in_steps(target)
        inner.ranges.require(inner.budget)
        known = space.to_steps(as_rows(initial).reshape(-1, 2 * shape.depth))
        rng = np.random.default_rng([seed, 1])
        rows, loss_increases = evolve(
            lambda rows: predict(space.to_units(rows)),
            _initial_rows(known, shape, inner, population, rng),
            shape,
            inner,
            population=population,
            generations=generations,
            seed=int(np.random.default_rng([seed, 3]).integers(2**31)),
        )
        order = np.lexsort((*rows.T, loss_increases))
        order = order[inner.budget.meets(rows[order])]
        order = order[apart(rows[order], dense_row(shape), count, distance)]
        rows, loss_increases = space.to_units(rows[order]), loss_increases[order]
    return list(map(Candidate, as_plans(rows), loss_increases.tolist()))


def evolve(
    predict: Predict,
    initial: Rows,
    shape: Shape,
    target: Target,
    *,
    population: int,
    generations: int,
    seed: int,
) -> tuple[Rows, Floats]:
    """Run a genetic algorithm from an initial population [n, 2L].

    Parents are the winners of binary tournaments; crossover, mutation and `fit` make new plans;
    the best of parents and children survive.  It ends after 25 generations without a gain of a
    thousandth.  Draw by draw this is pymoo's `GA` with these operators, which keeps an object per
    plan and takes twice as long.

    Returns:
        All distinct plans that were predicted [n, 2L], and their loss increases.
    """
    rng = np.random.default_rng(seed)
    rows = fit(initial, target.ranges, target.budget)
    rows = rows[unseen(rows, set())]
    loss_increases = predict(rows)
    evaluated, results = [rows], [loss_increases]
    best, improved = np.inf, 0
    for generation in range(1, generations + 1):
        lowest = float(loss_increases.min())
        if not lowest > best - _GAIN * abs(lowest):
            best, improved = lowest, generation
        if generation == generations or generation - improved >= _PATIENCE:
            break
        known = {row.tobytes() for row in rows}
        children = rows[:0]
        for _ in range(_ATTEMPTS):
            missing = population - len(children)
            if not missing:
                break
            parents = rows[_tournament(loss_increases, -(-missing // 2), rng)]
            mutants = mutate(_offspring(parents, rng), shape, rng)
            rng.random(len(mutants))  # pymoo's draw of whether each is mutated: all are
            fitted = fit(mutants, target.ranges, target.budget)
            children = np.concatenate([children, fitted[unseen(fitted, known)[:missing]]])
        if not len(children):
            break
        evaluated.append(children)
        results.append(predict(children))
        rows = np.concatenate([rows, children])
        loss_increases = np.concatenate([loss_increases, results[-1]])
        survivors = np.argsort(loss_increases, kind="stable")[:population]
        rows, loss_increases = rows[survivors], loss_increases[survivors]
    every = np.concatenate(evaluated)
    distinct = unseen(every, set())
    return every[distinct], np.concatenate(results)[distinct]


def _tournament(loss_increases: Floats, matings: int, rng: np.random.Generator) -> Rows:
    """Two parents for each mating, each the better of two drawn, [matings, 2]."""
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


def _offspring(parents: Rows, rng: np.random.Generator) -> Rows:
    """Parents [matings, 2, 2L] with crossover in most matings, [2 * matings, 2L]."""
    pairs = parents.swapaxes(0, 1)
    crossed = rng.random(len(parents)) < _CROSSED
    children = pairs.copy()
    if crossed.any():
        children[:, crossed] = crossover(pairs, rng)[:, crossed]
    return children.reshape(-1, parents.shape[2])


def crossover(parents: Rows, rng: np.random.Generator) -> Rows:
    """Two children of two parents each, [2, matings, 2L], that take whole blocks from either.

    Half of them take the first blocks of one and the last of the other (one-point); the others
    take each block from either (uniform).
    """
    matings, depth = parents.shape[1], parents.shape[2] // 2
    cut = rng.integers(1, max(depth, 2), matings)[:, None]
    one_point = np.arange(depth) < cut
    either = rng.random((matings, depth)) < 0.5
    which = rng.random((matings, 1)) < 0.5
    taken = np.tile(np.where(which, one_point, either), 2)
    first, second = parents
    return np.stack([np.where(taken, first, second), np.where(taken, second, first)])


def mutate(rows: Rows, shape: Shape, rng: np.random.Generator, most: int = 3) -> Rows:
    """Plans with parameters moved from one column to another, one to `most` times.

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


def uniform_draws(ranges: Ranges, count: int, rng: np.random.Generator) -> Floats:
    """Uniform draws within ranges, [count, 2L], not yet fitted to a budget."""
    low, high = ranges.rows
    return np.asarray(rng.uniform(low, high, (count, len(low))))


def _initial_rows(
    known: Rows, shape: Shape, target: Target, count: int, rng: np.random.Generator
) -> Rows:
    """Known plans, mutations of them, and uniform draws; fitted."""
    wanted = uniform_draws(target.ranges, count, rng)
    known = known[: count // 2]
    if len(known):
        wanted[: len(known)] = known
        mutants = known[rng.integers(0, len(known), count // 4)]
        wanted[count - len(mutants) :] = mutate(mutants, shape, rng)
    return fit(wanted, target.ranges, target.budget)


def apart(rows: Rows, units: Rows, count: int, distance: float) -> list[int]:
    """Indices of the first rows [n, 2L] whose mean difference of kept shares is large enough."""
    shares = rows / np.maximum(units, 1)
    taken: list[int] = []
    for index, share in enumerate(shares):
        if len(taken) == count:
            break
        if not taken or np.abs(shares[taken] - share).mean(axis=1).min() >= distance:
            taken.append(index)
    return taken


def rank_uniform(
    plans: UniformPlans, initial: Rows, predict: Predict, rng: np.random.Generator
) -> tuple[Rows, Floats]:
    """Distinct uniform plans with their predicted loss increases, best first: all, or many.

    If there are too many to predict all, a local search follows on draws: neighbours of the best
    are predicted as long as the best change.
    """
    if plans.count <= _LISTED:
        rows = plans.every()
        return _sorted(rows, predict(rows))
    seen: set[bytes] = set()
    rows = np.concatenate([initial, plans.drawn(_LISTED, rng)])
    rows = rows[unseen(rows, seen)]
    rows, loss_increases = _sorted(rows, predict(rows))
    for _ in range(_CLIMBS):
        best = rows[:_CLIMBERS]
        near = plans.neighbours(best)
        new = near[unseen(near, seen)]
        if not len(new):
            break
        rows, loss_increases = _sorted(
            np.concatenate([rows, new]), np.concatenate([loss_increases, predict(new)])
        )
        if (rows[:_CLIMBERS] == best).all():
            break
    return rows, loss_increases


def _sorted(rows: Rows, loss_increases: Floats) -> tuple[Rows, Floats]:
    order = np.argsort(loss_increases, kind="stable")
    return rows[order], loss_increases[order]


def allocate(space: PlanSpace, target: Target, mass: ImportanceMass) -> Plan:
    """The plan whose removed units have the least summed mass.

    Where blocks vary, units are taken by the mass that they save per cost, the most first, until
    the budget is used up: the plan of the least mass plus a multiplier times the cost.  What is
    left goes to channels.  Uniform plans are ranked by their masses.

    Raises:
        LmscoutError: no plan meets the target.
    """
    if space.uniform is not None:
        plans = space.plans(target.budget)
        rng = np.random.default_rng(0)
        rows, _ = rank_uniform(plans, plans.projected(()), mass.estimate, rng)
        return as_plans(rows[:1])[0]
    inner = space.in_steps(target)
    inner.ranges.require(inner.budget)
    low, high = inner.ranges.rows
    saved, costs = [], []
    for column, (error, table) in enumerate(zip(mass.columns, inner.budget.tables, strict=True)):
        steps = np.arange(low[column], high[column] + 1)
        units = np.minimum(steps * space.each[column], len(error) - 1)
        cost = np.maximum(np.diff(table[steps]), _FREE)
        costs.append(cost)
        # Lower convex hull: a unit that saves less than the next one is taken with it.
        each = -np.diff(error[units]) / cost
        hull = partial(isotonic_regression, sample_weight=cost, increasing=False)
        saved.append(hull(each) if len(each) else each)
    columns = np.repeat(np.arange(len(low)), high - low)
    order = np.argsort(-np.concatenate(saved), kind="stable")
    room = inner.budget.limit - inner.budget.cost(low[None])[0]
    taken = order[np.cumsum(np.concatenate(costs)[order]) <= room]
    row = low + np.bincount(columns[taken], minlength=len(low))
    rows = np.concatenate([fit(row[None], inner.ranges, inner.budget), row[None]])
    rows = space.to_units(rows[: 1 + int(inner.budget.meets(row[None])[0])])
    return as_plans(rows[[np.argmin(mass.estimate(rows))]])[0]
