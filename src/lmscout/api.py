"""The public functions: names, paths and numbers in, a result out.

Each function is the command of the same name.  Whatever is given as a string may be given as the
object that it names.  With `out` a function keeps its run in a folder: the same call continues a
run that was stopped, and returns the result of one that has finished without computing anything.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmscout.errors import LmscoutError
from lmscout.progress import shown_progress

if TYPE_CHECKING:
    from lmscout.benchmarks import Benchmark
    from lmscout.benchmarks.build import Built
    from lmscout.benchmarks.check import Check
    from lmscout.benchmarks.space import Space as ArchitectureSpace
    from lmscout.benchmarks.training import Recipe
    from lmscout.discovery import Design, Explanation, RankResult, Selection
    from lmscout.discovery.discover import Discovery
    from lmscout.discovery.explain import Forms
    from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings
    from lmscout.evaluation import Evaluation, LoadedModel, Text
    from lmscout.proxies import Space
    from lmscout.pruning.config import PruneConfig
    from lmscout.pruning.results import Pruning
    from lmscout.runs import Run

Path_ = str | os.PathLike[str]
Progress = bool | Callable[[str, int, int], None] | None
STUDY, DEEP = "study:", "deep"
RANKED_ALONE, DEEP_ALONE = ("aggregations",), ("config",)


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

    The published space (24,000 proxies an aggregation, arXiv 2410.04808) and ``two-op`` are
    ranked exhaustively; the deep space is searched by genetic programming.

    Args:
        benchmark: a benchmark or its name; of the deep space also several: fitness is then the
            minimum over them. ``study:RUN`` for the pairs of a pruning run.
        space: ``published``, ``two-op``, ``deep``, or a space of proxies.
        aggregations: over blocks: any of mean, sum, max, min; not for the deep space.
        n_search: number of architectures that the choice may use; one per benchmark or for all.
        seed: of the split and, in the deep space, of the search.
        config: how the deep space is searched.
        model: for ``study:RUN``, the dense model if it has moved.
        calibration: for ``study:RUN``, the calibration text if it has moved.
        workers: architectures computed at once; -1 for one per core.
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
        >>> found = lmscout.discover("pico", n_search=40)  # doctest: +SKIP
        >>> found.best  # doctest: +SKIP
        'mean(frobenius(act) * frobenius(weight))'
    """
    from lmscout.statistics import Workers

    spread = Workers(workers, backend, device)
    several = _benchmarks(benchmark)
    if space == DEEP:
        sizes = _sizes(n_search, len(several))
        return _discover_deep(several, config, sizes, seed, spread, _path(out), progress)
    if config is not None:
        raise LmscoutError(f"config is for space {DEEP!r}: leave it out")
    if len(several) != 1:
        raise LmscoutError(f"several benchmarks at once are for space {DEEP!r}: give one")
    (size,) = _sizes(n_search, 1)
    return _discover_ranked(
        several[0], _proxy_space(space, aggregations), size, seed, spread, _path(out), progress,
        model=model, calibration=calibration,
    )  # fmt: skip


def _benchmarks(
    benchmark: str | Benchmark | Sequence[str | Benchmark],
) -> list[str | Benchmark]:
    from lmscout.benchmarks import Benchmark

    if isinstance(benchmark, str | Benchmark):
        return [benchmark]
    return list(benchmark)


def _sizes(n_search: int | Sequence[int], benchmarks: int) -> tuple[int, ...]:
    sizes = (n_search,) * benchmarks if isinstance(n_search, int) else tuple(n_search)
    if len(sizes) != benchmarks:
        raise LmscoutError(
            f"n_search gives {len(sizes)} numbers for {benchmarks} benchmarks: give one for all, "
            "or one for each"
        )
    return sizes


def _proxy_space(space: str | Space, aggregations: Sequence[str]) -> Space:
    from lmscout import proxies
    from lmscout.proxies.spelling import did_you_mean, shown

    if not isinstance(space, str):
        return space
    if space not in proxies.SPACES:
        known = (*proxies.SPACES, DEEP)
        raise LmscoutError(
            f"unknown space {shown(space)}: expected one of {', '.join(known)}"
            f"{did_you_mean(space, known)}"
        )
    return proxies.space(space, tuple(aggregations))


