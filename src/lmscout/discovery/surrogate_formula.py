"""The formula of the configuration alone that orders architectures most as a proxy does.

The formulas are depth^a · width^b · params^c with whole exponents: a rank correlation sees the
ratios of the exponents alone, so that no others are needed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import number_json
from lmscout.discovery.splits import shuffled_groups
from lmscout.metrics import spearman, spearman_many

Scores = npt.NDArray[np.float64]
Exponents = tuple[int, int, int]

EXPONENTS = (0, 1, 2, 3, -1, -2, -3)
NAMES = ("depth", "width", "params")
SURROGATE_FORMULAS = 0.99
"""The ρ on held-out architectures from which on a proxy says little that the formula does not."""

_SAME = 1 - 1e-9  # |ρ| of formulas that order the architectures of a benchmark alike


@dataclass(frozen=True)
class SurrogateFormula:
    """A formula chosen on half of the architectures, and how it does on the others.

    Attributes:
        exponents: of depth, width and params; their sign is such that the formula rises with
            the proxy on the half that chose it.
        fitted: Spearman's ρ with the proxy on that half.
        held_out: the same on the other half.
        quality: the formula's own ρ with quality, on all architectures.
        tried: how many formulas that order this benchmark differently there were.
    """

    exponents: Exponents
    fitted: float
    held_out: float
    quality: float
    tried: int

    @property
    def formula(self) -> str:
        """The formula as text, such as "depth^2 * width / params"."""
        return formula_text(self.exponents)

    def to_json(self) -> dict[str, object]:
        """The formula and its figures."""
        return {
            "formula": self.formula,
            "exponents": dict(zip(NAMES, self.exponents, strict=True)),
            "fitted": number_json(self.fitted),
            "held_out": number_json(self.held_out),
            "quality": number_json(self.quality),
            "tried": self.tried,
            "says_as_much": self.says_as_much,
        }

    @property
    def says_as_much(self) -> bool:
        """Whether the proxy says little that the formula does not."""
        return abs(self.held_out) >= SURROGATE_FORMULAS


def formulas() -> tuple[Exponents, ...]:
    """All formulas up to powers and inverses, those of few and low factors first."""
    every = (
        (depth, width, params)
        for depth, width, params in product(EXPONENTS, repeat=3)
        if gcd(depth, width, params) == 1 and (depth or width or params) > 0
    )
    return tuple(sorted(every, key=_length))


def formula_scores(exponents: Exponents, benchmark: Benchmark) -> Scores:
    """What a formula says of every architecture: [n] float64."""
    sizes = ((spec.depth, spec.width, spec.parameters()) for spec in benchmark.specs)
    scores: Scores = np.prod(np.array(list(sizes), np.float64) ** np.array(exponents), axis=1)
    return scores


def surrogate(benchmark: Benchmark, scores: Scores, *, seed: int) -> SurrogateFormula | None:
    """The formula of the highest |ρ| with a proxy, of several the shortest.

    Args:
        benchmark: the architectures.
        scores: [n] the proxy's, finite.
        seed: of the half of the architectures on which the formula is chosen.

    Returns:
        The formula; None where none has an order on that half, or the proxy has none.
    """
    chosen, others = halves(benchmark.specs, seed)
    distinct: list[Exponents] = []
    kept: list[Scores] = []
    for exponents in formulas():
        row = formula_scores(exponents, benchmark)
        if np.isnan(spearman(row, row)):  # the same for all architectures
            continue
        if kept and np.abs(spearman_many(np.array(kept), row)).max() > _SAME:
            continue
        distinct.append(exponents)
        kept.append(row)
    if not distinct:
        return None
    fitted = spearman_many(np.array(kept)[:, chosen], scores[chosen])
    if np.isnan(fitted).all():
        return None
    best = int(np.nanargmax(np.abs(fitted)))
    sign = 1 if fitted[best] >= 0 else -1
    return SurrogateFormula(
        _signed(distinct[best], sign),
        sign * float(fitted[best]),
        sign * spearman(kept[best][others], scores[others]),
        sign * spearman(kept[best], benchmark.quality),
        len(distinct),
    )


def halves(
    architectures: Sequence[Hashable], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two halves of the rows, drawn; equal architectures stay together.

    Returns:
        Ascending row numbers of each.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for group in shuffled_groups(architectures, seed):
        sides[len(sides[0]) + len(group) > (len(architectures) + 1) // 2].extend(group)
    first, second = (np.sort(np.array(side, np.int64)) for side in sides)
    return first, second


def formula_text(exponents: Exponents) -> str:
    """A formula as text, such as "depth^2 * width / params"."""
    above = _factors(exponents, 1)
    below = _factors(exponents, -1)
    text = " * ".join(above) or "1"
    if not below:
        return text
    return f"{text} / {below[0]}" if len(below) == 1 else f"{text} / ({' * '.join(below)})"


def _factors(exponents: Exponents, sign: int) -> list[str]:
    return [
        name if abs(power) == 1 else f"{name}^{abs(power)}"
        for name, power in zip(NAMES, exponents, strict=True)
        if power * sign > 0
    ]


def _length(exponents: Exponents) -> tuple[int, int, int]:
    powers = [power for power in exponents if power]
    return len(powers), sum(map(abs, powers)), sum(power < 0 for power in powers)


def _signed(exponents: Exponents, sign: int) -> Exponents:
    depth, width, params = exponents
    return sign * depth, sign * width, sign * params
