"""What a proxy's pick is truly worth: on a benchmark, where every quality is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import SignedProxy, baseline_scores
from lmscout.discovery.design import mean_scores
from lmscout.discovery.discover import cache_name
from lmscout.errors import LmscoutError
from lmscout.metrics import equivalent_trials, true_ranks
from lmscout.models import ArchitectureSpec, LanguageModel, spec_from_dict
from lmscout.progress import Progress, Stages
from lmscout.proxies import has_seen
from lmscout.results import Result, SavedAs
from lmscout.statistics import Batch, Workers
from lmscout.statistics.workers import worker_processes

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

READING = "reading"
AT_RANDOM, BEST_DRAWN = "one at random", "the best drawn"
_TIED = 1e-12  # relative: as the rank correlations have it


@dataclass(frozen=True)
class Pick:
    """What one way to choose comes to, among the architectures within the limit.

    Attributes:
        name: of the way.
        rank: true rank of what it chooses, 1 is the best; the mean over those that it cannot
            distinguish.
        top: that rank as a share of the architectures within the limit.
        regret: the best quality less that of what it chooses, likewise.
        n_tied: how many it cannot distinguish.
        trials: the fewest architectures trained at random whose best is expected to be as good.
    """

    name: str
    rank: float
    top: float
    regret: float
    n_tied: int
    trials: int

    def to_json(self) -> dict[str, object]:
        """The figures by name."""
        return {
            "name": self.name,
            "rank": self.rank,
            "top": self.top,
            "regret": self.regret,
            "n_tied": self.n_tied,
            "random_trials": self.trials,
        }


@dataclass(frozen=True, repr=False)
class Selection(Result):
    """A proxy's choice among drawn architectures of a benchmark, and the truth about it.

    Attributes:
        benchmark: the benchmark's name.
        metric: what its quality is.
        proxy: what chose.
        limit: parameters, at most.
        seed: of the draw.
        weights: draws of initial weights over which scores are averaged.
        n_within: architectures within the limit.
        n_drawn: those of them that were drawn, and read.
        n_undefined: those of the drawn that have no finite score.
        pick: the proxy's choice.
        baselines: those of the configuration baselines, among the same drawn ones.
        best_drawn: the best of the drawn: what a perfect proxy would choose.
        at_random: an architecture at random.
        identifier: of the architecture chosen; of tied ones, the first drawn.
        spec: the architecture.
        quality: its measured quality.
        best_quality: the best within the limit.
        seconds: by stage.
    """

    benchmark: str
    metric: str
    proxy: SignedProxy
    limit: int
    seed: int
    weights: int
    n_within: int
    n_drawn: int
    n_undefined: int
    pick: Pick
    baselines: tuple[Pick, ...]
    best_drawn: Pick
    at_random: Pick
    identifier: str
    spec: Annotated[ArchitectureSpec, SavedAs(lambda one: one.to_dict(), spec_from_dict)]
    quality: float
    best_quality: float
    seconds: dict[str, float]

    @property
    def hardest(self) -> Pick:
        """The baseline of the best choice."""
        return min(self.baselines, key=lambda one: one.rank)

    @property
    def seen(self) -> bool:
        """Whether the search that found the proxy saw a part of the benchmark."""
        return has_seen(self.proxy.name, self.benchmark)

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
        """One row per way to select: the proxy, the baselines, at random, the best drawn."""
        ways = (self.pick, *self.baselines, self.at_random, self.best_drawn)
        return [one.to_json() for one in ways]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "proxy": self.proxy.name,
            "sign": self.proxy.sign,
            "seen": self.seen,
            "max_params": self.limit,
            "seed": self.seed,
            "weights": self.weights,
            "n_within": self.n_within,
            "n_drawn": self.n_drawn,
            "n_undefined": self.n_undefined,
            "pick": self.pick.to_json(),
            "baselines": [one.to_json() for one in self.baselines],
            "best_drawn": self.best_drawn.to_json(),
            "at_random": self.at_random.to_json(),
            "architecture": self.identifier,
            "quality": self.quality,
            "best_quality": self.best_quality,
            "params": self.spec.parameters(),
            "depth": self.spec.depth,
            "width": self.spec.width,
            "spec": self.spec.to_dict(),
            "seconds": self.seconds,
        }


@worker_processes()
def pick(
    benchmark: Benchmark,
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
) -> Selection:
    """Let a proxy choose among architectures of known quality, and say what the choice is worth.

    Args:
        benchmark: architectures with measured quality.
        proxy: what chooses.
        limit: parameters of the architectures, at most, embeddings and all.
        evaluations: architectures within the limit that are drawn and read; all if there are
            not as many.
        seed: of the draw; the models' weights do not depend on it.
        weights: draws of initial weights and data over which scores are averaged.
        cache: where scores are kept.
        batch: what the models read.
        workers: how the reading is spread over processes.
        progress: called with a stage's name, what is done of it, and its size.

    Raises:
        LmscoutError: no architecture is within the limit, the cache cannot be written, or the
            proxy gives none of those drawn a score.
    """
    within = rows_within(benchmark, limit)
    drawn = np.random.default_rng(seed).permutation(within)[:evaluations]
    in_order = np.sort(drawn)  # so that all of them are one file of the cache at any seed
    stages = Stages(progress)
    with stages(READING) as update:
        read = mean_scores(
            [benchmark.specs[row] for row in in_order],
            proxy.name,
            weights=weights,
            name=f"{cache_name(benchmark.name)}-design",
            folder=cache,
            batch=batch,
            workers=workers,
            progress=update,
        )
    scores = np.full(len(benchmark), np.nan)
    scores[in_order] = proxy.sign * read
    tied = chosen(scores, drawn)
    if not len(tied):
        raise LmscoutError(
            f"{proxy.name} gives none of {len(drawn)} architectures of {benchmark.name} a score; "
            "try another proxy"
        )
    row, quality = int(tied[0]), benchmark.quality
    return Selection(
        benchmark=benchmark.name,
        metric=benchmark.metric,
        proxy=proxy,
        limit=limit,
        seed=seed,
        weights=weights,
        n_within=len(within),
        n_drawn=len(drawn),
        n_undefined=int((~np.isfinite(scores[drawn])).sum()),
        pick=truth(str(proxy), quality, within, tied),
        baselines=tuple(
            truth(name, quality, within, chosen(values, drawn))
            for name, values in baseline_scores(benchmark).items()
        ),
        best_drawn=truth(BEST_DRAWN, quality, within, chosen(quality, drawn)),
        at_random=truth(AT_RANDOM, quality, within, within),
        identifier=benchmark.identifiers[row],
        spec=benchmark.specs[row],
        quality=float(quality[row]),
        best_quality=float(quality[within].max()),
        seconds=stages.seconds,
    )


def rows_within(benchmark: Benchmark, limit: int) -> Indices:
    """The rows of the architectures within a limit of parameters.

    Raises:
        LmscoutError: there is none; names the smallest of all.
    """
    parameters = np.array([spec.parameters() for spec in benchmark.specs])
    within = np.flatnonzero(parameters <= limit)
    if not len(within):
        raise LmscoutError(
            f"no architecture of {benchmark.name} has {limit:,} parameters or fewer: the "
            f"smallest has {parameters.min():,}"
        )
    return within


def chosen(scores: Scores, drawn: Indices) -> Indices:
    """The drawn rows of the highest score, in the order of the draw; none without a finite one.

    Args:
        scores: [n] one a row of the benchmark, higher is better.
        drawn: the rows to choose from.
    """
    defined = drawn[np.isfinite(scores[drawn])]
    if not len(defined):
        return defined
    best = scores[defined].max()
    tied: Indices = defined[scores[defined] >= best - _TIED * abs(best)]
    return tied


def truth(name: str, quality: Scores, within: Indices, tied: Indices) -> Pick:
    """What a choice is worth.

    Args:
        name: of what chose.
        quality: [n] of the benchmark's rows.
        within: the rows that keep the limit, which the choice is ranked among.
        tied: the rows chosen, each as likely as the others.
    """
    ranks = true_ranks(quality[within])
    places = np.isin(within, tied)
    rank = float(ranks[places].mean())
    return Pick(
        name=name,
        rank=rank,
        top=rank / len(within),
        regret=float(quality[within].max() - quality[tied].mean()),
        n_tied=len(tied),
        trials=equivalent_trials(ranks, rank),
    )
