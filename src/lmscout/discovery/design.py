"""Design: the architecture of a space that a proxy scores best, within a limit of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lmscout.architectures import ArchitectureSpec, LanguageModel, spec_from_dict
from lmscout.benchmarks.limit import limited
from lmscout.benchmarks.space import Space
from lmscout.discovery.ageing import POPULATION, SAMPLE, AgeingEvolution
from lmscout.discovery.asked_proxy import SignedProxy
from lmscout.discovery.mean_scores import mean_scores
from lmscout.errors import LmscoutError
from lmscout.results import Result, SavedAs
from lmscout.stages import Progress, Stages, part_of
from lmscout.statistics import Batch, Workers
from lmscout.statistics.workers import worker_processes

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
    engine = AgeingEvolution(limited(space, limit), seed, population=population)
    found: dict[ArchitectureSpec, float] = {}
    stages = Stages(progress)
    with stages(READING) as told:
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
                progress=part_of(told, len(found) * weights, evaluations * weights),
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
