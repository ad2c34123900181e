"""Discovery with a run folder: load the result of a finished run, or compute it and keep it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import signed_proxy
from lmscout.discovery.discover import Discovery, Read, discover
from lmscout.discovery.explain import Explanation, explain
from lmscout.discovery.rank import RankResult, rank_proxies
from lmscout.discovery.saved_run import begin_deep, benchmark_digest, save_discovery, save_rank
from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings, discover_deep
from lmscout.progress import Progress
from lmscout.proxies import CATALOG, Space, resolve
from lmscout.runs import kept_result
from lmscout.statistics import Workers

Source = Callable[[], tuple[Benchmark, Read | None]]


def kept_discovery(
    benchmark: Benchmark | str,
    space: Space,
    *,
    search: int,
    seed: int,
    cache: Path,
    workers: Workers,
    out: Path | None,
    progress: Progress | None,
    source: Source | None = None,
    moved: dict[str, str | None] | None = None,
) -> Discovery:
    """Rank a space exhaustively, see `discover`.

    Args:
        benchmark: the benchmark; the name of one that `source` loads.
        space: the proxies.
        search: number of search architectures.
        seed: of the split.
        cache: folder of statistics.
        workers: how the statistics are spread over processes.
        out: run folder; None to keep nothing.
        progress: called with stage, steps done and all steps.
        source: loads the benchmark, and what gives its statistics, unless the run has finished.
        moved: further settings of the run.
    """
    settings: dict[str, object] = {
        "space": space.name,
        "benchmark": benchmark if isinstance(benchmark, str) else benchmark.name,
        "aggregations": space.aggregations,
        "search": search,
        "seed": seed,
        "device": workers.device_kind,
        **(moved or {}),
    }
    if isinstance(benchmark, Benchmark):
        settings["benchmark_sha256"] = benchmark_digest(benchmark)

    def compute() -> Discovery:
        found, read = source() if source else (benchmark, None)
        assert isinstance(found, Benchmark)
        return discover(
            found,
            space,
            search=search,
            seed=seed,
            cache=cache,
            workers=workers,
            progress=progress,
            read=read,
        )

    return kept_result(out, "discover", settings, Discovery, compute, save_discovery)


def kept_deep_discovery(
    benchmarks: Sequence[Benchmark],
    settings: DeepSettings,
    *,
    search: Sequence[int],
    seed: int,
    cache: Path,
    workers: Workers,
    out: Path | None,
    progress: Progress | None,
) -> DeepDiscovery:
    """Search the deep space, see `discover_deep`; without a run folder in a temporary one."""
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        run = begin_deep(
            folder, benchmarks, settings, search=search, seed=seed, device=workers.device
        )
        if run.finished:
            return run.load(DeepDiscovery)
        result = discover_deep(
            benchmarks,
            settings,
            search=search,
            seed=seed,
            cache=cache,
            folder=run.folder,
            workers=workers,
            progress=progress,
        )
        run.end(result)
        return result


def kept_rank(
    benchmark: Benchmark,
    proxies: Sequence[str],
    *,
    seed: int,
    cache: Path,
    workers: Workers,
    out: Path | None,
    progress: Progress | None,
) -> RankResult:
    """Rank given proxies, see `rank_proxies`; the whole catalog if none is given."""
    signed = [str(signed_proxy(name)) for name in proxies or [one.name for one in CATALOG]]
    settings = {
        "benchmark": benchmark.name,
        "benchmark_sha256": benchmark_digest(benchmark),
        "proxies": signed,
        "seed": seed,
        "device": workers.device_kind,
    }
    compute = partial(
        rank_proxies,
        benchmark,
        list(proxies),
        seed=seed,
        cache=cache,
        workers=workers,
        progress=progress,
    )
    save = partial(save_rank, benchmark=benchmark)
    return kept_result(out, "rank", settings, RankResult, compute, save)


def kept_explanation(
    benchmark: Benchmark,
    proxy: str,
    *,
    seed: int,
    cache: Path,
    workers: Workers,
    out: Path | None,
    progress: Progress | None,
) -> Explanation:
    """Explain a proxy on a benchmark, see `explain`."""
    resolve(proxy)  # an unknown name is refused before anything is computed
    settings = {
        "proxy": proxy,
        "benchmark": benchmark.name,
        "benchmark_sha256": benchmark_digest(benchmark),
        "seed": seed,
        "device": workers.device_kind,
    }
    compute = partial(
        explain, benchmark, proxy, seed=seed, cache=cache, workers=workers, progress=progress
    )
    return kept_result(out, "explain", settings, Explanation, compute)
