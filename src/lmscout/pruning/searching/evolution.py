"""A genetic algorithm over plans, a generation at a time as one array.

Step by step what pymoo's `GA` does with the operators of `breeding`, draw by draw: it keeps an
object for every plan, and that took half of a search.
"""

from __future__ import annotations

import numpy as np

from lmscout.pruning.searching.breeding import CROSSED, Predict, mixed, moved
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.ranges import Ranges, fit
from lmscout.pruning.subnetworks.plan import Shape
from lmscout.pruning.subnetworks.plan_arrays import Floats, Rows, unseen

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
    rises = predict(rows)
    asked, answers = [rows], [rises]
    best, since = np.inf, 0
    for generation in range(1, generations + 1):
        lowest = float(rises.min())
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
            parents = _parents(rises, -(-wanted // 2), rng)
            young = _moved(_children(rows[parents], rng), shape, rng)
            fitted = fit(young, ranges, budget)
            new = unseen(fitted, known)[:wanted]
            children = np.concatenate([children, fitted[new]])
        if not len(children):
            break
        asked.append(children)
        answers.append(predict(children))
        rows, rises = np.concatenate([rows, children]), np.concatenate([rises, answers[-1]])
        living = np.argsort(rises, kind="stable")[:population]
        rows, rises = rows[living], rises[living]
    every = np.concatenate(asked)
    distinct = unseen(every, set())
    return every[distinct], np.concatenate(answers)[distinct]


def _parents(rises: Floats, matings: int, rng: np.random.Generator) -> Rows:
    """Two for each mating, each the better of two that are drawn, [matings, 2]."""
    count = 4 * matings
    draws = np.concatenate([rng.permutation(len(rises)) for _ in range(-(-count // len(rises)))])
    pairs = draws[:count].reshape(-1, 2)
    one, other = rises[pairs].T
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
