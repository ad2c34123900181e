"""The noise of a built benchmark, its baselines, and which architectures it distinguishes.

Architectures that were trained with several seeds give the noise of one training.  From it
follow the highest correlation that any proxy can have, and which differences between
architectures are real.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from lmscout.benchmarks.benchmark import Benchmark, checked
from lmscout.benchmarks.built import (
    built_folder,
    finished,
    read_built,
    replicates,
    table_digest,
)
from lmscout.benchmarks.space import Space
from lmscout.errors import LAST_SEED, LmscoutError, check_whole
from lmscout.metrics import (
    Agreement,
    Interval,
    agreement,
    configuration_baselines,
    kendall,
    kendall_many,
    spearman,
    spearman_many,
)
from lmscout.reading import read_json_object
from lmscout.results import Result
from lmscout.runs import SETTINGS, kept_result

Array = npt.NDArray[np.float64]

DRAWS = 1000
REPEATS = 200
LEVEL = 0.95
REAL = 1.96  # standard errors by which a difference exceeds noise
LEAST_CEILING = 0.9  # Kendall's τ
MIN_DISTINGUISHABLE = 0.5  # of the pairs within a cell

EQUAL_CEILING = 0.8  # the same, among architectures of equal size
MOST_BASELINE = 0.35  # |τ| of a baseline, or of two, among architectures of equal size

CONDITIONS = {
    "ceiling": f"noise leaves τ {LEAST_CEILING} to a perfect proxy",
    "baseline": "a proxy can beat the best baseline",
    "cells": "half of the pairs of one depth and width differ by more than noise",
}
"""Conditions under which a benchmark distinguishes proxies: name in JSON -> in words."""
EQUAL_CONDITIONS = {
    "ceiling": f"noise leaves τ {EQUAL_CEILING} to a perfect proxy",
    "baseline": f"no baseline passes |τ| {MOST_BASELINE}",
    "pairs": f"no two baselines, fitted together, pass |τ| {MOST_BASELINE}",
}
"""Those of a benchmark whose space has budgets."""


@dataclass(frozen=True, repr=False)
class Check(Result):
    """Noise, ceiling and baselines of a benchmark.

    Attributes:
        folder: of the benchmark.
        n_architectures: with a finite quality.
        n_left_out: without one.
        n_replicated: trained with several seeds.
        noise: standard deviation of the quality of one training, nats/token: the root of the
            variance within architectures, pooled over the replicated ones.
        spread: standard deviation of quality over architectures.
        ceiling: correlation of the true quality with the measured one, which a perfect proxy
            would reach.  Mean and central 95 % over simulated measurements.
        repeat: correlation of one measurement with another.
        baselines: the configuration baselines, by name.
        pairs: Kendall's τ of every two baselines, by their names: of the quality's ranks fitted
            to both ranks by least squares on the same architectures.
        equal: whether the benchmark's space has a budget, so that sizes are equal.
        distinguishable: share of the pairs of architectures whose qualities differ by more than
            1.96 standard errors of the difference.
        distinguishable_in_cell: the same among pairs of one depth and one width; NaN without any.
        spread_in_cell: root of the mean variance of quality within such cells.
    """

    folder: Path
    n_architectures: int
    n_left_out: int
    n_replicated: int
    noise: float
    spread: float
    ceiling: Agreement
    repeat: Agreement
    baselines: dict[str, Agreement]
    pairs: dict[str, float]
    equal: bool
    distinguishable: float
    distinguishable_in_cell: float
    spread_in_cell: float

    @property
    def best_baseline(self) -> str:
        """The baseline with the highest Spearman's ρ."""
        return max(self.baselines, key=lambda name: _or_lowest(self.baselines[name].spearman.value))

    @property
    def conditions(self) -> dict[str, bool]:
        """Whether each of the `CONDITIONS`, or of the `EQUAL_CONDITIONS`, holds."""
        if self.equal:
            taus = [one.kendall.value for one in self.baselines.values()]
            return {
                "ceiling": self.ceiling.kendall.value >= EQUAL_CEILING,
                "baseline": _largest(taus) <= MOST_BASELINE,
                "pairs": _largest(self.pairs.values()) <= MOST_BASELINE,
            }
        best = self.baselines[self.best_baseline].spearman
        return {
            "ceiling": self.ceiling.kendall.value >= LEAST_CEILING,
            "baseline": best.high < self.ceiling.spearman.low,
            "cells": self.distinguishable_in_cell >= MIN_DISTINGUISHABLE,
        }

    @property
    def verdicts(self) -> dict[str, bool]:
        """The conditions in words."""
        words = EQUAL_CONDITIONS if self.equal else CONDITIONS
        return {words[name]: holds for name, holds in self.conditions.items()}

    @property
    def distinguishes(self) -> bool:
        """Whether all conditions hold."""
        return all(self.conditions.values())

    def rows(self) -> list[dict[str, Any]]:
        """One row per configuration baseline, with its correlation."""
        return [
            {
                "baseline": name,
                "spearman": one.spearman.value,
                "spearman_low": one.spearman.low,
                "spearman_high": one.spearman.high,
                "kendall": one.kendall.value,
            }
            for name, one in self.baselines.items()
        ]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {**self.to_dict(), "verdicts": self.conditions, "distinguishes": self.distinguishes}


def kept_check(benchmark: str | Benchmark, seed: int, out: Path | None) -> Check:
    """The check of a built benchmark by its name, or of the loaded one; a finished run is loaded.

    LmscoutError if the loaded one is not what its folder holds.
    """
    check_whole("seed", seed, 0, LAST_SEED)
    name = benchmark if isinstance(benchmark, str) else benchmark.name
    folder = built_folder(name)
    if not isinstance(benchmark, str) and read_built(name).digest != benchmark.digest:
        raise LmscoutError(f"{name}: the object is not what {folder} holds; give the folder")
    settings = {"benchmark": name, "table_sha256": table_digest(folder), "seed": seed}
    return kept_result(out, "bench check", settings, Check, partial(check, folder, seed=seed))


