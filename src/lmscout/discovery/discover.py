"""Discovery: choose the best proxy of a space on one split, report it on another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import (
    Assessment,
    assess,
    assess_baselines,
    baselines_json,
    beats,
    number_json,
)
from lmscout.discovery.exhaustive import SpaceRanking, rank_space
from lmscout.discovery.splits import Split, split_benchmark
from lmscout.errors import LmscoutError
from lmscout.proxies import Proxy, Space, evaluate, format_proxy
from lmscout.ranking import kendall, spearman
from lmscout.stages import Progress, Stages
from lmscout.statistics import Batch, Statistics, Workers, collect

STATISTICS, RANKING = "statistics", "ranking"


@dataclass(frozen=True)
class Discovery:
    """What a search over a space found.

    Attributes:
        benchmark: the benchmark's name.
        metric: what its quality is.
        n_architectures: how many it holds.
        split: which of them the choice saw.
        space: the proxies searched.
        ranking: every proxy on the search split.
        proxy: the one chosen.
        sign: 1, or -1 where the proxy falls with quality; fixed on the search split.
        search: Spearman's ρ and Kendall's τ-b of sign × proxy on the search split.
        test: the same and more on the test split.
        baselines: the configuration baselines on the test split.
        seconds: by stage.
        statistics: the file of statistics used.
    """

    benchmark: str
    metric: str
    n_architectures: int
    split: Split
    space: Space
    ranking: SpaceRanking
    proxy: Proxy
    sign: int
    search: tuple[float, float]
    test: Assessment
    baselines: tuple[Assessment, ...]
    seconds: dict[str, float]
    statistics: Path

    @property
    def beats_baselines(self) -> bool:
        """Whether the test ρ is above that of every configuration baseline."""
        return beats(self.test, self.baselines)

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        rho, tau = self.search
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "n_architectures": self.n_architectures,
            "n_search": len(self.split.search),
            "n_test": len(self.split.test),
            "space": self.space.name,
            "aggregations": list(self.space.aggregations),
            "n_proxies": self.space.size,
            "n_distinct": self.ranking.n_distinct,
            "n_undefined": self.ranking.n_undefined,
            "best": {
                "proxy": format_proxy(self.proxy),
                "sign": self.sign,
                "search": {"spearman": number_json(rho), "kendall": number_json(tau)},
                "test": self.test.to_json(),
            },
            "beats_baselines": self.beats_baselines,
            "baselines": baselines_json(self.baselines),
            "seconds": self.seconds,
        }


def discover(
    benchmark: Benchmark,
    space: Space,
    *,
    search: int,
    seed: int,
    cache: Path,
    batch: Batch | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> Discovery:
    """Rank every proxy of a space on the search split and judge the best on the test split.

    Args:
        benchmark: architectures with measured quality.
        space: the proxies.
        search: how many architectures the choice sees.
        seed: of the split; the models' weights do not depend on it.
        cache: where statistics are kept.
        batch: what the models read.
        workers: how the statistics are spread over processes.
        progress: called with a stage's name, what is done of it, and its size.

    Returns:
        The discovery.

    Raises:
        LmscoutError: the split does not fit the benchmark, the cache cannot be written, or
            no proxy of the space ranks the search split.
    """
    split = split_benchmark(benchmark.specs, search=search, seed=seed)
    stages = Stages(progress)
    with stages(STATISTICS) as told:
        statistics = collect(
            benchmark.specs,
            space.chains,
            name=cache_name(benchmark.name),
            folder=cache,
            batch=batch,
            workers=workers,
            progress=told,
        )
    with stages(RANKING) as told:
        rows = split.search
        ranking = rank_space(
            space,
            lambda name, chain: statistics.branch(name, chain)[rows],
            statistics.depth[rows],
            benchmark.quality[rows],
            progress=told,
        )
    try:
        proxy = space.proxy(ranking.best())
    except ValueError as error:
        raise LmscoutError(
            f"{benchmark.name}: {error}; is the quality the same for all of them?"
        ) from error
    scores = proxy_scores(proxy, statistics)
    quality = benchmark.quality
    sign = 1 if spearman(scores[rows], quality[rows]) >= 0 else -1
    signed = sign * scores
    test = benchmark.subset(split.test)
    return Discovery(
        benchmark=benchmark.name,
        metric=benchmark.metric,
        n_architectures=len(benchmark),
        split=split,
        space=space,
        ranking=ranking,
        proxy=proxy,
        sign=sign,
        search=(spearman(signed[rows], quality[rows]), kendall(signed[rows], quality[rows])),
        test=assess(format_proxy(proxy), signed[split.test], test),
        baselines=assess_baselines(test),
        seconds=stages.seconds,
        statistics=statistics.path,
    )


def proxy_scores(proxy: Proxy, statistics: Statistics) -> npt.NDArray[np.float64]:
    """Scores of an expression on every architecture whose statistics were collected."""
    return evaluate(proxy, statistics.branch, statistics.depth)


def cache_name(benchmark: str) -> str:
    """A benchmark's name as the beginning of a file's name."""
    tail = benchmark.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in tail)