def _discover_ranked(
    benchmark: str | Benchmark,
    space: Space,
    size: int,
    seed: int,
    spread: Any,
    out: Path | None,
    progress: Progress,
    *,
    model: str | None,
    calibration: str | None,
) -> Discovery:
    from lmscout.discovery.discover import Discovery
    from lmscout.discovery.discover import discover as search_space
    from lmscout.discovery.saved_run import benchmark_digest, save_discovery

    in_study = isinstance(benchmark, str) and benchmark.startswith(STUDY)
    if not in_study and (model or calibration):
        raise LmscoutError(f"{benchmark}: --model and --calibration are for {STUDY}RUN")
    if in_study and spread.device != "cpu":
        raise LmscoutError(
            f"--device {spread.device}: not for {STUDY}RUN, whose statistics are computed on the "
            "CPU; leave --device out"
        )
    settings: dict[str, object] = {
        "space": space.name,
        "benchmark": benchmark if isinstance(benchmark, str) else benchmark.name,
        "aggregations": space.aggregations,
        "search": size,
        "seed": seed,
        "device": spread.device_kind,
    }
    architectures = None
    if in_study:
        settings |= {"model": model, "calibration": calibration}
    else:
        architectures = _benchmark(benchmark)
        settings["benchmark_sha256"] = benchmark_digest(architectures)
    run = _run(out, "discover", settings)
    if run is not None and run.finished:
        return run.load(Discovery)
    read, cache = None, _cache()
    if architectures is None:
        from lmscout.pruning.pairs_benchmark import study_benchmark

        folder = str(benchmark).removeprefix(STUDY)
        study = study_benchmark(folder, cache, model=model, calibration=calibration)
        architectures, read = study.benchmark, study.read
    with shown_progress(progress) as advance:
        result = search_space(
            architectures,
            space,
            search=size,
            seed=seed,
            cache=cache,
            workers=spread,
            progress=advance,
            read=read,
        )
    if run is not None:
        save_discovery(run, result)
    return result


