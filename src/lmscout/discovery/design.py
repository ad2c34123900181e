"""Design: regularized evolution of an architecture for a proxy's score within a limit.

Regularized evolution over architectures: who is read next, told what the last ones scored.

Regularized evolution (Real et al., arXiv 1802.01548): the best of a random sample of the
population is mutated, the child joins, and the oldest goes, however good it was.

A proxy's scores averaged over initial weights: what they owe to one draw is evened out.

Design: the architecture of a space that a proxy scores best, within a limit of parameters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks.mutation import LimitedSpace, limited
from lmscout.benchmarks.space import Space
from lmscout.discovery.assessment import SignedProxy
from lmscout.errors import LmscoutError
from lmscout.models import ArchitectureSpec, LanguageModel, spec_from_dict
from lmscout.progress import Progress, StageProgress, Stages, part_of
from lmscout.results import Result, SavedAs
from lmscout.statistics import Batch, Workers, score_proxies
from lmscout.statistics.workers import worker_processes

POPULATION, SAMPLE = 50, 10
_TRIES = 20  # mutations, and then draws, until one is new


class RegularizedEvolution:
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


def mean_scores(
    specs: Sequence[ArchitectureSpec],
    proxy: str,
    *,
    weights: int,
    name: str,
    folder: Path,
    batch: Batch | None = None,
    workers: Workers | None = None,
    progress: StageProgress | None = None,
) -> npt.NDArray[np.float64]:
    """Score architectures several times, each with other initial weights and other data.

    Args:
        specs: the architectures.
        proxy: a catalog name or an expression.
        weights: how many draws of them; the first is what `score_proxies` reads by itself.
        name: of the files in which scores are kept.
        folder: where these are.
        batch: what the models read the first time.
        workers: how the reading is spread over processes.
        progress: told of every model that is read.

    Returns:
        [architectures] float64, the mean over the draws; not finite where one of them is not.

    Raises:
        LmscoutError: there is no draw, the proxy is unknown, or the folder cannot be written.
    """
    if weights < 1:
        raise LmscoutError(f"{weights} draws of initial weights: there has to be one at least")
    batch = batch or Batch()
    draws = [
        score_proxies(
            specs,
            [proxy],
            name=name,
            folder=folder,
            seed=draw,
            batch=replace(batch, seed=batch.seed + draw),
            workers=workers,
            progress=part_of(progress, draw * len(specs), weights * len(specs)),
        )[proxy]
        for draw in range(weights)
    ]
    with np.errstate(invalid="ignore"):  # of infinities of both signs
        mean: npt.NDArray[np.float64] = np.mean(draws, axis=0)
    return mean


READING = "reading"
ASKED_AT_ONCE = 16  # whatever the workers, so that the result is theirs at any number


@dataclass(frozen=True, repr=False)
class Design(Result):
    """What a search for an architecture found.

    Attributes:
        space: the space's name.
        proxy: what was maximised.
        limit: parameters, at most.
        seed: of the search.
        weights: draws of initial weights over which scores are averaged.
        spec: the architecture found.
        score: what the proxy gives it, as it stands, without the sign.
        n_read: different architectures read.
        n_undefined: those of them to which the proxy gives no finite score.
        drawn_score: the best score among the architectures that were drawn, before any was
            changed.
        seconds: by stage.
    """

    space: str
    proxy: SignedProxy
    limit: int
    seed: int
    weights: int
    spec: Annotated[ArchitectureSpec, SavedAs(lambda one: one.to_dict(), spec_from_dict)]
    score: float
    n_read: int
    n_undefined: int
    drawn_score: float | None
    seconds: dict[str, float]

    def to_model(self, seed: int = 0) -> LanguageModel:
        """The architecture as an untrained PyTorch model in eval mode.

        Args:
            seed: of its weights.
        """
        return self.spec.build(seed)

    def save_pretrained(self, folder: Path | str, seed: int = 0) -> None:
        """Write the untrained architecture as a folder that transformers loads.

        Args:
            folder: made if it does not exist.
            seed: of its weights.

        Raises:
            LmscoutError: transformers has no class for it, as for FlexiBERT's encoders.
        """
        from lmscout.models.pretrained import save_untrained  # transformers is slow to import

        save_untrained(self.spec, folder, seed)

    def rows(self) -> list[dict[str, Any]]:
        """One row: the architecture found."""
        return [{name: value for name, value in self.to_json().items() if name != "seconds"}]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            "space": self.space,
            "proxy": self.proxy.name,
            "sign": self.proxy.sign,
            "max_params": self.limit,
            "seed": self.seed,
            "weights": self.weights,
            "n_read": self.n_read,
            "n_undefined": self.n_undefined,
            "drawn_score": self.drawn_score,
            "score": self.score,
            "params": self.spec.parameters(),
            "depth": self.spec.depth,
            "width": self.spec.width,
            "spec": self.spec.to_dict(),
            "seconds": self.seconds,
        }


@worker_processes()
def design(
    space: Space,
    proxy: SignedProxy,
    *,
    limit: int,
    evaluations: int,
    seed: int,
    weights: int = 1,
    cache: Path,
    batch: Batch | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> Design:
    """Search a space for the architecture that a proxy scores best.

    What is asked next depends on the seed and on the scores alone, and scores are kept, so a
    search that was stopped goes on with the same call.

    Args:
        space: what is searched.
        proxy: what is maximised.
        limit: parameters of the model, at most, embeddings and all.
        evaluations: different architectures that are read; fewer where the space has not as
            many.
        seed: of the search; the models' weights do not depend on it.
        weights: draws of initial weights and data over which scores are averaged.
        cache: where scores are kept.
        batch: what the models read.
        workers: how the reading is spread over processes.
        progress: called with a stage's name, what is done of it, and its size.

    Returns:
        The architecture of the best score; of several, the one of the fewest parameters.

    Raises:
        LmscoutError: the space has nothing within the limit, the cache cannot be written, or
            the proxy gives no architecture a score.
    """
    # A quarter of few readings is still enough to choose parents from.
    population = min(POPULATION, max(SAMPLE, evaluations // 4))
    engine = RegularizedEvolution(limited(space, limit), seed, population=population)
    found: dict[ArchitectureSpec, float] = {}
    stages = Stages(progress)
    with stages(READING) as update:
        while len(found) < evaluations:
            asked = engine.ask(min(ASKED_AT_ONCE, evaluations - len(found)))
            if not asked:
                break
            scores = mean_scores(
                asked,
                proxy.name,
                weights=weights,
                name=f"design-{space.name}",
                folder=cache,
                batch=batch,
                workers=workers,
                progress=part_of(update, len(found) * weights, evaluations * weights),
            )
            signed = (proxy.sign * scores).tolist()
            engine.tell(asked, signed)
            found.update(zip(asked, signed, strict=True))
    defined = {spec: score for spec, score in found.items() if np.isfinite(score)}
    if not defined:
        raise LmscoutError(
            f"{proxy.name} gives none of {len(found)} architectures of the space {space.name} a "
            "score; try another proxy"
        )
    spec = max(defined, key=lambda one: (defined[one], -one.parameters()))
    drawn = [found[one] for one in list(found)[: engine.drawn] if one in defined]
    return Design(
        space=space.name,
        proxy=proxy,
        limit=limit,
        seed=seed,
        weights=weights,
        spec=spec,
        score=proxy.sign * defined[spec],
        n_read=len(found),
        n_undefined=len(found) - len(defined),
        drawn_score=proxy.sign * max(drawn) if drawn else None,
        seconds=stages.seconds,
    )