def check(folder: Path, *, seed: int = 0) -> Check:
    """Measure the noise, the ceiling and the baselines of a built benchmark.

    The true qualities are not known; the simulation takes the measured ones, shrunk towards their
    mean so that their variance is the one without the noise, and measures them again with normal
    noise of the seed; its variance is inversely proportional to the number of trainings.

    Raises:
        LmscoutError: there is no finished benchmark, or no architecture with several seeds.
    """
    every = replicates(folder)
    kept = finished(every)
    if len(kept) < 3:
        raise LmscoutError(
            f"{folder}: too few architectures with a loss (got {len(kept)}, expected at least 3)"
        )
    quality = np.array([-one.mean_loss for one in kept])
    noise = noise_of([np.array(one.losses, np.float64) for one in kept], folder)
    errors = noise / np.sqrt([len(one.losses) for one in kept])
    specs = [one.spec for one in kept]
    sizes = [(spec.depth, spec.width) for spec in specs]
    cells = np.array(sizes)
    scores = configuration_baselines(
        parameters=[spec.parameters() for spec in specs],
        body_parameters=[spec.body_parameters() for spec in specs],
        depth=[spec.depth for spec in specs],
        width=[spec.width for spec in specs],
    )
    real = real_differences(quality, errors)
    first, second = np.triu_indices(len(cells), 1)
    same = (cells[first] == cells[second]).all(axis=1)
    ceiling, repeat = simulate(quality, errors, seed)
    return Check(
        folder=folder,
        n_architectures=len(kept),
        n_left_out=len(every) - len(kept),
        n_replicated=sum(len(one.losses) > 1 for one in kept),
        noise=noise,
        spread=float(quality.std()),
        ceiling=ceiling,
        repeat=repeat,
        baselines={name: agreement(values, quality) for name, values in scores.items()},
        pairs={
            f"{one}, {other}": _fitted(np.stack([scores[one], scores[other]]), quality)
            for one, other in combinations(scores, 2)
        },
        equal=_budgeted(folder),
        distinguishable=float(real.mean()),
        distinguishable_in_cell=float(real[same].mean()) if same.any() else float("nan"),
        spread_in_cell=_pooled_deviation(
            [quality[(cells == cell).all(axis=1)] for cell in dict.fromkeys(sizes)]
        ),
    )


def _fitted(scores: Array, quality: Array) -> float:
    """Kendall's τ of ranks of quality ``[n]``, fitted to ranks of scores ``[k, n]``, with them."""
    table = np.vstack([rankdata(scores, axis=1), np.ones(len(quality))]).T
    ranks = rankdata(quality)
    weights, *_ = np.linalg.lstsq(table, ranks)
    return float(kendall(table @ weights, quality))


def _budgeted(folder: Path) -> bool:
    """Whether the space of a built benchmark has a budget."""
    file = folder / SETTINGS
    space = read_json_object(file).get("space")
    return space is not None and checked(Space, space, f"{file}: space").budgeted


def noise_of(losses: list[Array], folder: Path) -> float:
    """Pooled standard deviation of a training's quality, from ``[seeds]`` losses of architectures.

    LmscoutError, with the folder, if no architecture was trained more than once.
    """
    noise = _pooled_deviation(losses)
    if np.isnan(noise):
        raise LmscoutError(
            f"{folder}: no architecture was trained with several seeds, so that its noise is not "
            "known; build it with 3 seeds"
        )
    return noise


def _pooled_deviation(groups: list[Array]) -> float:
    """Root of the mean variance within groups; NaN if none has two members."""
    freedom = sum(len(one) - 1 for one in groups)
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in groups)
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def simulate(quality: Array, errors: Array, seed: int) -> tuple[Agreement, Agreement]:
    """Ceiling and repeatability: correlations of true and measured quality, and of two measured.

    Each is the mean and the central 95 % of draws, from measured qualities ``[n]`` and their
    standard errors ``[n]``.
    """
    variance = quality.var()
    kept = max(0.0, 1 - float((errors**2).mean() / variance)) if variance > 0 else 0.0
    true = quality.mean() + (quality - quality.mean()) * np.sqrt(kept)
    rng = np.random.default_rng(seed)
    measured = true + errors * rng.standard_normal((DRAWS, len(true)))
    again = true + errors * rng.standard_normal((REPEATS, len(true)))
    pairs = list(zip(measured[:REPEATS], again, strict=True))
    return (
        Agreement(_central(spearman_many(measured, true)), _central(kendall_many(measured, true))),
        Agreement(
            _central(np.array([spearman(one, other) for one, other in pairs])),
            _central(np.array([kendall(one, other) for one, other in pairs])),
        ),
    )


def real_differences(quality: Array, errors: Array) -> npt.NDArray[np.bool_]:
    """For each pair of qualities ``[n]``, whether they differ by more than standard errors ``[n]``.

    The result ``[n (n - 1) / 2]`` is in the order of `numpy.triu_indices`.
    """
    first, second = np.triu_indices(len(quality), 1)
    difference = np.abs(quality[first] - quality[second])
    found: npt.NDArray[np.bool_] = difference > REAL * np.hypot(errors[first], errors[second])
    return found


def _central(values: Array) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def _largest(taus: Iterable[float]) -> float:
    """The largest absolute value; one that is NaN, as of a constant baseline, orders nothing."""
    return max((abs(one) for one in taus if np.isfinite(one)), default=0.0)


def _or_lowest(value: float) -> float:
    return value if np.isfinite(value) else -np.inf