def _discover_deep(
    benchmarks: Sequence[str | Benchmark],
    config: DeepSettings | None,
    sizes: Sequence[int],
    seed: int,
    spread: Any,
    out: Path | None,
    progress: Progress,
) -> DeepDiscovery:
    from lmscout.discovery.saved_run import begin_deep
    from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings, discover_deep

    for one in benchmarks:
        if isinstance(one, str) and one.startswith(STUDY):
            raise LmscoutError(
                f"{one}: the deep space builds every architecture; {STUDY}RUN has the spaces "
                "published and two-op"
            )
    loaded = [_benchmark(one) for one in benchmarks]
    config = config or DeepSettings()
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        run = begin_deep(folder, loaded, config, search=sizes, seed=seed, device=spread.device)
        if run.finished:
            return run.load(DeepDiscovery)
        with shown_progress(progress) as advance:
            result = discover_deep(
                loaded,
                config,
                search=sizes,
                seed=seed,
                cache=_cache(),
                folder=run.folder,
                workers=spread,
                progress=advance,
            )
        run.end(result)
    return result


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
        >>> lmscout.rank("pico", ["parameters"], progress=False).proxies[0].name
        'parameters'
    """
    from lmscout.discovery import RankResult, rank_proxies, signed_proxy
    from lmscout.discovery.saved_run import benchmark_digest, save_rank
    from lmscout.proxies import CATALOG
    from lmscout.statistics import Workers

    spread = Workers(workers, backend, device)
    names = [proxies] if isinstance(proxies, str) else list(proxies)
    # Unknown names are refused before anything is computed.
    asked = [str(signed_proxy(name)) for name in names or [one.name for one in CATALOG]]
    architectures = _benchmark(benchmark)
    settings = {
        "benchmark": architectures.name,
        "benchmark_sha256": benchmark_digest(architectures),
        "proxies": asked,
        "seed": seed,
        "device": spread.device_kind,
    }
    run = _run(_path(out), "rank", settings)
    if run is not None and run.finished:
        return run.load(RankResult)
    with shown_progress(progress) as advance:
        result = rank_proxies(
            architectures, names, seed=seed, cache=_cache(), workers=spread, progress=advance
        )
    if run is not None:
        save_rank(run, result, architectures)
    return result


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
    from lmscout.discovery import Explanation
    from lmscout.discovery import explain as take_apart
    from lmscout.discovery.explain import forms
    from lmscout.discovery.saved_run import benchmark_digest
    from lmscout.proxies import resolve
    from lmscout.statistics import Workers

    if benchmark is None:
        return forms(proxy)
    spread = Workers(workers, backend, device)
    resolve(proxy)  # an unknown name is refused before anything is computed
    architectures = _benchmark(benchmark)
    settings = {
        "proxy": proxy,
        "benchmark": architectures.name,
        "benchmark_sha256": benchmark_digest(architectures),
        "seed": seed,
        "device": spread.device_kind,
    }
    run = _run(_path(out), "explain", settings)
    if run is not None and run.finished:
        return run.load(Explanation)
    with shown_progress(progress) as advance:
        result = take_apart(
            architectures, proxy, seed=seed, cache=_cache(), workers=spread, progress=advance
        )
    if run is not None:
        run.save(result)
    return result


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
        ...     "nano", proxy="parameters", max_params=300_000, n_evaluations=4, progress=False
        ... )
        >>> found.spec.parameters() <= 300_000
        True
    """
    from lmscout.benchmarks import Benchmark
    from lmscout.benchmarks.loading import load, load_space_or_benchmark
    from lmscout.discovery import design as search
    from lmscout.discovery import pick, signed_proxy
    from lmscout.statistics import Workers

    spread = Workers(workers, backend, device)
    signed = signed_proxy(proxy)
    source: Any = space
    if isinstance(space, str):
        source = load(space) if on_benchmark else load_space_or_benchmark(space)
    with shown_progress(progress) as advance:
        settings: dict[str, Any] = {
            "limit": max_params,
            "evaluations": n_evaluations,
            "seed": seed,
            "weights": n_weights,
            "cache": _cache(),
            "workers": spread,
            "progress": advance,
        }
        if isinstance(source, Benchmark):
            return pick(source, signed, **settings)
        return search(source, signed, **settings)


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
        >>> pruned = lmscout.prune(
        ...     "MODEL", keep=0.8, calibration="train.txt", out="smaller"
        ... )  # doctest: +SKIP
        >>> pruned.model, pruned.plan  # doctest: +SKIP
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
        >>> lmscout.evaluate("smaller", perplexity="test.txt").to_frame()  # doctest: +SKIP
    """
    import torch

    from lmscout import evaluation
    from lmscout.evaluation import LoadedModel

    texts = [perplexity] if isinstance(perplexity, str) else list(perplexity)
    asked = [tasks] if isinstance(tasks, str) else list(tasks)
    asked = [one for one in asked if one]
    names = [protocol] if isinstance(protocol, str) else list(protocol)
    if not (texts or asked):
        raise LmscoutError("nothing to measure: give perplexity texts, tasks or both")
    if asked:
        evaluation.check_tasks(asked, None if task_data is None else Path(task_data))
    protocols = [evaluation.protocol_of(name) for name in names]
    start = time.perf_counter()
    read = [evaluation.read_text(source) for source in texts]
    source = model.source if isinstance(model, LoadedModel) else model
    settings = {
        "model": source,
        # The whole folder is read, which only a run that is kept has a use for.
        "model_fingerprint": None if out is None else evaluation.model_fingerprint(model),
        "perplexity": texts,
        "text_sha256": [text.sha256 for text in read],
        "protocol": [one.name for one in protocols] if read else [],
        "limit_tokens": limit_tokens,
        "batch_tokens": batch_tokens,
        "tasks": asked,
        "task_data": None if task_data is None else str(task_data),
        "task_data_sha256": (
            evaluation.questions_sha256(Path(task_data), asked)
            if task_data is not None and asked and out is not None
            else None
        ),
        "shots": shots,
        "limit": limit,
        "speed": speed,
        "dtype": dtype,
        "device": device,
    }
    run = _run(_path(out), "eval", settings)
    if run is not None and run.finished:
        return run.load(evaluation.Evaluation)
    loaded = model
    if not isinstance(loaded, LoadedModel):
        loaded = evaluation.load_model(loaded, getattr(torch, dtype), device)
    # All of them before the first is measured: an error in the last would cost the work before it.
    for text, one in product(read, protocols):
        evaluation.checked_tokens(loaded.model, loaded.tokenizer, text, one, limit_tokens)
    # Before the texts: it takes seconds, and an error in it would cost their work.
    timed = evaluation.measure_speed(loaded.model, *_SPEED) if speed else None
    scores: tuple[Any, ...] = ()
    found = []
    with shown_progress(progress) as advance:
        for text, one in product(read, protocols):
            stage = f"{Path(text.source).name or text.source}, {one.name}"
            found.append(
                evaluation.perplexity(
                    loaded.model,
                    loaded.tokenizer,
                    text,
                    one,
                    batch_tokens=batch_tokens,
                    limit_tokens=limit_tokens,
                    progress=advance and partial(advance, stage),
                )
            )
        if asked:
            scores = evaluation.score_tasks(
                loaded,
                asked,
                shots=shots,
                limit=limit,
                batch=max(1, batch_tokens // _PROMPT),
                data=None if task_data is None else Path(task_data),
                progress=advance and partial(advance, "tasks"),
            )
    result = evaluation.Evaluation(
        model=loaded.source,
        parameters=evaluation.parameter_count(loaded.model),
        bytes=evaluation.parameter_bytes(loaded.model),
        multiply_adds=evaluation.multiply_adds(loaded.model),
        dtype=dtype,
        perplexities=tuple(found),
        tasks=tuple(scores),
        speed=timed,
        seconds=round(time.perf_counter() - start, 3),
    )
    if run is not None:
        run.save(result)
    return result


def build_benchmark(
    space: str | ArchitectureSpace,
    *,
    n: int,
    out: Path_,
    recipe: Recipe | None = None,
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
        recipe: how each is trained; the default one with the space's length if None.
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
        >>> lmscout.build_benchmark("nano", n=12, out="mine")  # doctest: +SKIP
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
            recipe or Recipe(length=drawn_from.max_length),
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

    folder = built_folder(benchmark)
    settings = {"benchmark": benchmark, "table_sha256": table_digest(folder), "seed": seed}
    run = _run(_path(out), "bench check", settings)
    if run is not None and run.finished:
        return run.load(Check)
    result = check(folder, seed=seed)
    if run is not None:
        run.save(result)
    return result


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
        >>> model = lmscout.load_model("smaller").model  # doctest: +SKIP
    """
    import torch

    from lmscout.evaluation import load_model as load

    return load(source, None if dtype is None else getattr(torch, dtype), device)


def register() -> None:
    """Register pruned models with transformers' Auto classes in this process.

    Afterwards ``AutoModelForCausalLM.from_pretrained(FOLDER)`` loads a saved model with blocks
    of different sizes without ``trust_remote_code``.

    Example:
        >>> import lmscout
        >>> lmscout.register()
    """
    import importlib

    importlib.import_module("lmscout.evaluation.modeling_lmscout")  # registers when imported


_SPEED = 8, 128  # sequences per forward pass, tokens per sequence
_PROMPT = 512  # tokens assumed for a prompt of a task


def _benchmark(benchmark: str | Benchmark) -> Benchmark:
    return load_benchmark(benchmark) if isinstance(benchmark, str) else benchmark


def _text(source: str | Text | None) -> Text | None:
    from lmscout.evaluation import read_text

    return read_text(source) if isinstance(source, str) else source


def _path(out: Path_ | None) -> Path | None:
    return None if out is None else Path(out)


def _run(out: Path | None, command: str, settings: dict[str, Any]) -> Run | None:
    from lmscout.runs import open_run

    return None if out is None else open_run(out, command, settings)


def _cache() -> Path:
    from lmscout.benchmarks.download import cache_directory

    return cache_directory() / "statistics"
