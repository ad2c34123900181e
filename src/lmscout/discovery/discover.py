"""Discover: choose the best proxy of a space on the search split, report it on the test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Unpack

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import (
    Assessment,
    Compared,
    Points,
    SavedTree,
    SignedProxy,
    assess,
    compare_baselines,
    number_json,
)
from lmscout.discovery.exhaustive import SCORES, SpaceRanking, rank_space, write_scores
from lmscout.discovery.scorer import Scorer, ScorerOptions, Scores, cache_name, run_settings
from lmscout.discovery.splits import Split, search_size, split_benchmark
from lmscout.errors import LmscoutError
from lmscout.metrics import Interval, kendall, spearman
from lmscout.progress import Progress, StageProgress, Stages
from lmscout.proxies import Expression, Space, evaluate, format_expression
from lmscout.proxies import space as space_called
from lmscout.results import NotSaved, Result, SavedAs
from lmscout.runs import Run, kept_result
from lmscout.statistics import Statistics
from lmscout.statistics.workers import worker_processes

Read = Callable[[Sequence[tuple[str, ...]], StageProgress | None], Statistics]
Source = Callable[[], tuple[Benchmark, Read | None]]

TOP = 10  # formulas that are listed
_TRIED = 500  # of the best, until `TOP` different orders are found
_SAME_ORDER = 1 - 1e-9  # |ρ| of proxies with one order


@dataclass(frozen=True, repr=False)
class Finding(Compared):
    """A proxy that was chosen on the search split, assessed on the test split.

    Attributes:
        benchmark: the benchmark's name.
        metric: name of its quality.
        n_architectures: number of its architectures.
        split: search and test architectures.
        sign: 1, or -1 if the proxy decreases with quality on the search split.
        search: Spearman's ρ and Kendall's τ-b of sign × proxy on the search split.
        test: its assessment on the test split; its name is the proxy's text.
        baselines: the configuration baselines on the test split.
        ahead: test ρ less that of the best of them, paired.
        points: all architectures; None in a result of an earlier version.
    """

    benchmark: str
    metric: str
    n_architectures: int
    split: Split
    sign: int
    search: tuple[float, float]
    test: Assessment
    baselines: tuple[Assessment, ...]
    ahead: Interval
    points: Points | None = field(default=None, kw_only=True)

    @property
    def best(self) -> str:
        """The proxy, with a minus sign before it if lower scores are better."""
        return self.test.name if self.sign > 0 else f"-{self.test.name}"

    @property
    def assessed(self) -> Assessment:
        """The proxy's assessment on the test split."""
        return self.test

    def benchmark_json(self) -> dict[str, object]:
        """The benchmark and the sizes of its splits."""
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "n_architectures": self.n_architectures,
            "n_search": len(self.split.search),
            "n_test": len(self.split.test),
        }

    def choice_json(self) -> dict[str, object]:
        """The proxy, and its comparison with the baselines."""
        rho, tau = self.search
        return {
            "best": {
                "proxy": self.test.name,
                "sign": self.sign,
                "search": {"spearman": number_json(rho), "kendall": number_json(tau)},
                "test": self.test.to_json(),
            },
            **self.comparison_json(),
            "baselines": [
                {
                    "name": baseline.name,
                    **{name: number_json(one.value) for name, one in baseline.intervals.items()},
                }
                for baseline in self.baselines
            ],
        }


def assess_choice(
    benchmark: Benchmark, split: Split, text: str, searched: Scores, held_out: Scores
) -> Finding:
    """Fix a proxy's sign by its scores of the search split, and assess those of the test split."""
    quality, test = benchmark.quality[split.search], benchmark.subset(split.test)
    sign = 1 if spearman(searched, quality) >= 0 else -1
    baselines, ahead = compare_baselines(sign * held_out, test)
    scores = np.full(len(benchmark), np.nan)
    scores[split.search], scores[split.test] = sign * searched, sign * held_out
    return Finding(
        benchmark.name,
        benchmark.metric,
        len(benchmark),
        split,
        sign,
        (spearman(sign * searched, quality), kendall(sign * searched, quality)),
        assess(text, sign * held_out, test),
        baselines,
        ahead,
        points=Points.of(benchmark, scores),
    )


@dataclass(frozen=True)
class Leader:
    """One of the best proxies of a space, with its sign on the search split."""

    proxy: SignedProxy
    search: float  # ρ on the search split, with that sign
    test: float  # ρ on the test split, with that sign

    def to_json(self) -> dict[str, object]:
        """The expression, its sign, and both correlations; null where one is not defined."""
        rho = {"search": number_json(self.search), "test": number_json(self.test)}
        return {"proxy": self.proxy.name, "sign": self.proxy.sign, **rho}


