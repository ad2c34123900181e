"""Arguments of the public functions as objects, the public functions that load, and `discover`.

Whatever is given as a string may be given as a path, or as the object that it names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lmscout.errors import LAST_SEED, LmscoutError, check_whole, public
from lmscout.progress import shown_progress
from lmscout.reading import read_json
from lmscout.results import Path_, Result, has_fields_of, saved_values
from lmscout.runs import RESULT, SETTINGS

if TYPE_CHECKING:
    import torch

    from lmscout.benchmarks import Benchmark
    from lmscout.discovery.discover import Discovery
    from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings
    from lmscout.evaluation import LoadedModel, Text
    from lmscout.proxies import Space
    from lmscout.runs import Run

Progress = bool | Callable[[str, int, int], None] | None
STUDY, DEEP = "study:", "deep"

_Function = TypeVar("_Function", bound=Callable[..., Any])

RESULTS = {
    "benchmarks.build.Built": "bench build",
    "benchmarks.check.Check": "bench check",
    "discovery.design.Design": "design",
    "discovery.discover.Discovery": "discover",
    "discovery.explain.Explanation": "explain",
    "discovery.explain.Forms": "explain",
    "discovery.rank.RankResult": "rank",
    "discovery.selection.Selection": "design",
    "discovery.symbolic_search.DeepDiscovery": "discover",
    "evaluation.Evaluation": "eval",
    "integrations.GgufFile": "export",
    "pruning.results.Pruning": "prune",
}
"""Classes of results, no two with the same fields, and the command of each."""


def as_name(given: Any) -> Any:
    """A path, or PyTorch's device or dtype, as a string; anything else stays as it is."""
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    known = type(given).__module__ == "torch" and type(given).__name__ in ("device", "dtype")
    return str(given).removeprefix("torch.") if known else given


def benchmark_named(benchmark: Path_ | Benchmark) -> Benchmark:
    """A benchmark, or the one of a name."""
    from lmscout.benchmarks import load

    named: str | Benchmark = as_name(benchmark)
    return load(named) if isinstance(named, str) else named


def model_named(model: Path_ | LoadedModel) -> Any:
    """A loaded model, or the name of one; LmscoutError for a model in training mode."""
    named: Any = as_name(model)
    if not isinstance(named, str) and named.model.training:  # its dropout would be measured
        raise LmscoutError(f"{named.source}: the model is in training mode; call its eval() first")
    return named


def text_named(source: Path_ | Text | None) -> Text | None:
    """A text, or the one of a file or of the Hub; None stays None."""
    from lmscout.evaluation import read_text

    named: str | Text | None = as_name(source)
    return read_text(named) if isinstance(named, str) else named


def several(given: Path_ | Sequence[Path_]) -> list[str]:
    """One name or several as a list."""
    return list(map(as_name, [given] if isinstance(given, str | os.PathLike) else given))


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
    workers: int,
    backend: str,
    device: str | torch.device,
    cluster: str | None,
    seed: int,
    out: Path_ | None,
) -> Any:
    """Keyword arguments that the functions of `lmscout.discovery` share, see `lmscout.rank`.

    LmscoutError if the workers or the device cannot be used.
    """
    from lmscout.benchmarks.loading import cache_directory
    from lmscout.statistics import Workers

    check_whole("seed", seed, 0, LAST_SEED)
    cache = cache_directory() / "statistics"
    spread = Workers(workers, backend, as_name(device), cluster)
    return {"workers": spread, "seed": seed, "cache": cache, "out": path_of(out)}


