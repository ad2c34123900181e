"""Selection of an architecture by a proxy on a benchmark, where every quality is known: regret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.benchmarks.limits import LATENCY, Limit, keeps_all, nothing_within
from lmscout.discovery.assessment import Points, SavedSpec, SignedProxy, baseline_scores
from lmscout.discovery.design import (
    CHOICES,
    TIED,
    Choice,
    Untrained,
    architecture_json,
    certainty,
    latency_among,
    limits_saved,
)
from lmscout.discovery.scorer import Scorer, ScorerOptions, Scores, cache_name, mean_of
from lmscout.discovery.splits import Indices
from lmscout.errors import LmscoutError
from lmscout.metrics import equivalent_trials, true_ranks
from lmscout.progress import Progress, StageProgress, Stages
from lmscout.proxies import has_seen
from lmscout.results import Result
from lmscout.statistics.workers import worker_processes

AT_RANDOM, BEST_DRAWN = "one at random", "the best drawn"


@dataclass(frozen=True)
class Pick:
    """Rank and regret of one way to select among the architectures within the limit."""

    name: str
    rank: float  # true rank of its choice, 1 is the best; the mean over tied choices
    top: float  # that rank as a share of the architectures within the limits
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
        limit: parameters, at most; None for no such limit.
        seed: of the draw.
        weights: draws of initial weights over which scores are averaged.
        n_within: architectures within the limits.
        n_drawn: those of them that were drawn and scored.
        n_undefined: those of the drawn without a finite score.
        pick: the proxy's choice.
        baselines: choices of the configuration baselines among the same drawn ones.
        best_drawn: the best of the drawn: the choice of a perfect proxy.
        at_random: a random architecture.
        identifier: of the architecture chosen; of tied ones, the first drawn.
        spec: the architecture.
        quality: its measured quality.
        best_quality: the best within the limits.
        seconds: by stage.
        points: the drawn ones; None in a result of an earlier version.
        max_macs: multiply-adds of a token in the blocks, at most; None for no such limit.
        max_latency: milliseconds, at most; None for no such limit.
        choices: the five of the best scores, `spec` first; fewer if there are fewer, none in a
            result of an earlier version.
    """

    benchmark: str
    metric: str
    proxy: SignedProxy
    limit: int | None
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
    max_macs: int | None = None
    max_latency: float | None = None
    choices: tuple[Choice, ...] = ()

    @property
    def hardest(self) -> Pick:
        """The baseline with the best choice."""
        return min(self.baselines, key=lambda one: one.rank)

    @property
    def against_hardest(self) -> str:
        """How the proxy's choice compares with that of the best baseline, in words."""
        own, other = self.pick.rank, self.hardest.rank
        return "better than" if own < other else "as good as" if own == other else "worse than"

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
            **self.limits_json,
            **{name: getattr(self, name) for name in figures},
            "pick": self.pick.to_json(),
            "baselines": [one.to_json() for one in self.baselines],
            "best_drawn": self.best_drawn.to_json(),
            "at_random": self.at_random.to_json(),
            "architecture": self.identifier,
            "quality": self.quality,
            "best_quality": self.best_quality,
            **architecture_json(self.spec),
            "choices": [one.to_json() for one in self.choices],
            "seconds": self.seconds,
        }


@worker_processes()
def pick(
    benchmark: Benchmark,
    proxy: SignedProxy,
    *,
    limits: tuple[Limit, ...],
    evaluations: int,
    seed: int,
    weights: int = 1,
    progress: Progress | None = None,
    **options: Unpack[ScorerOptions],
) -> Selection:
    """Select among architectures of known quality by a proxy; see `lmscout.design`.

    So many architectures within the limits are drawn and scored, or all if there are fewer.  The
    models' weights do not depend on the seed.  LmscoutError if no architecture is within the
    limits, the cache cannot be written, or none of those drawn has a score.
    """
    stages = Stages(progress)
    if any(one.name == LATENCY for one in limits):
        with stages("latencies") as update:
            within = rows_within(benchmark, limits, update)
    else:
        within = rows_within(benchmark, limits)
    drawn = np.random.default_rng(seed).permutation(within)[:evaluations]
    in_order = np.sort(drawn)  # one cache file for all seeds that draw everything
    with stages("scores") as update:
        name = f"{cache_name(benchmark.name)}-design"
        scorer = Scorer(benchmark.specs, name, **options).subset(in_order)
        draws = proxy.sign * scorer.drawn_scores([proxy.name], weights, update)[proxy.name]
    scores = np.full(len(benchmark), np.nan)
    scores[in_order] = mean_of(draws)
    tied = chosen(scores, drawn)
    if not len(tied):
        raise LmscoutError(
            f"{proxy.name} gives none of {len(drawn)} architectures of {benchmark.name} a score; "
            "try another proxy"
        )
    row, quality = int(tied[0]), benchmark.quality
    ranks = dict(zip(within.tolist(), true_ranks(quality[within]).tolist(), strict=True))
    best = ordered(scores, drawn)[:CHOICES].tolist()
    sure = certainty(draws, np.searchsorted(in_order, best).tolist())
    return Selection(
        benchmark=benchmark.name,
        metric=benchmark.metric,
        proxy=proxy,
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
        choices=tuple(
            Choice(
                benchmark.specs[one],
                proxy.sign * float(scores[one]),
                *figures,
                latency_among(limits, benchmark.specs[one]),
                benchmark.identifiers[one],
                ranks[one],
            )
            for one, figures in zip(best, sure, strict=True)
        ),
        **limits_saved(limits),
    )


def rows_within(
    benchmark: Benchmark, limits: Sequence[Limit], progress: StageProgress | None = None
) -> Indices:
    """The rows of the architectures within limits; LmscoutError if none is."""
    kept = []
    for done, spec in enumerate(benchmark.specs, start=1):
        kept.append(keeps_all(limits, spec))
        if progress:
            progress(done, len(benchmark))
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise nothing_within(benchmark.name, limits, benchmark.specs)
    return rows


def chosen(scores: Scores, drawn: Indices) -> Indices:
    """The drawn rows with the highest finite score [n], in the order of the draw."""
    defined = drawn[np.isfinite(scores[drawn])]
    if not len(defined):
        return defined
    best = scores[defined].max()
    tied: Indices = defined[scores[defined] >= best - TIED * abs(best)]
    return tied


def ordered(scores: Scores, drawn: Indices) -> Indices:
    """The drawn rows by their score [n], those of `chosen` first; of equal ones the first drawn."""
    tied = chosen(scores, drawn)
    others = drawn[np.isfinite(scores[drawn]) & ~np.isin(drawn, tied)]
    return np.concatenate([tied, others[np.argsort(-scores[others], kind="stable")]])


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
