"""Runs on disk: settings, every score as Parquet, and the result as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import lmscout
from lmscout.benchmarks import Benchmark
from lmscout.discovery.deep.discovery import DeepDiscovery
from lmscout.discovery.deep.settings import DeepSettings
from lmscout.discovery.discover import Discovery, cache_name
from lmscout.discovery.judge import Judgement
from lmscout.discovery.run_folder import (
    check_run_folder,
    default_run_folder,
    run_folder,
    write_json,
)
from lmscout.discovery.scores_table import write_scores
from lmscout.errors import LmscoutError

SETTINGS, SCORES, RESULT = "settings.json", "scores.parquet", "result.json"


def save_discovery(folder: Path, result: Discovery, *, seed: int) -> None:
    """Write a discovery's run folder, whole or not at all.

    Raises:
        LmscoutError: the folder is not empty or cannot be written.
    """
    with run_folder(folder) as draft:
        write_json(
            draft / SETTINGS,
            {
                "command": "discover",
                "lmscout": lmscout.__version__,
                "benchmark": result.benchmark,
                "space": result.space.name,
                "aggregations": list(result.space.aggregations),
                "search": len(result.split.search),
                "seed": seed,
                "search_rows": result.split.search.tolist(),
                "statistics": str(result.statistics),
            },
        )
        write_scores(draft / SCORES, result.space, result.ranking)
        write_json(draft / RESULT, result.to_json())


def begin_deep(
    folder: Path | None,
    benchmarks: Sequence[Benchmark],
    settings: DeepSettings,
    *,
    search: Sequence[int],
    seed: int,
    device: str = "cpu",
) -> Path:
    """Open the run folder of a discovery in the deep space, new or to be continued.

    Args:
        folder: of the run; None for the newest under runs/ that holds the same search and has
            not ended, or a new one if there is none.
        benchmarks: what is searched on.
        settings: of the search.
        search: architectures of each that the choice may see.
        seed: of the split.
        device: that computes the statistics; its kind counts, not its number.

    Returns:
        The folder.

    Raises:
        LmscoutError: it holds something else, a search with other settings, or one that has
            ended; or it cannot be written.
    """
    told = {
        "command": "discover",
        "lmscout": lmscout.__version__,
        "benchmarks": [one.name for one in benchmarks],
        "space": "deep",
        **asdict(settings),
        "search": list(search),
        "seed": seed,
        "device": device.partition(":")[0],
    }
    if folder is None:
        label = "-".join(cache_name(one.name) for one in benchmarks)
        fresh = default_run_folder(f"discover-{label}-deep-{seed}")
        begun = (one for one in fresh.parent.glob("discover-*") if _settings_of(one) == told)
        unfinished = [one for one in begun if not (one / RESULT).exists()]
        folder = max(unfinished, key=lambda one: one.stat().st_mtime, default=fresh)
    path = folder / SETTINGS
    if not path.is_file():
        check_run_folder(folder)
        folder.mkdir(exist_ok=True)
        write_json(path, told)
    there = _settings_of(folder)
    if there is None:
        raise LmscoutError(
            f"run folder {folder} holds a damaged {SETTINGS}: name another with --out"
        )
    for name, value in told.items():
        if there.get(name) != value:
            raise LmscoutError(
                f"run folder {folder} holds a search with {name} {there.get(name)}, not {value}: "
                "name another with --out"
            )
    if (folder / RESULT).exists():
        raise LmscoutError(f"run folder {folder} holds a finished search: name another with --out")
    return folder


def _settings_of(folder: Path) -> dict[str, object] | None:
    """The settings of a run; None where there are none that can be read."""
    try:
        settings = json.loads((folder / SETTINGS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return {"device": "cpu", **settings} if isinstance(settings, dict) else None


def end_deep(folder: Path, result: DeepDiscovery) -> None:
    """Write what a discovery in the deep space came to."""
    write_json(folder / RESULT, result.to_json())


def save_judgement(folder: Path, result: Judgement, benchmark: Benchmark, *, seed: int) -> None:
    """Write a judgement's run folder, whole or not at all.

    Raises:
        LmscoutError: the folder is not empty or cannot be written.
    """
    with run_folder(folder) as draft:
        write_json(
            draft / SETTINGS,
            {
                "command": "rank",
                "lmscout": lmscout.__version__,
                "benchmark": result.benchmark,
                "proxies": [one.name for one in result.proxies],
                "seed": seed,
            },
        )
        columns = {
            "architecture": pa.array(benchmark.identifiers),
            "quality": pa.array(benchmark.quality),
            **{name: pa.array(scores) for name, scores in result.scores.items()},
        }
        pq.write_table(pa.table(columns), draft / SCORES, compression="zstd")
        write_json(draft / RESULT, result.to_json())
