"""Judge given proxies, of the literature or written by a user, on a whole benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import FALLING, Assessment, assess, assess_baselines, signed_proxy
from lmscout.discovery.discover import STATISTICS, cache_name
from lmscout.progress import Progress, Stages
from lmscout.proxies import (
    CATALOG,
    Expression,
    as_published,
    evaluate,
    has_seen,
    published,
    resolve,
)
from lmscout.results import NotSaved, Result
from lmscout.statistics import Batch, Workers, collect, score_proxies
from lmscout.statistics.workers import worker_processes

SCORES = "scores"


@dataclass(frozen=True, repr=False)
class RankResult(Result):
    """Proxies and configuration baselines, judged on all architectures of a benchmark.

    A proxy whose search saw a part of the benchmark is flattered by its figures here, and is
    marked as seen.

    Attributes:
        benchmark: the benchmark's name.
        metric: what its quality is.
        n_architectures: how many it holds.
        proxies: one entry a proxy, in the order asked for.
        baselines: the configuration baselines.
        seconds: by stage.
        scores: proxy's name or text -> [architectures] float64, higher is better; empty in a
            result that was read again.
    """

    benchmark: str
    metric: str
    n_architectures: int
    proxies: tuple[Assessment, ...]
    baselines: tuple[Assessment, ...]
    seconds: dict[str, float]
    scores: Annotated[dict[str, npt.NDArray[np.float64]], NotSaved] = field(default_factory=dict)

    def seen(self, name: str) -> bool:
        """Whether the search that found a proxy saw a part of this benchmark."""
        return has_seen(name.removeprefix(FALLING), self.benchmark)

    def rows(self) -> list[dict[str, Any]]:
        """One row per proxy and configuration baseline, with intervals."""
        kinds = (("proxy", self.proxies), ("baseline", self.baselines))
        return [{"kind": kind, **one.row()} for kind, some in kinds for one in some]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "n_architectures": self.n_architectures,
            "proxies": [
                {"proxy": one.name, **one.to_json(), "seen": self.seen(one.name)}
                for one in self.proxies
            ],
            "baselines": [{"proxy": one.name, **one.to_json()} for one in self.baselines],
            "seconds": self.seconds,
        }


@worker_processes()
def rank_proxies(
    benchmark: Benchmark,
    proxies: Sequence[str] = (),
    *,
    seed: int,
    cache: Path,
    batch: Batch | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> RankResult:
    """Score every architecture of a benchmark by each proxy and correlate with quality.

    No choice is made here, so all architectures are reported on, and a proxy keeps the sign
    that it was published with, or is given.

    Args:
        benchmark: architectures with measured quality.
        proxies: catalog names or expressions, with a minus sign before them where lower scores
            are better; empty for the whole catalog.
        seed: of the models' weights.
        cache: where statistics are kept.
        batch: what the models read.
        workers: how the work is spread over processes.
        progress: called with a stage's name, what is done of it, and its size.

    Returns:
        The judgement.

    Raises:
        LmscoutError: a proxy is unknown or malformed, or the cache cannot be written.
    """
    asked = [signed_proxy(text) for text in proxies or [one.name for one in CATALOG]]
    wanted = {one.name: resolve(one.name) for one in asked}
    published_chains = set(published().chains)
    collected = {  # what reads nothing but published statistics shares them with `discover`
        name: one
        for name, one in wanted.items()
        if isinstance(one, Expression)
        and (form := as_published(one)) is not None
        and {branch.chain for branch in form.branches} <= published_chains
    }
    others = [name for name in wanted if name not in collected]
    label = cache_name(benchmark.name)
    scores: dict[str, npt.NDArray[np.float64]] = {}
    stages = Stages(progress)
    if collected:
        with stages(STATISTICS) as update:
            statistics = collect(
                benchmark.specs,
                published().chains,
                name=label,
                folder=cache,
                seed=seed,
                batch=batch,
                workers=workers,
                progress=update,
            )
        for name, expression in collected.items():
            scores[name] = evaluate(expression, statistics.branch, statistics.depth)
    if others:
        with stages(SCORES) as update:
            scores |= score_proxies(
                benchmark.specs,
                others,
                name=label,
                folder=cache,
                seed=seed,
                batch=batch,
                workers=workers,
                progress=update,
            )
    signed = {str(one): one.sign * scores[one.name] for one in asked}
    return RankResult(
        benchmark=benchmark.name,
        metric=benchmark.metric,
        n_architectures=len(benchmark),
        proxies=tuple(assess(name, own, benchmark) for name, own in signed.items()),
        baselines=assess_baselines(benchmark),
        scores=signed,
        seconds=stages.seconds,
    )