def discover_ranked(
    benchmark: Path_ | Benchmark | Sequence[Path_ | Benchmark],
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
    from lmscout.discovery.scorer import search_sizes
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
    benchmark: Path_ | Benchmark | Sequence[Path_ | Benchmark],
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
    from lmscout.discovery.scorer import search_sizes
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


def _benchmarks(given: Path_ | Benchmark | Sequence[Path_ | Benchmark]) -> list[str | Benchmark]:
    from lmscout.benchmarks import Benchmark

    one = isinstance(given, str | os.PathLike | Benchmark)
    found = list(map(as_name, [given] if one else cast("Sequence[Any]", given)))
    if not found:
        raise LmscoutError("benchmark: none is given; give one or several")
    return found


def _is_study(benchmark: str | Benchmark) -> bool:
    return isinstance(benchmark, str) and benchmark.startswith(STUDY)


@public
def load_benchmark(name: Path_) -> Benchmark:
    """Load a benchmark: architectures whose trained quality is known.

    Args:
        name: ``pico``, ``iso``, ``flexibert``, ``lts:random_GPT2_wt103``, or ``bench:DIR`` (or
            ``DIR``), ``flexibert:PATH``, ``lts:PATH`` for files of your own.

    Returns:
        Specs and their quality; higher is better.

    Raises:
        LmscoutError: the name is unknown, or the benchmark cannot be found or read.

    Example:
        >>> import lmscout
        >>> bench = lmscout.load_benchmark("pico")
        >>> bench
        Benchmark('pico', 240 architectures, 'negated validation loss after 4,500,000 tokens')
        >>> bench.subset(range(20)).metric
        'negated validation loss after 4,500,000 tokens'
    """
    from lmscout.benchmarks import load

    return load(as_name(name))


@public
def load_result(path: Path_) -> Any:
    """Load a result that its `save(path)` wrote, or the one of a run folder.

    Args:
        path: the file, or the run folder.

    Returns:
        The result, equal to the one that was saved.

    Raises:
        LmscoutError: the file cannot be read, or holds no result.

    Example:
        >>> import lmscout
        >>> checked = lmscout.check_benchmark("pico")
        >>> checked.save("checked.json")
        >>> lmscout.load_result("checked.json") == checked
        True
    """
    file = Path(path)
    if file.is_dir():
        file = file / RESULT
        if not file.exists():
            begun = "its run has not finished; repeat its command, which continues"
            other = "is no run folder; name the --out of a command"
            raise LmscoutError(f"{path}: {begun if Path(path, SETTINGS).exists() else other}")
    values = saved_values(read_json(file, surrogates=True))
    for one in RESULTS:
        module, name = one.rsplit(".", 1)
        kind: type[Result] = getattr(import_module(f"lmscout.{module}"), name)
        if isinstance(values, dict) and has_fields_of(kind, set(values) - {"schema"}):
            return kind.load(file)
    raise LmscoutError(f"{file}: holds no result; name a file that save() wrote, or a run folder")


def command_of(result: object) -> str:
    """The command that gives such a result, such as "bench check"; "" for another object."""
    name = type(result).__name__
    return next((each for kind, each in RESULTS.items() if kind.endswith(f".{name}")), "")


@public
def load_model(
    source: Path_, *, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load a causal language model with its tokenizer: any, or one that lmscout saved.

    No code of the model's folder is run.

    Args:
        source: folder or Hub name.
        dtype: of the weights in memory; None for float32 on a CPU, and as saved elsewhere.
        device: as PyTorch names it.

    Returns:
        ``model`` in eval mode, and ``tokenizer``.

    Raises:
        LmscoutError: there is no such model, or it is no causal language model.

    Example:
        >>> import lmscout
        >>> loaded = lmscout.load_model("MODEL")
        >>> loaded.model.training
        False
    """
    from lmscout.evaluation import dtype_named
    from lmscout.evaluation import load_model as load

    wanted = None if dtype is None else dtype_named(as_name(dtype))
    return load(as_name(source), wanted, as_name(device))


def register() -> None:
    """Register pruned and designed models with transformers' Auto classes in this process.

    Afterwards ``AutoModelForCausalLM.from_pretrained(FOLDER)`` loads a saved model with blocks
    of different sizes without ``trust_remote_code``.

    Example:
        >>> import lmscout
        >>> lmscout.register()
    """
    for name in ("evaluation.modeling_lmscout", "models.pretrained"):
        import_module(f"lmscout.{name}")  # registers when imported
