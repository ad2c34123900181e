"""How long the accuracy predictor takes: to be fitted, and to predict 100,000 plans.

    python bench/predictor.py [--pairs N] [--plans N]

Blocks, groups and channels are those of a LLaMA of 16 million parameters; quality is a
formula, convex in what each block loses, with neighbours that make it worse.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.features import ImportanceMass
from lmscout.pruning.plan import Shape, as_plans, dense_row
from lmscout.pruning.predictor import fit_predictor
from lmscout.pruning.ranges import Ranges, Target, fit
from lmscout.pruning.regressors import KINDS
from lmscout.pruning.search import search
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair

ROUNDS = 3
SHAPE = Shape((10,) * 12, (864,) * 12, (40_960,) * 12, (960,) * 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--plans", type=int, default=100_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    units, ranges, budget = dense_row(SHAPE), Ranges.above(SHAPE), keep_budget(SHAPE, 0.8)
    weight, correction = rng.uniform(0.02, 0.4, 24), rng.uniform(1, 4, 24)

    def loss_increase(rows):
        removed = 1 - rows / units
        alone = weight * np.expm1(correction * removed) / np.expm1(correction)
        beside = 0.2 * removed * np.roll(removed, 1, axis=1)
        noise = np.exp(0.01 * rng.standard_normal(len(rows)))
        return (alone + beside).sum(axis=1) * noise

    rows = fit(rng.uniform(0.1, 1, (arguments.pairs, 24)) * units, ranges, budget)
    pairs = [
        Pair(plan, float(value), 6000)
        for plan, value in zip(as_plans(rows), loss_increase(rows), strict=True)
    ]
    scores = [
        cost * np.exp(-np.linspace(0, 2, many)) for cost, many in zip(weight, units, strict=True)
    ]
    mass = ImportanceMass.of_scores(scores[:12], scores[12:])
    wanted = fit(rng.uniform(0.1, 1, (arguments.plans, 24)) * units, ranges, budget)
    for kind in KINDS:
        started = time.perf_counter()
        predictor = fit_predictor(pairs, SHAPE, mass, seed=0, repeats=1, kinds=[kind])
        fitted = time.perf_counter() - started
        taken = best_of(predictor.predict, wanted)
        print(
            f"{kind}: cross-validated and fitted on {len(pairs)} pairs in {fitted:.1f} s, "
            f"{len(wanted):,} plans predicted in {taken:.2f} s, "
            f"tau {predictor.report.chosen.kendall:.3f}"
        )
    started = time.perf_counter()
    predictor = fit_predictor(pairs, SHAPE, mass, seed=0)
    print(f"all kinds, three repeats: {time.perf_counter() - started:.1f} s")
    print(f"  {predictor.report.words}")
    print(f"the chosen: {len(wanted):,} plans in {best_of(predictor.predict, wanted):.2f} s")
    print(f"the worst of all kinds: in {best_of(predictor.cautious, wanted):.2f} s")
    started = time.perf_counter()
    found = search(PlanSpace(SHAPE), predictor.cautious, Target(budget, ranges), seed=0)
    print(
        f"search: {time.perf_counter() - started:.1f} s; best {found[0].loss_increase:.3f}, "
        f"best of {len(wanted):,} draws {predictor.cautious(wanted).min():.3f}"
    )


def best_of(work, argument) -> float:
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work(argument)
        taken.append(time.perf_counter() - started)
    return min(taken)


if __name__ == "__main__":
    main()
