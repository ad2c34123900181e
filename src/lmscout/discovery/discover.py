"""Discover: choose the best proxy of a space on search data, report it on test data.

What every search ends with: one proxy, chosen on one split and judged on another.

Discovery: choose the best proxy of a space on one split, report it on another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import (
    Assessment,
    SignedProxy,
    assess,
    beats,
    beside_baselines,
    hardest,
    lead_json,
    number_json,
)
from lmscout.discovery.exhaustive import SpaceRanking, rank_space
from lmscout.discovery.splits import Split, split_benchmark
from lmscout.errors import LmscoutError
from lmscout.metrics import Interval, kendall, spearman
from lmscout.progress import Progress, StageProgress, Stages
from lmscout.proxies import Expression, Space, evaluate, format_expression, parse
from lmscout.proxies import space as space_called
from lmscout.results import NotSaved, Result, SavedAs
from lmscout.statistics import Batch, Statistics, Workers, collect
from lmscout.statistics.workers import worker_processes

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """A proxy that was chosen, and what it is worth.

    Attributes:
        benchmark: the benchmark's name.
        metric: what its quality is.
        n_architectures: how many it holds.
        split: which of them the choice saw.
        sign: 1, or -1 where the proxy falls with quality; fixed on the search split.
        search: Spearman's ρ and Kendall's τ-b of sign × proxy on the search split.
        test: the same and more on the test split; its name is the proxy's text.
        baselines: the configuration baselines on the test split.
        ahead: by how much its test ρ exceeds that of the best of them, paired.
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

    @property
    def best(self) -> str:
        """The proxy, with a minus sign before it if lower scores are better."""
        return self.test.name if self.sign > 0 else f"-{self.test.name}"

    @property
    def beats_baselines(self) -> bool | None:
        """Whether the test ρ is above that of every configuration baseline, if one has any."""
        return beats(self.test, self.baselines)

    @property
    def hardest(self) -> Assessment:
        """The best of the baselines on the test split."""
        return hardest(self.baselines)

    def benchmark_json(self) -> dict[str, object]:
        """On what it was found."""
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "n_architectures": self.n_architectures,
            "n_search": len(self.split.search),
            "n_test": len(self.split.test),
        }

    def choice_json(self, **more: object) -> dict[str, object]:
        """The proxy, and how it stands to the baselines.

        Args:
            more: what else is known of the proxy.
        """
        rho, tau = self.search
        return {
            "best": {
                "proxy": self.test.name,
                "sign": self.sign,
                **more,
                "search": {"spearman": number_json(rho), "kendall": number_json(tau)},
                "test": self.test.to_json(),
            },
            **lead_json(self.test, self.baselines, self.ahead),
            "baselines": [
                {
                    "name": baseline.name,
                    "spearman": number_json(baseline.agreement.spearman.value),
                    "kendall": number_json(baseline.agreement.kendall.value),
                }
                for baseline in self.baselines
            ],
        }


def assess_choice(
    benchmark: Benchmark, split: Split, text: str, searched: Scores, unseen: Scores
) -> Finding:
    """Fix a chosen proxy's sign on the search split, and judge it on the test split.

    Args:
        benchmark: architectures with measured quality.
        split: which of them the choice saw.
        text: the proxy.
        searched: its scores of the search architectures.
        unseen: its scores of the test architectures.
    """
    quality, test = benchmark.quality[split.search], benchmark.subset(split.test)
    sign = 1 if spearman(searched, quality) >= 0 else -1
    baselines, ahead = beside_baselines(sign * unseen, test)
    return Finding(
        benchmark.name,
        benchmark.metric,
        len(benchmark),
        split,
        sign,
        (spearman(sign * searched, quality), kendall(sign * searched, quality)),
        assess(text, sign * unseen, test),
        baselines,
        ahead,
    )


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
    with stages(STATISTICS) as update:
        if read is not None:
            statistics = read(space.chains, update)
        else:
            statistics = collect(
                benchmark.specs,
                space.chains,
                name=cache_name(benchmark.name),
                folder=cache,
                batch=batch,
                workers=workers,
                progress=update,
            )
    with stages(RANKING) as update:
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
