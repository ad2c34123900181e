"""Run folders of discovery: load the result of a finished run, or compute it and keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Unpack

import pyarrow as pa
import pyarrow.parquet as pq

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import signed_proxy
from lmscout.discovery.discover import Discovery, Read, discover
from lmscout.discovery.exhaustive import write_scores
from lmscout.discovery.explain import Explanation, explain
from lmscout.discovery.rank import RankResult, rank_proxies
from lmscout.discovery.scorer import ScorerOptions, cache_name
from lmscout.discovery.splits import search_size
from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings, discover_deep
from lmscout.errors import LmscoutError
from lmscout.progress import Progress
from lmscout.proxies import CATALOG, Space, resolve
from lmscout.runs import (
    RESULT,
    Run,
    default_run_folder,
    kept_result,
    open_run,
    read_settings,
    same_settings,
)
from lmscout.statistics import Workers
from lmscout.version import __version__

Source = Callable[[], tuple[Benchmark, Read | None]]

SCORES = "scores.parquet"


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
    """Rank a space exhaustively, see `discover`; without a run folder nothing is kept.

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
    settings = {
        **_settings(benchmark, seed, options),
        "space": space.name,
        "aggregations": space.aggregations,
        "search": search,
        **(overrides or {}),
    }

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
    settings = {**_settings(benchmark, seed, options), "proxies": signed}
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
    settings = {**_settings(benchmark, seed, options), "proxy": proxy}
    compute = partial(explain, benchmark, proxy, seed=seed, progress=progress, **options)
    return kept_result(out, "explain", settings, Explanation, compute)


def _settings(benchmark: Benchmark | str, seed: int, options: ScorerOptions) -> dict[str, object]:
    """Settings of every run; a benchmark that is not loaded has no digest."""
    settings: dict[str, object] = {"seed": seed, "device": _workers(options).device_kind}
    if isinstance(benchmark, str):
        return {**settings, "benchmark": benchmark}
    return {**settings, "benchmark": benchmark.name, "benchmark_sha256": benchmark.digest}


def _workers(options: ScorerOptions) -> Workers:
    return options.get("workers") or Workers()


def save_discovery(run: Run, result: Discovery) -> None:
    """Write the folder of a discovery atomically."""
    assert result.ranking is not None
    more = {"search_rows": result.split.search.tolist(), "statistics": str(result.statistics)}
    with run.saving(result, **more) as draft:
        write_scores(draft / SCORES, result.space, result.ranking)


def save_rank(run: Run, result: RankResult, benchmark: Benchmark) -> None:
    """Write the folder of `rank` atomically."""
    columns = {
        "architecture": pa.array(benchmark.identifiers),
        "quality": pa.array(benchmark.quality),
        **{name: pa.array(scores) for name, scores in result.scores.items()},
    }
    # An open file: pyarrow takes no path with letters that the locale does not have.
    with run.saving(result) as draft, (draft / SCORES).open("wb") as sink:
        pq.write_table(pa.table(columns), sink, compression="zstd")


def begin_deep(
    folder: Path | None,
    benchmarks: Sequence[Benchmark],
    settings: DeepSettings,
    *,
    search: Sequence[int],
    seed: int,
    device: str = "cpu",
) -> Run:
    """Open the run folder of a search of the deep space: new, to be continued, or finished.

    Without a folder it is the newest under runs/ that holds the same unfinished search, or a new
    one.  Of the device, its kind counts and not its number.

    Raises:
        LmscoutError: the folder holds something else, or a search with other settings or of
            another version; or it cannot be written.
    """
    wanted = {
        "space": "deep",
        "benchmarks": [one.name for one in benchmarks],
        "benchmarks_sha256": [one.digest for one in benchmarks],
        **asdict(settings),
        "search": list(search),
        "seed": seed,
        "device": device.partition(":")[0],
    }
    if folder is None:
        label = "-".join(cache_name(one.name) for one in benchmarks)
        fresh = default_run_folder(f"discover-{label}-deep-{seed}")
        unfinished = [
            one
            for one in fresh.parent.glob("discover-*")
            if _of_this_version(there := read_settings(one))
            and same_settings(there, wanted)
            and not (one / RESULT).exists()
        ]
        folder = max(unfinished, key=lambda one: one.stat().st_mtime, default=fresh)
    run = open_run(folder, "discover", wanted)
    if run.begun and not run.finished and not _of_this_version(read_settings(folder)):
        raise LmscoutError(
            f"{run.name} holds an unfinished search of another version of lmscout: name "
            "another folder"
        )
    if not run.begun:
        run.begin()
    return run


def _of_this_version(settings: object) -> bool:
    """Whether this version began a search; another one would continue it differently."""
    found = settings.get("environment") if isinstance(settings, dict) else None
    return isinstance(found, dict) and found.get("lmscout") == __version__
