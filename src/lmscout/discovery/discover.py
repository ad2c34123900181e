"""Discovery: choose the best proxy of a space on one split, report it on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.exhaustive import SpaceRanking, rank_space
from lmscout.discovery.finding import Finding, judge_choice
from lmscout.discovery.splits import split_benchmark
from lmscout.errors import LmscoutError
from lmscout.proxies import Expression, Space, evaluate, format_expression
from lmscout.stages import Progress, StageProgress, Stages
from lmscout.statistics import Batch, Statistics, Workers, collect

Read = Callable[[Sequence[tuple[str, ...]], StageProgress | None], Statistics]

STATISTICS, RANKING = "statistics", "ranking"


@dataclass(frozen=True)
class Discovery(Finding):
    """What a search over a space found.

    Attributes:
        space: the proxies searched.
        ranking: every proxy on the search split.
        proxy: the one chosen.
        seconds: by stage.
        statistics: the file of statistics used.
    """

    space: Space
    ranking: SpaceRanking
    proxy: Expression
    seconds: dict[str, float]
    statistics: Path

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            **self.benchmark_json(),
            "space": self.space.name,
            "aggregations": list(self.space.aggregations),
            "n_proxies": self.space.size,
            "n_distinct": self.ranking.n_distinct,
            "n_undefined": self.ranking.n_undefined,
            **self.choice_json(),
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
    read: Read | None = None,
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
        read: gives the statistics of the benchmark's architectures under chains, where these are
            not built from their specs.

    Returns:
        The discovery.

    Raises:
        LmscoutError: the split does not fit the benchmark, the cache cannot be written, or
            no proxy of the space ranks the search split.
    """
    split = split_benchmark(benchmark.specs, search=search, seed=seed)
    stages = Stages(progress)
    with stages(STATISTICS) as told:
        if read is not None:
            statistics = read(space.chains, told)
        else:
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
    finding = judge_choice(
        benchmark, split, format_expression(proxy), scores[split.search], scores[split.test]
    )
    return Discovery(
        **vars(finding),
        space=space,
        ranking=ranking,
        proxy=proxy,
        seconds=stages.seconds,
        statistics=statistics.path,
    )


def proxy_scores(proxy: Expression, statistics: Statistics) -> npt.NDArray[np.float64]:
    """Scores of a published expression on every architecture whose statistics were collected."""
    return evaluate(proxy, statistics.branch, statistics.depth)


def cache_name(benchmark: str) -> str:
    """A benchmark's name as the beginning of a file's name."""
    tail = benchmark.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in tail)
