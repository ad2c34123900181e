"""Arguments of the public functions as objects, and `discover` by the kind of its space.

Whatever is given as a string may be given as the object that it names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lmscout.errors import LmscoutError
from lmscout.progress import shown_progress

if TYPE_CHECKING:
    from lmscout.benchmarks import Benchmark
    from lmscout.discovery.discover import Discovery
    from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings
    from lmscout.evaluation import Text
    from lmscout.proxies import Space
    from lmscout.runs import Run

Path_ = str | os.PathLike[str]
Progress = bool | Callable[[str, int, int], None] | None
STUDY, DEEP = "study:", "deep"

_Function = TypeVar("_Function", bound=Callable[..., Any])


def benchmark_named(benchmark: str | Benchmark) -> Benchmark:
    """A benchmark, or the one of a name."""
    from lmscout.benchmarks import load

    return load(benchmark) if isinstance(benchmark, str) else benchmark


def text_named(source: str | Text | None) -> Text | None:
    """A text, or the one of a file or of the Hub."""
    from lmscout.evaluation import read_text

    return read_text(source) if isinstance(source, str) else source


def several(given: str | Sequence[str]) -> list[str]:
    """One name or several as a list."""
    return [given] if isinstance(given, str) else list(given)


def path_of(given: Path_ | None) -> Path | None:
    """A path; None stays None."""
    return None if given is None else Path(given)


def names_config(function: _Function) -> _Function:
    """Decorate `prune`: name the config where an argument is one of its fields."""

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        from lmscout.pruning.config import PruneConfig

        for name in named.keys() - signature(function).parameters.keys():
            field = {"worse_by": "max_increase"}.get(name, name)
            if field in PruneConfig.__dataclass_fields__:
                raise LmscoutError(
                    f"prune: {name} is no argument; give config=lmscout.PruneConfig({field}=...)"
                )
        return function(*given, **named)

    return cast(_Function, call)


def run_settings(
    workers: int, backend: str, device: str, cluster: str | None, seed: int, out: Path_ | None
) -> Any:
    """Keyword arguments that the functions of `lmscout.discovery` share, see `lmscout.rank`.

    LmscoutError if the workers or the device cannot be used.
    """
    from lmscout.benchmarks.loading import cache_directory
    from lmscout.statistics import Workers

    cache = cache_directory() / "statistics"
    spread = Workers(workers, backend, device, cluster)
    return {"workers": spread, "seed": seed, "cache": cache, "out": path_of(out)}


def discover_ranked(
    benchmark: str | Benchmark | Sequence[str | Benchmark],
    space: str | Space,
    aggregations: Sequence[str],
    *,
    n_search: int | Sequence[int] | None,
    model: str | None,
    calibration: str | None,
    device: str,
    progress: Progress,
    **common: Any,
) -> Discovery:
    """Rank a space exhaustively on a benchmark or on the pairs of a pruning run.

    See `lmscout.discover`; LmscoutError if an argument is invalid, or a benchmark cannot be read.
    """
    from lmscout.discovery import discover
    from lmscout.discovery.splits import search_sizes
    from lmscout.proxies import space as space_called

    benchmarks = _benchmarks(benchmark)
    if len(benchmarks) != 1:
        raise LmscoutError(f"several benchmarks at once are for space {DEEP!r}: give one")
    (one,), (size,) = benchmarks, search_sizes(n_search, 1)
    study = _is_study(one)
    if study and device != "cpu":
        raise LmscoutError(
            f"device {device}: not for {STUDY}RUN, whose statistics are computed on the CPU; "
            "leave device out"
        )
    if study and common.get("cluster") is not None:
        raise LmscoutError(
            f"cluster {common['cluster']}: not for {STUDY}RUN, whose statistics this process "
            "computes; leave cluster out"
        )
    if not study and (model or calibration):
        raise LmscoutError(f"{one}: model and calibration are for {STUDY}RUN")
    settings = run_settings(device=device, **common)
    overrides = {"model": model, "calibration": calibration} if study else {}

    def source() -> tuple[Benchmark, Any]:
        from lmscout.pruning.pairs_benchmark import study_benchmark

        found = study_benchmark(str(one).removeprefix(STUDY), settings["cache"], **overrides)
        return found.benchmark, found.read

    with shown_progress(progress) as advance:
        return discover(
            one if study else benchmark_named(one),
            space_called(space, tuple(aggregations)) if isinstance(space, str) else space,
            search=size,
            source=source if study else None,
            overrides=overrides,
            progress=advance,
            **settings,
        )


def discover_deep(
    benchmark: str | Benchmark | Sequence[str | Benchmark],
    config: DeepSettings | None,
    *,
    n_search: int | Sequence[int] | None,
    progress: Progress,
    **common: Any,
) -> tuple[Run, DeepDiscovery]:
    """Search the deep space on one benchmark or several: the run and its result.

    See `lmscout.discover`; without `out` the run has a folder under runs/.  LmscoutError if an
    argument is invalid, or a benchmark cannot be read.
    """
    from lmscout.discovery.splits import search_sizes
    from lmscout.discovery.symbolic_search import DeepSettings, kept_deep_discovery

    benchmarks = _benchmarks(benchmark)
    sizes = search_sizes(n_search, len(benchmarks))
    for one in filter(_is_study, benchmarks):
        raise LmscoutError(
            f"{one}: the deep space builds every architecture; {STUDY}RUN has the spaces "
            "published and two-op"
        )
    settings = run_settings(**common)
    loaded = list(map(benchmark_named, benchmarks))
    with shown_progress(progress) as advance:
        return kept_deep_discovery(
            loaded, config or DeepSettings(), search=sizes, progress=advance, **settings
        )


def _benchmarks(given: str | Benchmark | Sequence[str | Benchmark]) -> list[str | Benchmark]:
    from lmscout.benchmarks import Benchmark

    return [given] if isinstance(given, str | Benchmark) else list(given)


def _is_study(benchmark: str | Benchmark) -> bool:
    return isinstance(benchmark, str) and benchmark.startswith(STUDY)
