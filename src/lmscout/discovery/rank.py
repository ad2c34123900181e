"""Rank given proxies, of the literature or written by a user, on a whole benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Unpack

import pyarrow as pa
import pyarrow.parquet as pq

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import (
    FALLING,
    Assessment,
    SignedProxy,
    assess,
    assess_baselines,
    signed_proxy,
)
from lmscout.discovery.exhaustive import SCORES
from lmscout.discovery.scorer import Scorer, ScorerOptions, Scores, cache_name, run_settings
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
from lmscout.runs import Run, kept_result
from lmscout.statistics.workers import worker_processes


@dataclass(frozen=True, repr=False)
class RankResult(Result):
    """Proxies and configuration baselines, assessed on all architectures of a benchmark.

    The figures of a proxy whose search used a part of the benchmark are optimistic; such a proxy
    is marked as seen.

    Attributes:
        benchmark: the benchmark's name.
        metric: name of its quality.
        n_architectures: number of its architectures.
        proxies: one entry per proxy, in the order given.
        baselines: the configuration baselines.
        seconds: by stage.
        scores: proxy's name or text -> [architectures] float64, higher is better; empty in a
            loaded result.
    """

    benchmark: str
    metric: str
    n_architectures: int
    proxies: tuple[Assessment, ...]
    baselines: tuple[Assessment, ...]
    seconds: dict[str, float]
    scores: Annotated[dict[str, Scores], NotSaved] = field(default_factory=dict)

    def seen(self, name: str) -> bool:
        """Whether the search that found a proxy used a part of this benchmark."""
        return has_seen(name.removeprefix(FALLING), self.benchmark)

    def rows(self) -> list[dict[str, Any]]:
        """One row per proxy and configuration baseline, with intervals."""
        kinds = (("proxy", self.proxies), ("baseline", self.baselines))
        return [{**one.row(), "kind": kind} for kind, some in kinds for one in some]

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
    out: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[ScorerOptions],
) -> RankResult:
    """Score every architecture of a benchmark by each proxy and correlate with quality.

    All architectures are used, as nothing is chosen; a proxy keeps the sign that it was published
    with or is given.  Without proxies the whole catalog is ranked.  The result of a finished run in
    the folder is loaded.  LmscoutError if a proxy is unknown or malformed, or the cache or the
    folder cannot be written.
    """
    signed = [signed_proxy(text) for text in proxies or [one.name for one in CATALOG]]
    settings = run_settings(benchmark, seed, options, proxies=list(map(str, signed)))
    scorer = Scorer(benchmark.specs, cache_name(benchmark.name), seed=seed, **options)
    compute = partial(_ranked, benchmark, signed, scorer, Stages(progress))
    save = partial(save_rank, benchmark=benchmark)
    return kept_result(out, "rank", settings, RankResult, compute, save)


def save_rank(run: Run, result: RankResult, benchmark: Benchmark) -> None:
    """Write the folder of a run atomically."""
    columns = {
        "architecture": pa.array(benchmark.identifiers),
        "quality": pa.array(benchmark.quality),
        **{name: pa.array(scores) for name, scores in result.scores.items()},
    }
    # An open file: pyarrow takes no path with letters that the locale does not have.
    with run.saving(result) as draft, (draft / SCORES).open("wb") as sink:
        pq.write_table(pa.table(columns), sink, compression="zstd")


def _ranked(
    benchmark: Benchmark, signed: Sequence[SignedProxy], scorer: Scorer, stages: Stages
) -> RankResult:
    resolved = {one.name: resolve(one.name) for one in signed}
    published_chains = set(published().chains)
    from_statistics = {  # these share the cached statistics of `discover`
        name: one
        for name, one in resolved.items()
        if isinstance(one, Expression)
        and (form := as_published(one)) is not None
        and {branch.chain for branch in form.branches} <= published_chains
    }
    others = [name for name in resolved if name not in from_statistics]
    scores: dict[str, Scores] = {}
    if from_statistics:
        with stages("statistics") as update:
            statistics = scorer.statistics(published().chains, update)
        for name, expression in from_statistics.items():
            scores[name] = evaluate(expression, statistics.branch, statistics.depth)
    if others:
        with stages("scores") as update:
            scores |= scorer.scores(others, update)
    by_text = {str(one): one.sign * scores[one.name] for one in signed}
    return RankResult(
        benchmark=benchmark.name,
        metric=benchmark.metric,
        n_architectures=len(benchmark),
        proxies=tuple(assess(name, own, benchmark) for name, own in by_text.items()),
        baselines=assess_baselines(benchmark),
        scores=by_text,
        seconds=stages.seconds,
    )
