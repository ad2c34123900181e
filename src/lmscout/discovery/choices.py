"""The architectures that a proxy scores best, and how sure that is over draws of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscout.discovery.assessment import SavedSpec
from lmscout.discovery.scorer import Scores, mean_of
from lmscout.metrics import SAMPLES, multiplicities
from lmscout.models import ArchitectureSpec

CHOICES = 5  # architectures that a design reports
TIED = 1e-12  # relative, as in the rank correlations
_ONE_IN = 20  # the best 5 %
_SEED = 0  # of the bootstrap
_AT_ONCE = 2**22  # means in memory


@dataclass(frozen=True)
class Choice:
    """One of the architectures that a proxy scores best.

    Attributes:
        spec: the architecture.
        score: mean over draws of initial weights and data, without the proxy's sign.
        standard_error: of the score; None with one draw.
        chance: that other draws would have it among the best 5 % by score of all that were
            scored, by a bootstrap over draws; None with one draw.
        latency: milliseconds, as measured for a limit of it; None without one.
        identifier: its name on a benchmark; None in a space.
        rank: its true rank among the benchmark's architectures within the limits, 1 is the best;
            None in a space.
    """

    spec: SavedSpec
    score: float
    standard_error: float | None = None
    chance: float | None = None
    latency: float | None = None
    identifier: str | None = None
    rank: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures by name, those of a benchmark on one alone."""
        place = {"architecture": self.identifier, "rank": self.rank} if self.identifier else {}
        figures = ("score", "standard_error", "chance")
        return {
            **place,
            **{name: getattr(self, name) for name in figures},
            **architecture_json(self.spec),
            "latency": self.latency,
        }


def architecture_json(spec: ArchitectureSpec) -> dict[str, object]:
    """The size of an architecture, and its spec."""
    size = {"params": spec.parameters(), "macs": spec.multiply_adds()}
    return {**size, "depth": spec.depth, "width": spec.width, "spec": spec.to_dict()}


def certainty(draws: Scores, places: Sequence[int]) -> list[tuple[float | None, float | None]]:
    """Standard error of a mean score, and its chance to be among the best 5 %.

    Draws are sampled with replacement, and all means computed anew.  The chance is the share of the
    samples in which an architecture is among the best 5 % of those with a score, at least one;
    those of equal scores are equally likely to be.

    Args:
        draws: scores [draws, n], higher is better; those whose mean is not finite are left out.
        places: of architectures with a finite mean.

    Returns:
        Standard error and chance of each place; None with one draw.
    """
    n_draws = len(draws)
    if n_draws < 2:
        return [(None, None) for _ in places]
    with np.errstate(over="ignore"):
        errors = draws[:, places].std(axis=0, ddof=1) / math.sqrt(n_draws)
    defined = draws[:, np.isfinite(mean_of(draws))]
    n = defined.shape[1]
    samples = multiplicities(n_draws, _SEED) / n_draws
    chances = np.zeros(len(places))
    for part in np.array_split(samples, math.ceil(SAMPLES * n / _AT_ONCE)):
        means, chosen = part @ defined, part @ draws[:, places]
        for place, own in enumerate(chosen.T[:, :, None]):
            margin = TIED * np.abs(own)
            better = (means > own + margin).sum(axis=1)
            tied = (np.abs(means - own) <= margin).sum(axis=1)
            free = max(n // _ONE_IN, 1) - better
            chances[place] += np.clip(free / tied, 0, 1).sum()
    return list(zip(errors.tolist(), (chances / SAMPLES).tolist(), strict=True))
