"""Discovery: choose the best proxy of a space on one split, report it on another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.asked_proxy import SignedProxy
from lmscout.discovery.assessment import number_json
from lmscout.discovery.exhaustive import SpaceRanking, rank_space
from lmscout.discovery.finding import Finding, judge_choice
from lmscout.discovery.splits import split_benchmark
from lmscout.errors import LmscoutError
from lmscout.proxies import Expression, Space, evaluate, format_expression, parse
from lmscout.proxies import space as space_called
from lmscout.ranking import spearman
from lmscout.results import NotSaved, Result, SavedAs
from lmscout.stages import Progress, StageProgress, Stages
from lmscout.statistics import Batch, Statistics, Workers, collect
from lmscout.statistics.workers import worker_processes

Read = Callable[[Sequence[tuple[str, ...]], StageProgress | None], Statistics]

STATISTICS, RANKING = "statistics", "ranking"
TOP = 10  # formulas that are listed
_TRIED = 500  # of the best, until so many order architectures differently
_SAME_ORDER = 1 - 1e-9  # |ρ| with a listed formula from which on the order is the same


@dataclass(frozen=True)
class Leader:
    """One of the best proxies of a space.

    Attributes:
        proxy: with the sign by which it rises with quality on the search split.
        search: Spearman's ρ on the search split, with that sign.
        test: the same on the test split.
    """

    proxy: SignedProxy
    search: float
    test: float

    def to_json(self) -> dict[str, object]:
        """The expression, its sign, and both correlations; null where one is not defined."""
        return {
            "proxy": self.proxy.name,
            "sign": self.proxy.sign,
            "search": number_json(self.search),
            "test": number_json(self.test),
        }


def _space_written(one: Space) -> dict[str, object]:
    return {"name": one.name, "aggregations": list(one.aggregations)}


def _space_read(saved: Mapping[str, Any]) -> Space:
    return space_called(saved["name"], tuple(saved["aggregations"]))


@dataclass(frozen=True, repr=False)
class Discovery(Finding, Result):
    """What a search over a space found.

    Attributes:
        space: the proxies searched.
        n_distinct: how many different score vectors its proxies have.
        n_undefined: how many of its proxies rank nothing.
        proxy: the one chosen.
        seconds: by stage.
        statistics: the file of statistics used.
        top: the best on the search split, no two of which order its architectures alike where
            there are enough.
        ranking: every proxy on the search split; None in a result that was read again.
    """

    space: Annotated[Space, SavedAs(_space_written, _space_read)]
    n_distinct: int
    n_undefined: int
    proxy: Annotated[Expression, SavedAs(format_expression, parse)]
    seconds: dict[str, float]
    statistics: Path
    top: tuple[Leader, ...]
    ranking: Annotated[SpaceRanking | None, NotSaved] = None

    def rows(self) -> list[dict[str, Any]]:
        """The best proxies, with ρ on the search and on the test split."""
        return [
            {"proxy": str(one.proxy), "search_spearman": one.search, "test_spearman": one.test}
            for one in self.top
        ]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            **self.benchmark_json(),
            "space": self.space.name,
            "aggregations": list(self.space.aggregations),
            "n_proxies": self.space.size,
            "n_distinct": self.n_distinct,
            "n_undefined": self.n_undefined,
            **self.choice_json(),
            "top": [one.to_json() for one in self.top],
            "seconds": self.seconds,
        }


@worker_processes()
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
        n_distinct=ranking.n_distinct,
        n_undefined=ranking.n_undefined,
        ranking=ranking,
        proxy=proxy,
        seconds=stages.seconds,
        statistics=statistics.path,
        top=_top(benchmark, finding, space, ranking, statistics),
    )


def _top(
    benchmark: Benchmark,
    finding: Finding,
    space: Space,
    ranking: SpaceRanking,
    statistics: Statistics,
) -> tuple[Leader, ...]:
    """The best of a space on the search split.

    Those that order its architectures as one listed before are left out, unless there are too few
    others.
    """
    search, test = finding.split.search, finding.split.test
    leaders: list[Leader] = []
    alike: list[Leader] = []
    listed: list[npt.NDArray[np.float64]] = []
    for index in islice(ranking.leaders(), _TRIED):
        proxy = space.proxy(index)
        scores = proxy_scores(proxy, statistics)
        own = scores[search]
        rho = spearman(own, benchmark.quality[search])
        sign = 1 if rho >= 0 else -1
        unseen = sign * spearman(scores[test], benchmark.quality[test])
        one = Leader(SignedProxy(format_expression(proxy), sign), sign * rho, unseen)
        if any(abs(spearman(own, other)) >= _SAME_ORDER for other in listed):
            alike.append(one)
            continue
        leaders.append(one)
        listed.append(own)
        if len(leaders) == TOP:
            break
    leaders += alike[: TOP - len(leaders)]
    return tuple(sorted(leaders, key=lambda one: -one.search))


def proxy_scores(proxy: Expression, statistics: Statistics) -> npt.NDArray[np.float64]:
    """Scores of a published expression on every architecture whose statistics were collected."""
    return evaluate(proxy, statistics.branch, statistics.depth)


def cache_name(benchmark: str) -> str:
    """A benchmark's name as the beginning of a file's name."""
    tail = benchmark.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in tail)
