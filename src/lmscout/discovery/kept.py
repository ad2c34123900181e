"""Discovery with a run folder: load the result of a finished run, or compute it and keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import signed_proxy
from lmscout.discovery.discover import Discovery, Read, discover
from lmscout.discovery.explain import Explanation, explain
from lmscout.discovery.rank import RankResult, rank_proxies
from lmscout.discovery.saved_run import begin_deep, benchmark_digest, save_discovery, save_rank
from lmscout.discovery.scorer import ScorerOptions
from lmscout.discovery.splits import search_size
from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings, discover_deep
from lmscout.progress import Progress
from lmscout.proxies import CATALOG, Space, resolve
from lmscout.runs import Run, kept_result
from lmscout.statistics import Workers

Source = Callable[[], tuple[Benchmark, Read | None]]


def kept_discovery(
    benchmark: Benchmark | str,
    space: Space,
    *,
    search: int | None,
    seed: int,
    out: Path | None,
    progress: Progress | None,
    source: Source | None = None,
    overrides: dict[str, str | None] | None = None,
    **options: Unpack[ScorerOptions],
) -> Discovery:
    """Rank a space exhaustively, see `discover`.

    Args:
        benchmark: the benchmark; the name of one that `source` loads.
        space: the proxies.
        search: number of search architectures; None for the default of `search_size`.
        seed: of the split.
        out: run folder; None to keep nothing.
        progress: called with stage, steps done and all steps.
        source: loads the benchmark, and what gives its statistics, unless the run has finished.
        overrides: further settings of the run.
        options: how architectures are evaluated, see `ScorerOptions`.
    """
    if isinstance(benchmark, Benchmark):
        search = search_size(search, len(benchmark))
    settings: dict[str, object] = {
        "space": space.name,
        "benchmark": benchmark if isinstance(benchmark, str) else benchmark.name,
        "aggregations": space.aggregations,
        "search": search,
        "seed": seed,
        "device": _workers(options).device_kind,
        **(overrides or {}),
    }
    if isinstance(benchmark, Benchmark):
        settings["benchmark_sha256"] = benchmark_digest(benchmark)

    def compute() -> Discovery:
        found, read = source() if source else (benchmark, None)
        assert isinstance(found, Benchmark)
        size = search_size(search, len(found))
        return discover(
            found, space, search=size, seed=seed, progress=progress, read=read, **options
        )

    return kept_result(out, "discover", settings, Discovery, compute, save_discovery)


def kept_deep_discovery(
    benchmarks: Sequence[Benchmark],
    settings: DeepSettings,
    *,
    search: Sequence[int | None],
    seed: int,
    out: Path | None,
    progress: Progress | None,
    **options: Unpack[ScorerOptions],
) -> tuple[Run, DeepDiscovery]:
    """Search the deep space, see `discover_deep`.

    Args:
        benchmarks: architectures with measured quality.
        settings: of the search.
        search: number of search architectures of each; None for the default of `search_size`.
        seed: of the splits and the searches.
        out: run folder; None for the one that `begin_deep` then gives.
        progress: called with stage, steps done and all steps.
        options: how architectures are evaluated, see `ScorerOptions`.

    Returns:
        The run, and its result.
    """
    sizes = [search_size(*one) for one in zip(search, map(len, benchmarks), strict=True)]
    device = _workers(options).device
    run = begin_deep(out, benchmarks, settings, search=sizes, seed=seed, device=device)
    if run.finished:
        return run, run.load(DeepDiscovery)
    result = discover_deep(
        benchmarks,
        settings,
        search=sizes,
        seed=seed,
        folder=run.folder,
        progress=progress,
        **options,
    )
    run.end(result)
    return run, result


def kept_rank(
    benchmark: Benchmark,
    proxies: Sequence[str],
    *,
    seed: int,
    out: Path | None,
    progress: Progress | None,
    **options: Unpack[ScorerOptions],
) -> RankResult:
    """Rank given proxies, see `rank_proxies`; the whole catalog if none is given."""
    signed = [str(signed_proxy(name)) for name in proxies or [one.name for one in CATALOG]]
    settings = {
        "benchmark": benchmark.name,
        "benchmark_sha256": benchmark_digest(benchmark),
        "proxies": signed,
        "seed": seed,
        "device": _workers(options).device_kind,
    }
    compute = partial(
        rank_proxies, benchmark, list(proxies), seed=seed, progress=progress, **options
    )
    save = partial(save_rank, benchmark=benchmark)
    return kept_result(out, "rank", settings, RankResult, compute, save)


def kept_explanation(
    benchmark: Benchmark,
    proxy: str,
    *,
    seed: int,
    out: Path | None,
    progress: Progress | None,
    **options: Unpack[ScorerOptions],
) -> Explanation:
    """Explain a proxy on a benchmark, see `explain`."""
    resolve(proxy)  # an unknown name is refused before anything is computed
    settings = {
        "proxy": proxy,
        "benchmark": benchmark.name,
        "benchmark_sha256": benchmark_digest(benchmark),
        "seed": seed,
        "device": _workers(options).device_kind,
    }
    compute = partial(explain, benchmark, proxy, seed=seed, progress=progress, **options)
    return kept_result(out, "explain", settings, Explanation, compute)


def _workers(options: ScorerOptions) -> Workers:
    return options.get("workers") or Workers()
