"""Ageing evolution over architectures: who is read next, told what the last ones scored.

Regularized evolution (Real et al., arXiv 1802.01548): the best of a random sample of the
population is mutated, the child joins, and the oldest goes, however good it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from lmscout.architectures import ArchitectureSpec
from lmscout.benchmarks.limit import LimitedSpace

POPULATION, SAMPLE = 50, 10
_TRIES = 20  # mutations, and then draws, until one is new


class AgeingEvolution:
    """A source of architectures within a limit, no two alike."""

    def __init__(
        self, space: LimitedSpace, seed: int, *, population: int = POPULATION, sample: int = SAMPLE
    ) -> None:
        """Begin with nobody.

        Args:
            space: what is searched.
            seed: of draws, samples and mutations.
            population: how many live at once.
            sample: of how many the best becomes a parent.
        """
        self._space, self._rng = space, np.random.default_rng(seed)
        self._known: set[ArchitectureSpec] = set()
        self._living: deque[tuple[float, ArchitectureSpec]] = deque(maxlen=population)
        self._sample = sample
        self._drawn = 0

    @property
    def drawn(self) -> int:
        """Architectures asked before any was a mutation of another."""
        return self._drawn

    def ask(self, count: int) -> list[ArchitectureSpec]:
        """Architectures to read: draws until the population is full, then children.

        Fewer than `count` where hardly anything is left that was not asked before.
        """
        asked = []
        for _ in range(count):
            one = self._new()
            if one is None:
                break
            self._known.add(one)
            if len(self._living) < (self._living.maxlen or 0):
                self._drawn += 1
            asked.append(one)
        return asked

    def tell(self, asked: Sequence[ArchitectureSpec], scores: Sequence[float]) -> None:
        """What became of them: those with a finite score, higher is better, join."""
        for spec, score in zip(asked, scores, strict=True):
            if np.isfinite(score):
                self._living.append((score, spec))

    def _new(self) -> ArchitectureSpec | None:
        if len(self._living) == self._living.maxlen:
            for _ in range(_TRIES):
                child = self._space.mutate(self._parent(), self._rng)
                if child not in self._known:
                    return child
        for _ in range(_TRIES):
            drawn = self._space.draw(self._rng)
            if drawn not in self._known:
                return drawn
        return None

    def _parent(self) -> ArchitectureSpec:
        places = self._rng.choice(len(self._living), self._sample, replace=False)
        return max((self._living[place] for place in places), key=lambda one: one[0])[1]