SavedSpace = Annotated[
    Space,
    SavedAs(
        lambda one: {"name": one.name, "aggregations": list(one.aggregations)},
        lambda saved: space_called(saved["name"], tuple(saved["aggregations"])),
    ),
]


@dataclass(frozen=True, repr=False)
class Discovery(Finding, Result):
    """The best proxy of a space that was ranked exhaustively.

    Attributes:
        space: the proxies ranked.
        n_distinct: number of different score vectors among them.
        n_undefined: number of proxies that rank nothing.
        proxy: the best one.
        seconds: by stage.
        statistics: the cache file of the statistics.
        top: the best on the search split, with different orders of its architectures if there are
            enough.
        ranking: every proxy on the search split; None in a loaded result.
    """

    space: SavedSpace
    n_distinct: int
    n_undefined: int
    proxy: SavedTree
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
    benchmark: Benchmark | str,
    space: Space,
    *,
    search: int | None,
    seed: int,
    out: Path | None = None,
    progress: Progress | None = None,
    source: Source | None = None,
    overrides: Mapping[str, str | None] | None = None,
    **options: Unpack[ScorerOptions],
) -> Discovery:
    """Rank every proxy of a space on the search split and assess the best on the test split.

    The seed is that of the split.  A benchmark that is a name is loaded by `source`, with what
    gives the statistics of its architectures under chains if they are not built from their specs.
    The result of a finished run in the folder is loaded; `overrides` are further settings of it.
    LmscoutError if the split does not fit the benchmark, the cache or the folder cannot be written,
    or no proxy of the space ranks the search split.
    """
    if isinstance(benchmark, Benchmark):
        search = search_size(search, len(benchmark))
    of_space = {"space": space.name, "aggregations": space.aggregations}
    settings = run_settings(
        benchmark, seed, options, **of_space, search=search, **(overrides or {})
    )

    def compute() -> Discovery:
        found, read = source() if source else (benchmark, None)
        assert isinstance(found, Benchmark)
        size = search_size(search, len(found))
        split = split_benchmark(found.specs, search=size, seed=seed)
        return _ranked(found, space, split, read, Stages(progress), options)

    return kept_result(out, "discover", settings, Discovery, compute, save_discovery)


def save_discovery(run: Run, result: Discovery) -> None:
    """Write the folder of a run atomically."""
    assert result.ranking is not None
    more = {"search_rows": result.split.search.tolist(), "statistics": str(result.statistics)}
    with run.saving(result, **more) as draft:
        write_scores(draft / SCORES, result.space, result.ranking)


def _ranked(
    benchmark: Benchmark,
    space: Space,
    split: Split,
    read: Read | None,
    stages: Stages,
    options: ScorerOptions,
) -> Discovery:
    with stages("statistics") as update:
        if read is not None:
            statistics = read(space.chains, update)
        else:
            scorer = Scorer(benchmark.specs, cache_name(benchmark.name), **options)
            statistics = scorer.statistics(space.chains, update)
    with stages("ranking") as update:
        rows = split.search
        ranking = rank_space(
            space,
            lambda name, chain: statistics.branch(name, chain)[rows],
            statistics.depth[rows],
            benchmark.quality[rows],
            progress=update,
        )
    try:
        proxy = space.proxy(ranking.best())
    except ValueError as error:
        raise LmscoutError(
            f"{benchmark.name}: {error}; is the quality the same for all of them?"
        ) from error
    scores = proxy_scores(proxy, statistics)
    finding = assess_choice(
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
        top=_top(benchmark, split, space, ranking, statistics),
    )


def _top(
    benchmark: Benchmark, split: Split, space: Space, ranking: SpaceRanking, statistics: Statistics
) -> tuple[Leader, ...]:
    """The best of a space on the search split.

    Proxies with an order that is listed already are left out, unless there are too few others.
    """
    leaders: list[Leader] = []
    same_order: list[Leader] = []
    orders: list[Scores] = []
    for index in islice(ranking.leaders(), _TRIED):
        proxy = space.proxy(index)
        scores = proxy_scores(proxy, statistics)
        searched, held_out = scores[split.search], scores[split.test]
        rho = spearman(searched, benchmark.quality[split.search])
        sign = 1 if rho >= 0 else -1
        test = sign * spearman(held_out, benchmark.quality[split.test])
        one = Leader(SignedProxy(format_expression(proxy), sign), sign * rho, test)
        if any(abs(spearman(searched, other)) >= _SAME_ORDER for other in orders):
            same_order.append(one)
            continue
        leaders.append(one)
        orders.append(searched)
        if len(leaders) == TOP:
            break
    leaders += same_order[: TOP - len(leaders)]
    return tuple(sorted(leaders, key=lambda one: -one.search))


def proxy_scores(proxy: Expression, statistics: Statistics) -> Scores:
    """Scores of a published expression on every architecture of collected statistics."""
    return evaluate(proxy, statistics.branch, statistics.depth)
