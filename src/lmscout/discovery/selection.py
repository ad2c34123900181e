"""Selection of an architecture by a proxy on a benchmark, where every quality is known: regret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import Points, SavedSpec, SignedProxy, baseline_scores
from lmscout.discovery.design import Untrained, architecture_json
from lmscout.discovery.scorer import Scorer, ScorerOptions, Scores, cache_name
from lmscout.discovery.splits import Indices
from lmscout.errors import LmscoutError
from lmscout.metrics import equivalent_trials, true_ranks
from lmscout.progress import Progress, Stages
from lmscout.proxies import has_seen
from lmscout.results import Result
from lmscout.statistics.workers import worker_processes

AT_RANDOM, BEST_DRAWN = "one at random", "the best drawn"
_TIED = 1e-12  # relative, as in the rank correlations


@dataclass(frozen=True)
class Pick:
    """Rank and regret of one way to select among the architectures within the limit."""

    name: str
    rank: float  # true rank of its choice, 1 is the best; the mean over tied choices
    top: float  # that rank as a share of the architectures within the limit
    regret: float  # the best quality less that of its choice; the mean over tied choices
    n_tied: int  # number of tied choices
    trials: int  # the fewest random trials whose best is expected to be as good

    def to_json(self) -> dict[str, object]:
        """The figures by name."""
        return {"random_trials" if name == "trials" else name: v for name, v in vars(self).items()}


@dataclass(frozen=True, repr=False)
class Selection(Untrained, Result):
    """A proxy's choice among drawn architectures of a benchmark, and its true rank.

    Attributes:
        benchmark: the benchmark's name.
        metric: name of its quality.
        proxy: that selects.
        limit: parameters, at most.
        seed: of the draw.
        weights: draws of initial weights over which scores are averaged.
        n_within: architectures within the limit.
        n_drawn: those of them that were drawn and scored.
        n_undefined: those of the drawn without a finite score.
        pick: the proxy's choice.
        baselines: choices of the configuration baselines among the same drawn ones.
        best_drawn: the best of the drawn: the choice of a perfect proxy.
        at_random: a random architecture.
        identifier: of the architecture chosen; of tied ones, the first drawn.
        spec: the architecture.
        quality: its measured quality.
        best_quality: the best within the limit.
        seconds: by stage.
        points: the drawn ones; None in a result of an earlier version.
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
    spec: SavedSpec
    quality: float
    best_quality: float
    seconds: dict[str, float]
    points: Points | None = None

    @property
    def hardest(self) -> Pick:
        """The baseline with the best choice."""
        return min(self.baselines, key=lambda one: one.rank)

    @property
    def seen(self) -> bool:
        """Whether the search that found the proxy used a part of the benchmark."""
        return has_seen(self.proxy.name, self.benchmark)

    def rows(self) -> list[dict[str, Any]]:
        """One row per way to select: the proxy, the baselines, at random, the best drawn."""
        ways = (self.pick, *self.baselines, self.at_random, self.best_drawn)
        return [one.to_json() for one in ways]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        figures = ("seed", "weights", "n_within", "n_drawn", "n_undefined")
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "proxy": self.proxy.name,
            "sign": self.proxy.sign,
            "seen": self.seen,
            "max_params": self.limit,
            **{name: getattr(self, name) for name in figures},
            "pick": self.pick.to_json(),
            "baselines": [one.to_json() for one in self.baselines],
            "best_drawn": self.best_drawn.to_json(),
            "at_random": self.at_random.to_json(),
            "architecture": self.identifier,
            "quality": self.quality,
            "best_quality": self.best_quality,
            **architecture_json(self.spec),
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
    progress: Progress | None = None,
    **options: Unpack[ScorerOptions],
) -> Selection:
    """Select among architectures of known quality by a proxy; see `lmscout.design`.

    So many architectures within the limit are drawn and scored, or all if there are fewer.  The
    models' weights do not depend on the seed.

    Raises:
        LmscoutError: no architecture is within the limit, the cache cannot be written, or the
            proxy gives none of those drawn a score.
    """
    within = rows_within(benchmark, limit)
    drawn = np.random.default_rng(seed).permutation(within)[:evaluations]
    in_order = np.sort(drawn)  # one cache file for all seeds that draw everything
    stages = Stages(progress)
    with stages("scores") as update:
        name = f"{cache_name(benchmark.name)}-design"
        scorer = Scorer(benchmark.specs, name, **options).subset(in_order)
        values = scorer.mean_scores(proxy.name, weights, update)
    scores = np.full(len(benchmark), np.nan)
    scores[in_order] = proxy.sign * values
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
        pick=assess_pick(str(proxy), quality, within, tied),
        baselines=tuple(
            assess_pick(name, quality, within, chosen(own, drawn))
            for name, own in baseline_scores(benchmark).items()
        ),
        best_drawn=assess_pick(BEST_DRAWN, quality, within, chosen(quality, drawn)),
        at_random=assess_pick(AT_RANDOM, quality, within, within),
        identifier=benchmark.identifiers[row],
        spec=benchmark.specs[row],
        quality=float(quality[row]),
        best_quality=float(quality[within].max()),
        seconds=stages.seconds,
        points=Points.of(benchmark.subset(in_order), scores[in_order]),
    )


def rows_within(benchmark: Benchmark, limit: int) -> Indices:
    """The rows of the architectures within a limit of parameters; LmscoutError if none is."""
    parameters = np.array([spec.parameters() for spec in benchmark.specs])
    within = np.flatnonzero(parameters <= limit)
    if not len(within):
        raise LmscoutError(
            f"no architecture of {benchmark.name} has {limit:,} parameters or fewer: the "
            f"smallest has {parameters.min():,}"
        )
    return within


def chosen(scores: Scores, drawn: Indices) -> Indices:
    """The drawn rows with the highest finite score [n], in the order of the draw."""
    defined = drawn[np.isfinite(scores[drawn])]
    if not len(defined):
        return defined
    best = scores[defined].max()
    tied: Indices = defined[scores[defined] >= best - _TIED * abs(best)]
    return tied


def assess_pick(name: str, quality: Scores, within: Indices, tied: Indices) -> Pick:
    """Rank and regret of a choice among the rows within the limit; tied ones are equally likely."""
    ranks = true_ranks(quality[within])
    rank = float(ranks[np.isin(within, tied)].mean())
    return Pick(
        name=name,
        rank=rank,
        top=rank / len(within),
        regret=float(quality[within].max() - quality[tied].mean()),
        n_tied=len(tied),
        trials=equivalent_trials(ranks, rank),
    )
