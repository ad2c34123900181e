"""The public functions: names, paths and numbers in, a result out.

Each function is the command of the same name.  Whatever is given as a string may be given as the
object that it names.  With `out` a function keeps its run in a folder: the same call continues a
run that was stopped, and loads the result of a finished one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmscout.errors import LmscoutError, check_whole
from lmscout.progress import shown_progress

if TYPE_CHECKING:
    from lmscout.benchmarks import Benchmark
    from lmscout.benchmarks.build import Built
    from lmscout.benchmarks.check import Check
    from lmscout.benchmarks.space import Space as ArchitectureSpace
    from lmscout.discovery import Design, Explanation, RankResult, Selection
    from lmscout.discovery.discover import Discovery
    from lmscout.discovery.explain import Forms
    from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings
    from lmscout.evaluation import Evaluation, LoadedModel, Text
    from lmscout.proxies import Space
    from lmscout.pruning.config import PruneConfig
    from lmscout.pruning.results import Pruning

Path_ = str | os.PathLike[str]
Progress = bool | Callable[[str, int, int], None] | None
STUDY, DEEP = "study:", "deep"


def load_benchmark(name: str) -> Benchmark:
    """Load a benchmark: architectures whose trained quality is known.

    Args:
        name: ``pico``, ``flexibert``, ``lts:random_GPT2_wt103``, or ``bench:DIR``,
            ``flexibert:PATH``, ``lts:PATH`` for files of your own.

    Returns:
        Specs and their quality; higher is better.

    Raises:
        LmscoutError: the name is unknown, or the benchmark cannot be found or read.

    Example:
        >>> import lmscout
        >>> bench = lmscout.load_benchmark("pico")
        >>> len(bench.specs)
        240
        >>> bench.subset(range(20)).metric
        'negated validation loss after 4,500,000 tokens'
    """
    from lmscout.benchmarks import load

    return load(name)


def discover(
    benchmark: str | Benchmark | Sequence[str | Benchmark],
    *,
    space: str | Space = "published",
    aggregations: Sequence[str] = ("mean",),
    n_search: int | Sequence[int] = 100,
    seed: int = 0,
    config: DeepSettings | None = None,
    model: str | None = None,
    calibration: str | None = None,
    workers: int = -1,
    backend: str = "loky",
    device: str = "cpu",
    out: Path_ | None = None,
    progress: Progress = True,
) -> Discovery | DeepDiscovery:
    """Find the best proxy of a space on search data, and report it on held-out data.

    The published space (24,000 proxies per aggregation, arXiv 2410.04808) and ``two-op`` are
    ranked exhaustively; the deep space is searched by genetic programming.

    Args:
        benchmark: a benchmark or its name; for the deep space also several: fitness is then the
            minimum over them. ``study:RUN`` for the pairs of a pruning run.
        space: ``published``, ``two-op``, ``deep``, or a space of proxies.
        aggregations: over blocks: any of mean, sum, max, min; not for the deep space.
        n_search: number of search architectures; one for all benchmarks, or one each.
        seed: of the split and, in the deep space, of the search.
        config: settings of the search of the deep space.
        model: for ``study:RUN``, the dense model if it has moved.
        calibration: for ``study:RUN``, the calibration text if it has moved.
        workers: architectures evaluated at once; -1 for one per core.
        backend: of joblib.
        device: ``cpu``, or a CUDA device that computes the statistics.
        out: run folder; None to keep nothing.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        The best proxy with its correlation on the held-out split, beside the configuration
        baselines.

    Raises:
        LmscoutError: an argument is invalid, or the benchmark cannot be read.

    Example:
        >>> import lmscout
        >>> bench = lmscout.load_benchmark("pico").subset(range(16))
        >>> found = lmscout.discover(bench, n_search=10, workers=1, progress=False)
        >>> len(found.to_frame())
        10
        >>> config = lmscout.DeepSearchConfig(evaluations=2, searches=1, catalog=False)
        >>> found = lmscout.discover(
        ...     bench, space="deep", n_search=10, config=config, workers=1, progress=False
        ... )
        >>> len(found.findings)
        1
    """
    from lmscout.benchmarks import Benchmark
    from lmscout.discovery.kept import kept_deep_discovery, kept_discovery
    from lmscout.discovery.symbolic_search import DeepSettings
    from lmscout.proxies import space as space_called

    benchmarks = [benchmark] if isinstance(benchmark, str | Benchmark) else list(benchmark)
    sizes = (n_search,) * len(benchmarks) if isinstance(n_search, int) else tuple(n_search)
    if space != DEEP and len(benchmarks) != 1:
        raise LmscoutError(f"several benchmarks at once are for space {DEEP!r}: give one")
    if len(sizes) != len(benchmarks):
        raise LmscoutError(
            f"n_search gives {len(sizes)} numbers for {len(benchmarks)} benchmarks: give one for "
            "all, or one for each"
        )
    in_study = [one for one in benchmarks if isinstance(one, str) and one.startswith(STUDY)]
    if in_study and device != "cpu":
        raise LmscoutError(
            f"--device {device}: not for {STUDY}RUN, whose statistics are computed on the CPU; "
            "leave --device out"
        )
    common = _settings(workers, backend, device, seed, out)
    if space == DEEP:
        if in_study:
            raise LmscoutError(
                f"{in_study[0]}: the deep space builds every architecture; {STUDY}RUN has the "
                "spaces published and two-op"
            )
        loaded = [_benchmark(one) for one in benchmarks]
        settings = config or DeepSettings()
        with shown_progress(progress) as advance:
            return kept_deep_discovery(loaded, settings, search=sizes, progress=advance, **common)
    if config is not None:
        raise LmscoutError(f"config is for space {DEEP!r}: leave it out")
    if not in_study and (model or calibration):
        raise LmscoutError(f"{benchmark}: --model and --calibration are for {STUDY}RUN")
    overrides = {"model": model, "calibration": calibration} if in_study else {}

    def source() -> tuple[Benchmark, Any]:
        from lmscout.pruning.pairs_benchmark import study_benchmark

        study = study_benchmark(
            str(benchmarks[0]).removeprefix(STUDY), common["cache"], **overrides
        )
        return study.benchmark, study.read

    with shown_progress(progress) as advance:
        return kept_discovery(
            benchmarks[0] if in_study else _benchmark(benchmarks[0]),
            space_called(space, tuple(aggregations)) if isinstance(space, str) else space,
            search=sizes[0],
            source=source if in_study else None,
            overrides=overrides,
            progress=advance,
            **common,
        )


def rank(
    benchmark: str | Benchmark,
    proxies: str | Sequence[str] = (),
    *,
    seed: int = 0,
    workers: int = -1,
    backend: str = "loky",
    device: str = "cpu",
    out: Path_ | None = None,
    progress: Progress = True,
) -> RankResult:
    """Rank given proxies by their correlation with quality on all architectures of a benchmark.

    Args:
        benchmark: a benchmark or its name.
        proxies: names of the catalog or expressions, ``-`` before one whose lower scores are
            better; the whole catalog if empty.
        seed: of the models' weights.
        workers: architectures computed at once; -1 for one per core.
        backend: of joblib.
        device: ``cpu``, or a CUDA device that computes the statistics.
        out: run folder; None to keep nothing.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        Correlations with bootstrap intervals, of the proxies and of the configuration baselines.

    Raises:
        LmscoutError: a proxy is unknown, or the benchmark cannot be read.

    Example:
        >>> import lmscout
        >>> bench = lmscout.load_benchmark("pico").subset(range(16))
        >>> lmscout.rank(bench, ["snip"], workers=1, progress=False).proxies[0].name
        'snip'
    """
    from lmscout.discovery.kept import kept_rank

    names = [proxies] if isinstance(proxies, str) else proxies
    common = _settings(workers, backend, device, seed, out)
    with shown_progress(progress) as advance:
        return kept_rank(_benchmark(benchmark), names, progress=advance, **common)


def explain(
    proxy: str,
    benchmark: str | Benchmark | None = None,
    *,
    seed: int = 0,
    workers: int = -1,
    backend: str = "loky",
    device: str = "cpu",
    out: Path_ | None = None,
    progress: Progress = True,
) -> Explanation | Forms:
    """Explain a proxy: dead branches, sensitivity to inputs, and the closest surrogate formula.

    Args:
        proxy: a name of the catalog or an expression.
        benchmark: a benchmark or its name; None for the formula's other forms alone.
        seed: of the models' weights, and of the half that chooses a surrogate formula.
        workers: architectures computed at once; -1 for one per core.
        backend: of joblib.
        device: ``cpu``, or a CUDA device that computes the statistics.
        out: run folder; None to keep nothing.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        The explanation; without a benchmark the proxy as an expression, in LaTeX, and as the
        source of a PyTorch module.

    Raises:
        LmscoutError: the proxy is unknown, or the benchmark cannot be read.

    Example:
        >>> import lmscout
        >>> lmscout.explain("snip").latex is not None
        True
    """
    from lmscout.discovery.explain import forms
    from lmscout.discovery.kept import kept_explanation

    if benchmark is None:
        return forms(proxy)
    common = _settings(workers, backend, device, seed, out)
    with shown_progress(progress) as advance:
        return kept_explanation(_benchmark(benchmark), proxy, progress=advance, **common)


def design(
    space: str | ArchitectureSpace | Benchmark,
    *,
    proxy: str,
    max_params: int,
    n_evaluations: int = 200,
    seed: int = 0,
    n_weights: int = 1,
    on_benchmark: bool = False,
    workers: int = -1,
    backend: str = "loky",
    device: str = "cpu",
    progress: Progress = True,
) -> Design | Selection:
    """Find the architecture of a space that a proxy scores best, within a parameter limit.

    Args:
        space: ``pico``, ``nano``, a JSON file, or a space of architectures: searched by
            regularized evolution (arXiv 1802.01548). A benchmark: the proxy selects among its
            architectures, and the result has the regret of the selection.
        proxy: a name of the catalog or an expression, ``-`` before one whose lower scores are
            better.
        max_params: parameters of the model at most, embeddings included.
        n_evaluations: architectures to score.
        seed: of draws and mutations.
        n_weights: draws of initial weights and data over which a score is averaged.
        on_benchmark: whether ``pico`` names the benchmark instead of the space.
        workers: architectures computed at once; -1 for one per core.
        backend: of joblib.
        device: ``cpu``, or a CUDA device that computes the statistics.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        The architecture: `to_model()` builds it untrained, `save_pretrained(folder)` writes a
        folder that transformers loads.

    Raises:
        LmscoutError: an argument is invalid, or nothing fits the limit.

    Example:
        >>> import lmscout
        >>> found = lmscout.design(
        ...     "nano",
        ...     proxy="parameters",
        ...     max_params=300_000,
        ...     n_evaluations=4,
        ...     workers=1,
        ...     progress=False,
        ... )
        >>> found.spec.parameters() <= 300_000
        True
        >>> found.save_pretrained("untrained")
    """
    from lmscout.benchmarks import Benchmark
    from lmscout.benchmarks.loading import load, load_space_or_benchmark
    from lmscout.discovery import design as search
    from lmscout.discovery import pick, signed_proxy

    common = _settings(workers, backend, device, seed, None)
    del common["out"]
    check_whole("max_params", max_params, 1)
    signed = signed_proxy(proxy)
    source: Any = space
    if isinstance(space, str):
        source = load(space) if on_benchmark else load_space_or_benchmark(space)
    limits = {"limit": max_params, "evaluations": n_evaluations, "weights": n_weights}
    run: Any = pick if isinstance(source, Benchmark) else search
    with shown_progress(progress) as advance:
        found: Design | Selection = run(source, signed, progress=advance, **limits, **common)
        return found


def prune(
    model: str | LoadedModel,
    *,
    calibration: str | Text,
    out: Path_,
    keep: float | Sequence[float] | None = None,
    report: str | Text | None = None,
    recovery_text: str | Text | None = None,
    config: PruneConfig | None = None,
    device: str = "cpu",
    compute_dtype: str | None = None,
    progress: Progress = True,
) -> Pruning:
    """Prune a causal language model to a budget with an accuracy predictor (arXiv 2309.09507).

    Args:
        model: folder or Hub name of the model, or the loaded model, which is then changed.
        calibration: text on which plans are measured: a file, ``hub:NAME`` or a text.
        out: run folder, for the study and the saved model.
        keep: share to keep, or several; 0.8 by default.
        report: text on which perplexities are reported; never the calibration text.
        recovery_text: text on which recovery trains; the calibration text if None.
        config: everything else; see `PruneConfig`.
        device: ``cpu``, ``cuda``, ``mps``, or several for measuring, as ``cuda:0,cuda:1``.
        compute_dtype: of the weights in memory, such as ``bfloat16``; None for float32 on a CPU,
            and as saved elsewhere.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        The selected plan, the saved model, and all that was measured.

    Raises:
        LmscoutError: an argument is invalid, or a file cannot be read or written.

    Example:
        >>> import lmscout
        >>> little = lmscout.CalibrationConfig(
        ...     measured_tokens=1_500, final_tokens=1_500, moment_tokens=4_000
        ... )
        >>> config = lmscout.PruneConfig(pairs=20, calibration=little)
        >>> pruned = lmscout.prune(
        ...     "MODEL",
        ...     keep=0.8,
        ...     calibration="train.txt",
        ...     out="smaller",
        ...     config=config,
        ...     progress=False,
        ... )
        >>> [size.keep for size in pruned.sizes]
        [0.8]
    """
    import torch

    from lmscout.evaluation import LoadedModel, devices_of, load_config, load_model, memory_dtype
    from lmscout.pruning.config import PruneConfig, check_request
    from lmscout.pruning.results import Pruning
    from lmscout.pruning.saved_run import is_complete, open_pruning
    from lmscout.pruning.storage import home_path
    from lmscout.pruning.workflow import prune as run
    from lmscout.runs import RESULT

    folder = home_path(Path(out))
    first, *others = devices_of(device)
    request = config or PruneConfig()
    if keep is not None:
        shares = (keep,) if isinstance(keep, int | float) else tuple(keep)
        request = replace(request, keep=shares)
    if others:
        request = replace(request, devices=tuple(others))
    text, report_on, recover_on = map(_text, (calibration, report, recovery_text))
    assert text is not None
    check_request(request, text, report_on, folder, recover_on)
    if isinstance(model, str) and (folder / RESULT).is_file():
        computed = compute_dtype or str(memory_dtype(load_config(model), first)).split(".")[-1]
        opened = open_pruning(folder, model, computed, request, text, report_on, recover_on)
        if is_complete(opened, request):
            return opened.load(Pruning)
    loaded = model
    if not isinstance(loaded, LoadedModel):
        wanted = None if compute_dtype is None else getattr(torch, compute_dtype)
        loaded = load_model(loaded, wanted, first)
    with shown_progress(progress) as advance:
        return run(
            loaded,
            text,
            request,
            folder,
            report_on=report_on,
            recover_on=recover_on,
            progress=advance,
        )


def evaluate(
    model: str | LoadedModel,
    *,
    perplexity: str | Sequence[str] = (),
    tasks: str | Sequence[str] = (),
    protocol: str | Sequence[str] = "llm-pruner",
    limit_tokens: int | None = None,
    batch_tokens: int = 4096,
    task_data: Path_ | None = None,
    shots: int | None = None,
    limit: int | None = None,
    speed: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    out: Path_ | None = None,
    progress: Progress = True,
) -> Evaluation:
    """Measure a causal language model: perplexity, tasks and cost.

    Args:
        model: folder or Hub name of the model, or the loaded model.
        perplexity: texts: files, ``FILE#FIELD`` or ``hub:NAME``.
        tasks: names of lm-eval, such as ``piqa``.
        protocol: of the perplexities; several for one row each.
        limit_tokens: use only the first tokens of each text.
        batch_tokens: tokens of one forward pass.
        task_data: folder of files with the tasks' questions; None for the Hub.
        shots: examples before each question; None for each task's usual number.
        limit: questions of a task at most.
        speed: whether to measure tokens per second and peak memory.
        dtype: of the weights in memory.
        device: as PyTorch names it.
        out: run folder; None to keep nothing.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        Perplexities with their protocol, scores with standard errors, and costs.

    Raises:
        LmscoutError: an argument is invalid, or a file cannot be read.

    Example:
        >>> import lmscout
        >>> found = lmscout.evaluate("MODEL", perplexity="test.txt", progress=False)
        >>> found.perplexities[0].value > 1
        True
    """
    from lmscout.evaluation.measurement import kept_evaluation

    with shown_progress(progress) as advance:
        return kept_evaluation(
            model,
            perplexity=_several(perplexity),
            tasks=[one for one in _several(tasks) if one],
            protocol=_several(protocol),
            limit_tokens=limit_tokens,
            batch_tokens=batch_tokens,
            task_data=_path(task_data),
            shots=shots,
            limit=limit,
            speed=speed,
            dtype=dtype,
            device=device,
            out=_path(out),
            progress=advance,
        )


def build_benchmark(
    space: str | ArchitectureSpace,
    *,
    n: int,
    out: Path_,
    tokens: int | None = None,
    texts: Sequence[Path_] = (),
    corpus: Path_ | None = None,
    seed: int = 0,
    n_seeds: int = 3,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = True,
) -> Built:
    """Train architectures of a space by one recipe and write them as a benchmark.

    Args:
        space: ``pico``, ``nano``, a JSON file, or a space of architectures.
        n: number of architectures.
        out: folder of the benchmark, afterwards ``bench:OUT``; the same call continues a build
            that was stopped.
        tokens: training tokens of each architecture; None for the recipe's.
        texts: files to train on; the built-in text if none.
        corpus: safetensors file of tokens to train on instead of texts.
        seed: of the draw of architectures.
        n_seeds: trainings of every tenth one, by which the noise is estimated.
        device: ``auto``, ``cpu`` or CUDA devices.
        workers: models trained at once; None for the device's default.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        Numbers of architectures and trainings, and the range of losses.

    Raises:
        LmscoutError: an argument is invalid, or a file cannot be read or written.

    Example:
        >>> import lmscout
        >>> built = lmscout.build_benchmark(
        ...     "nano",
        ...     n=2,
        ...     out="mine",
        ...     tokens=20_000,
        ...     texts=["train.txt"],
        ...     n_seeds=1,
        ...     device="cpu",
        ...     progress=False,
        ... )
        >>> built.n_architectures
        2
    """
    from lmscout.benchmarks.build import build
    from lmscout.benchmarks.space import load_space
    from lmscout.benchmarks.training import Recipe, builtin_tokens, stored_tokens, text_tokens

    drawn_from: Any = load_space(space) if isinstance(space, str) else space
    if texts and corpus:
        raise LmscoutError("--text and --corpus: give one of them")
    if corpus is not None:
        data = stored_tokens(Path(corpus))
    else:
        data = text_tokens([Path(one) for one in texts]) if texts else builtin_tokens()
    with shown_progress(progress) as advance:
        return build(
            drawn_from,
            n,
            Path(out),
            data,
            Recipe(length=drawn_from.max_length, **({} if tokens is None else {"tokens": tokens})),
            seed=seed,
            seeds=n_seeds,
            device=device,
            workers=workers,
            progress=advance and partial(advance, "training"),
        )


def check_benchmark(benchmark: str, *, seed: int = 0, out: Path_ | None = None) -> Check:
    """Measure what a built benchmark can distinguish: its noise, and its configuration baselines.

    Args:
        benchmark: folder that `build_benchmark` wrote, or ``pico``.
        seed: of the simulated noise.
        out: run folder; None to keep nothing.

    Returns:
        Noise, spread and the correlations of the configuration baselines.

    Raises:
        LmscoutError: there is no finished benchmark.

    Example:
        >>> import lmscout
        >>> lmscout.check_benchmark("pico").n_architectures
        240
    """
    from lmscout.benchmarks.built import built_folder, table_digest
    from lmscout.benchmarks.check import Check, check
    from lmscout.runs import kept_result

    folder = built_folder(benchmark)
    settings = {"benchmark": benchmark, "table_sha256": table_digest(folder), "seed": seed}
    compute = partial(check, folder, seed=seed)
    return kept_result(_path(out), "bench check", settings, Check, compute)


def load_model(source: str, *, dtype: str | None = None, device: str = "cpu") -> LoadedModel:
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
    import torch

    from lmscout.evaluation import load_model as load

    return load(source, None if dtype is None else getattr(torch, dtype), device)


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


def _benchmark(benchmark: str | Benchmark) -> Benchmark:
    return load_benchmark(benchmark) if isinstance(benchmark, str) else benchmark


def _text(source: str | Text | None) -> Text | None:
    from lmscout.evaluation import read_text

    return read_text(source) if isinstance(source, str) else source


def _several(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _path(given: Path_ | None) -> Path | None:
    return None if given is None else Path(given)


def _settings(workers: int, backend: str, device: str, seed: int, out: Path_ | None) -> Any:
    """Keyword arguments that the discovery functions share."""
    from lmscout.statistics import Workers

    spread = Workers(workers, backend, device)
    return {"workers": spread, "seed": seed, "cache": _cache(), "out": _path(out)}


def _cache() -> Path:
    from lmscout.benchmarks.download import cache_directory

    return cache_directory() / "statistics"
