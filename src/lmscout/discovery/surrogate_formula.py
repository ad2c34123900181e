"""The formula of the configuration alone whose order of architectures is closest to a proxy's.

The formulas are depth^a · width^b · params^c with integer exponents; a rank correlation depends on
the ratios of the exponents alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from math import gcd

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import number_json
from lmscout.discovery.scorer import Scores
from lmscout.discovery.splits import halves
from lmscout.metrics import spearman, spearman_many

Exponents = tuple[int, int, int]

NAMES = ("depth", "width", "params")
EQUIVALENT = 0.99
"""|ρ| on held-out architectures from which on a proxy adds little to the formula."""

_EXPONENTS = (0, 1, 2, 3, -1, -2, -3)
_SAME_ORDER = 1 - 1e-9  # |ρ| of formulas with one order on a benchmark


@dataclass(frozen=True)
class SurrogateFormula:
    """A formula chosen on half of the architectures, and its figures on the others."""

    exponents: Exponents  # of depth, width and params; it increases with the proxy on that half
    fitted: float  # ρ with the proxy on that half
    held_out: float  # ρ with the proxy on the other half
    quality: float  # ρ with quality, on all architectures
    tried: int  # number of formulas with different orders on this benchmark

    @property
    def formula(self) -> str:
        """The formula as text, such as "depth^2 * width / params"."""
        return formula_text(self.exponents)

    @property
    def says_as_much(self) -> bool:
        """Whether the proxy adds little to the formula."""
        return abs(self.held_out) >= EQUIVALENT

    def to_json(self) -> dict[str, object]:
        """The formula and its figures."""
        return {
            **asdict(self),
            "formula": self.formula,
            "exponents": dict(zip(NAMES, self.exponents, strict=True)),
            **{
                name: number_json(getattr(self, name)) for name in ("fitted", "held_out", "quality")
            },
            "says_as_much": self.says_as_much,
        }


def formulas() -> tuple[Exponents, ...]:
    """All formulas up to powers and inverses, those with few and low factors first."""

    def length(exponents: Exponents) -> tuple[int, int, int]:
        powers = [power for power in exponents if power]
        return len(powers), sum(map(abs, powers)), sum(power < 0 for power in powers)

    every = (
        (depth, width, params)
        for depth, width, params in product(_EXPONENTS, repeat=3)
        if gcd(depth, width, params) == 1 and (depth or width or params) > 0
    )
    return tuple(sorted(every, key=length))


def formula_scores(exponents: Exponents, benchmark: Benchmark) -> Scores:
    """A formula's score of every architecture: [n] float64."""
    sizes = [(spec.depth, spec.width, spec.parameters()) for spec in benchmark.specs]
    scores: Scores = np.prod(np.array(sizes, np.float64) ** np.array(exponents), axis=1)
    return scores


def surrogate(benchmark: Benchmark, scores: Scores, *, seed: int) -> SurrogateFormula | None:
    """The formula with the highest |ρ| with finite scores [n], the shortest of several.

    The seed is that of the half of the architectures on which it is chosen.  None if no formula or
    the proxy has no order there.
    """
    chosen, others = halves(benchmark.specs, seed)
    distinct: list[Exponents] = []
    kept: list[Scores] = []
    for exponents in formulas():
        row = formula_scores(exponents, benchmark)
        if np.isnan(spearman(row, row)):  # constant
            continue
        if kept and np.abs(spearman_many(np.array(kept), row)).max() > _SAME_ORDER:
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
    depth, width, params = distinct[best]
    return SurrogateFormula(
        (sign * depth, sign * width, sign * params),
        sign * float(fitted[best]),
        sign * spearman(kept[best][others], scores[others]),
        sign * spearman(kept[best], benchmark.quality),
        len(distinct),
    )


def formula_text(exponents: Exponents) -> str:
    """A formula as text, such as "depth^2 * width / params"."""
    above, below = (
        [
            name if abs(power) == 1 else f"{name}^{abs(power)}"
            for name, power in zip(NAMES, exponents, strict=True)
            if power * sign > 0
        ]
        for sign in (1, -1)
    )
    text = " * ".join(above) or "1"
    if not below:
        return text
    return f"{text} / {below[0]}" if len(below) == 1 else f"{text} / ({' * '.join(below)})"
