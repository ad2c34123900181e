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
from lmscout.discovery.discover import Discovery
from lmscout.discovery.judge import Judgement
from lmscout.discovery.run_folder import check_run_folder, run_folder, write_json
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
    folder: Path,
    benchmarks: Sequence[Benchmark],
    settings: DeepSettings,
    *,
    search: Sequence[int],
    seed: int,
) -> None:
    """Open the run folder of a discovery in the deep space, new or to be continued.

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
    }
    path = folder / SETTINGS
    if not path.is_file():
        check_run_folder(folder)
        folder.mkdir(exist_ok=True)
        write_json(path, told)
    begun = json.loads(path.read_text("utf-8"))
    for name, value in told.items():
        if begun.get(name) != value:
            raise LmscoutError(
                f"run folder {folder} holds a search with {name} {begun.get(name)}, not {value}: "
                "name another with --out"
            )
    if (folder / RESULT).exists():
        raise LmscoutError(f"run folder {folder} holds a finished search: name another with --out")


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
