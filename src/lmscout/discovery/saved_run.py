"""Run folders of `discover` and `rank`: settings, every score as Parquet, the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lmscout.benchmarks import Benchmark
from lmscout.discovery.discover import Discovery
from lmscout.discovery.exhaustive import write_scores
from lmscout.discovery.rank import RankResult
from lmscout.discovery.scorer import cache_name
from lmscout.discovery.symbolic_search import DeepSettings
from lmscout.errors import LmscoutError
from lmscout.runs import RESULT, Run, default_run_folder, open_run, read_settings, same_settings
from lmscout.version import __version__

SCORES = "scores.parquet"


def benchmark_digest(benchmark: Benchmark) -> str:
    """SHA-256 of a benchmark's architectures and their quality."""
    return benchmark.digest


def save_discovery(run: Run, result: Discovery) -> None:
    """Write the folder of a discovery atomically.

    Raises:
        LmscoutError: the folder is not empty or cannot be written.
    """
    assert result.ranking is not None
    more = {"search_rows": result.split.search.tolist(), "statistics": str(result.statistics)}
    with run.saving(result, **more) as draft:
        write_scores(draft / SCORES, result.space, result.ranking)


def save_rank(run: Run, result: RankResult, benchmark: Benchmark) -> None:
    """Write the folder of `rank` atomically.

    Raises:
        LmscoutError: the folder is not empty or cannot be written.
    """
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

    Args:
        folder: of the run; None for the newest under runs/ that holds the same unfinished search,
            or a new one if there is none.
        benchmarks: the benchmarks that are searched on.
        settings: of the search.
        search: number of search architectures of each.
        seed: of the split.
        device: that computes the statistics; its kind counts, not its number.

    Returns:
        The run; its folder holds the settings.

    Raises:
        LmscoutError: the folder holds something else, or a search with other settings or of
            another version; or it cannot be written.
    """
    wanted = {
        "space": "deep",
        "benchmarks": [one.name for one in benchmarks],
        "benchmarks_sha256": list(map(benchmark_digest, benchmarks)),
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
