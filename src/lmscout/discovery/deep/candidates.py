"""Candidates of a search in the deep space, and what they are worth on the search split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import numpy as np
import numpy.typing as npt

from lmscout.proxies import Expression, format_expression, parse
from lmscout.ranking import kendall, log_pearson, partial_spearman, spearman
from lmscout.results import SavedAs

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A tree that was proposed, and what became of it.

    Attributes:
        node: the tree.
        fitness: on the search split, from 0 to 1; None where it was discarded before.
        discarded: the name of the rule that it fell to, or "" where it was evaluated.
        order: fingerprint of how it orders the probe architectures, 0 where that was not seen.
        estimate: of the fitness, where the race dropped it: by the architectures seen until then.
    """

    node: Annotated[Expression, SavedAs(format_expression, parse)]
    fitness: float | None
    discarded: str = ""
    order: int = 0
    estimate: float | None = None

    @property
    def worth(self) -> float | None:
        """What an engine may go by: the fitness, or what is known of it."""
        return self.estimate if self.fitness is None else self.fitness


def _spearman(scores: Values, quality: Values, _: Values) -> float:
    return spearman(scores, quality)


def _kendall(scores: Values, quality: Values, _: Values) -> float:
    return kendall(scores, quality)


def _order_and_distance(scores: Values, quality: Values, _: Values) -> float:
    """Of two that order alike, the one whose scores are as far apart as the quality is."""
    return (spearman(scores, quality) + log_pearson(scores, quality)) / 2


def _beyond_size(scores: Values, quality: Values, params: Values) -> float:
    return partial_spearman(scores, quality, params)


Coefficient = Callable[[Values, Values, Values], float]

DEFAULT_OBJECTIVE = "spearman+pearson"  # chosen on halves of search splits: docs/deep-search.md
OBJECTIVES: Mapping[str, Coefficient] = MappingProxyType(
    {
        "spearman": _spearman,
        DEFAULT_OBJECTIVE: _order_and_distance,
        "kendall": _kendall,
        "beyond-size": _beyond_size,
    }
)
"""What is sought: a coefficient of scores, quality and numbers of parameters, each [n].  The
sign is free, as a proxy may fall with quality; "spearman+pearson" is the mean of Spearman's and of
Pearson's, the latter of logarithms; "beyond-size" holds the parameters fixed."""


def agreed(coefficients: Sequence[float], room: Sequence[float] = ()) -> float:
    """The least of some coefficients, rising or falling with quality on all benchmarks alike.

    Args:
        coefficients: one a benchmark.
        room: by how much each may yet be better; nothing by default.

    Returns:
        |coefficient| of the worst benchmark; below 0 where they do not agree in sign; NaN
        where one is.
    """
    values = np.array(coefficients, np.float64)
    more = np.array(room or [0.0] * len(values), np.float64)
    return float(max(np.min(values + more), np.min(more - values)))


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that none is both as short as and fitter than, shortest first."""
    best: list[Candidate] = []
    for one in sorted(_evaluated(candidates), key=lambda one: (one.node.size, -_of(one))):
        if not best or _of(one) > _of(best[-1]):
            best.append(one)
    return best


def fittest(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """The fittest candidates, the shorter of two that are alike first."""
    return sorted(_evaluated(candidates), key=by_worth)[:count]


def by_worth(one: Candidate) -> tuple[float, int]:
    """Sorts what is worth most first, the shorter of two that are alike; for what has a worth."""
    return -(one.worth or 0.0), one.node.size


def to_beat(best: Sequence[Candidate], size: int) -> float:
    """Fitness of the front at a size; 0 where nothing is as short."""
    return max((_of(one) for one in best if one.node.size <= size), default=0.0)


def _evaluated(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [one for one in candidates if one.fitness is not None]


def _of(candidate: Candidate) -> float:
    assert candidate.fitness is not None
    return candidate.fitness
