"""What a built benchmark is good for: its noise, its baselines, and what can be distinguished.

The quality of an architecture is known up to the noise of its training.  Architectures that
were trained with several seeds say how large it is, and from that follow the highest
correlation that any proxy can have, and which differences between architectures are real.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks.built import finished, mean_loss, replicates
from lmscout.errors import LmscoutError
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
from lmscout.results import Result

Array = npt.NDArray[np.float64]

DRAWS = 1000
REPEATS = 200
LEVEL = 0.95
REAL = 1.96  # standard errors by which a difference exceeds noise
LEAST_CEILING = 0.9  # Kendall's τ
MIN_DISTINGUISHABLE = 0.5  # of the pairs within a cell


@dataclass(frozen=True, repr=False)
class Check(Result):
    """What was found.

    Attributes:
        folder: of the benchmark.
        n_architectures: with a finite quality.
        n_left_out: without one.
        n_replicated: trained with several seeds.
        noise: standard deviation of the quality of one training, nats a token: the root of the
            variance within architectures, pooled over the replicated ones.
        spread: standard deviation of quality over architectures.
        ceiling: correlation of the true quality with the measured one: what a perfect proxy
            would reach.  Mean and central 95 % over simulated measurings.
        repeat: correlation of one measuring with another.
        baselines: the configuration baselines, by name.
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
    distinguishable: float
    distinguishable_in_cell: float
    spread_in_cell: float

    @property
    def best_baseline(self) -> str:
        """The baseline with the highest Spearman's ρ."""
        return max(self.baselines, key=lambda name: _or_lowest(self.baselines[name].spearman.value))

    @property
    def verdicts(self) -> dict[str, bool]:
        """What has to hold so that the benchmark can tell proxies apart."""
        best = self.baselines[self.best_baseline].spearman
        return {
            f"noise leaves τ {LEAST_CEILING} to a perfect proxy": (
                self.ceiling.kendall.value >= LEAST_CEILING
            ),
            "a proxy can beat the best baseline": best.high < self.ceiling.spearman.low,
            "half of the pairs of one depth and width differ by more than noise": (
                self.distinguishable_in_cell >= MIN_DISTINGUISHABLE
            ),
        }

    @property
    def distinguishes(self) -> bool:
        """Whether all of that holds."""
        return all(self.verdicts.values())

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
        return {
            "folder": str(self.folder),
            "n_architectures": self.n_architectures,
            "n_left_out": self.n_left_out,
            "n_replicated": self.n_replicated,
            "noise": self.noise,
            "spread": self.spread,
            "spread_in_cell": _number(self.spread_in_cell),
            "ceiling": _agreement(self.ceiling),
            "repeat": _agreement(self.repeat),
            "baselines": {name: _agreement(one) for name, one in self.baselines.items()},
            "distinguishable": self.distinguishable,
            "distinguishable_in_cell": _number(self.distinguishable_in_cell),
            "verdicts": self.verdicts,
            "distinguishes": self.distinguishes,
        }


def check(folder: Path, *, seed: int = 0) -> Check:
    """Say what a built benchmark is good for.

    The true qualities are not known; the simulation takes the measured ones, drawn together
    about their mean so that their variance is what it would be without the noise, and measures
    them anew with normal noise, as much less of it as an architecture has been trained more
    often.

    Args:
        folder: what `build` wrote.
        seed: of the simulated noise.

    Raises:
        LmscoutError: there is no finished benchmark, or nothing to know its noise by.
    """
    every = replicates(folder)
    kept = finished(every)
    if len(kept) < 3:
        raise LmscoutError(f"{folder}: {len(kept)} architectures with a loss; at least 3 say more")
    quality = np.array([-mean_loss(one) for one in kept])
    noise = noise_of([np.array(one.losses, np.float64) for one in kept], folder)
    errors = noise / np.sqrt([len(one.losses) for one in kept])
    specs = [one.spec for one in kept]
    cells = [(spec.depth, spec.width) for spec in specs]
    scores = configuration_baselines(
        parameters=[spec.parameters() for spec in specs],
        body_parameters=[spec.body_parameters() for spec in specs],
        depth=[spec.depth for spec in specs],
        width=[spec.width for spec in specs],
    )
    real, same = real_differences(quality, errors), _pairs_of_one_cell(cells)
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
        distinguishable=float(real.mean()),
        distinguishable_in_cell=float(real[same].mean()) if same.any() else float("nan"),
        spread_in_cell=_spread_within(quality, cells),
    )


def noise_of(losses: list[Array], folder: Path) -> float:
    """Pooled standard deviation within architectures of one training's quality.

    Args:
        losses: for each architecture, ``[seeds]``.
        folder: for the error.

    Raises:
        LmscoutError: no architecture was trained more than once.
    """
    freedom = sum(len(one) - 1 for one in losses)
    if freedom == 0:
        raise LmscoutError(
            f"{folder}: no architecture was trained with several seeds, so that its noise is not "
            "known; build it with --seeds 3"
        )
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in losses)
    return float(np.sqrt(squares / freedom))


def simulate(quality: Array, errors: Array, seed: int) -> tuple[Agreement, Agreement]:
    """Correlations of the truth with a measuring, and of two measurings.

    Args:
        quality: ``[n]`` as measured.
        errors: ``[n]`` standard errors of the measured qualities.
        seed: of the draws.

    Returns:
        The ceiling and the repeatability, each the mean and the central 95 % of the draws.
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
    """For each pair of architectures, whether their qualities differ by more than noise.

    Args:
        quality: ``[n]``.
        errors: ``[n]`` their standard errors.

    Returns:
        ``[n (n - 1) / 2]``, in the order of `numpy.triu_indices`.
    """
    first, second = np.triu_indices(len(quality), 1)
    difference = np.abs(quality[first] - quality[second])
    found: npt.NDArray[np.bool_] = difference > REAL * np.hypot(errors[first], errors[second])
    return found


def _pairs_of_one_cell(cells: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    first, second = np.triu_indices(len(cells), 1)
    return np.array([cells[a] == cells[b] for a, b in zip(first, second, strict=True)])


def _spread_within(quality: Array, cells: list[tuple[int, int]]) -> float:
    members: dict[tuple[int, int], list[float]] = {}
    for cell, value in zip(cells, quality, strict=True):
        members.setdefault(cell, []).append(float(value))
    several = [np.array(values) for values in members.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in several)
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def _central(values: Array) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def _agreement(one: Agreement) -> dict[str, dict[str, float | None]]:
    return {
        name: {"value": _number(i.value), "low": _number(i.low), "high": _number(i.high)}
        for name, i in (("spearman", one.spearman), ("kendall", one.kendall))
    }


def _number(value: float) -> float | None:
    """A finite number, or None: JSON has no NaN."""
    return value if np.isfinite(value) else None


def _or_lowest(value: float) -> float:
    return value if np.isfinite(value) else -np.inf
