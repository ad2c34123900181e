"""The public functions: names, paths and numbers in, a result out.

Each function is the command of the same name.  Whatever is given as a string may be given as a
path, or as the object that it names.  With `out` a function keeps its run in a folder: the same
call continues a run that was stopped, and loads the result of a finished one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lmscout.arguments import (
    DEEP,
    Progress,
    as_name,
    benchmark_named,
    model_named,
    names_config,
    path_of,
    run_settings,
    several,
    text_named,
)
from lmscout.errors import LAST_SEED, LmscoutError, check_whole, public
from lmscout.progress import shown_progress
from lmscout.results import Path_

if TYPE_CHECKING:
    import torch

    from lmscout.benchmarks import Benchmark
    from lmscout.benchmarks.build import Built
    from lmscout.benchmarks.check import Check
    from lmscout.benchmarks.space import Space as ArchitectureSpace
    from lmscout.discovery import Design, Explanation, RankResult, Selection
    from lmscout.discovery.discover import Discovery
    from lmscout.discovery.explain import Forms
    from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings
    from lmscout.evaluation import Evaluation, LoadedModel, Text
    from lmscout.integrations import GgufFile
    from lmscout.proxies import Space
    from lmscout.pruning.config import PruneConfig
    from lmscout.pruning.results import Pruning


@public
def discover(
    benchmark: Path_ | Benchmark | Sequence[Path_ | Benchmark],
    *,
    space: str | Space = "published",
    aggregations: str | Sequence[str] = ("mean",),
    n_search: int | Sequence[int] | None = None,
    seed: int = 0,
    config: DeepSettings | None = None,
    model: Path_ | None = None,
    calibration: Path_ | None = None,
    workers: int = -1,
    backend: str = "loky",
    device: str | torch.device = "cpu",
    cluster: str | None = None,
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
        n_search: number of search architectures; one for all benchmarks, or one each; None for
            half of a benchmark's architectures, at most 100.
        seed: of the split and, in the deep space, of the search.
        config: settings of the search of the deep space.
        model: for ``study:RUN``, the dense model if it has moved.
        calibration: for ``study:RUN``, the calibration text if it has moved.
        workers: architectures evaluated at once; -1 for one per core.
        backend: of joblib.
        device: ``cpu``, or a CUDA device that computes the statistics.
        cluster: address of a Ray cluster that computes them; None for this machine.
        out: run folder; None to keep nothing.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        The best proxy with its correlation on the held-out split, beside the configuration
        baselines.

    Raises:
        LmscoutError: an argument is invalid, or the benchmark cannot be read.

    Example:
        >>> import lmscout
        >>> bench = lmscout.load_benchmark("pico").subset(range(10))
        >>> found = lmscout.discover(bench, n_search=5, workers=1, progress=False)
        >>> len(found.to_frame())
        10
        >>> config = lmscout.DeepSearchConfig(evaluations=2, searches=1, catalog=False)
        >>> found = lmscout.discover(
        ...     bench, space="deep", n_search=5, config=config, workers=1, progress=False
        ... )
        >>> len(found.findings)
        1
    """
    from lmscout.arguments import discover_deep, discover_ranked

    common: dict[str, Any] = {"n_search": n_search, "workers": workers, "backend": backend}
    common |= {"device": as_name(device), "cluster": cluster, "seed": seed, "progress": progress}
    if space == DEEP:
        with TemporaryDirectory() as scratch:
            folder = out or Path(scratch, "run")
            return discover_deep(benchmark, config, out=folder, **common)[1]
    if config is not None:
        raise LmscoutError(f"config is for space {DEEP!r}: leave it out")
    common |= {"out": out, "model": as_name(model), "calibration": as_name(calibration)}
    return discover_ranked(benchmark, space, several(aggregations), **common)


@public
def rank(
    benchmark: Path_ | Benchmark,
    proxy: str | Sequence[str] = (),
    *,
    seed: int = 0,
    workers: int = -1,
    backend: str = "loky",
    device: str | torch.device = "cpu",
    cluster: str | None = None,
    out: Path_ | None = None,
    progress: Progress = True,
) -> RankResult:
    """Rank given proxies by their correlation with quality on all architectures of a benchmark.

    Args:
        benchmark: a benchmark or its name.
        proxy: name of the catalog or expression, or several, ``-`` before one whose lower scores
            are better; the whole catalog if empty.
        seed: of the models' weights.
        workers: architectures computed at once; -1 for one per core.
        backend: of joblib.
        device: ``cpu``, or a CUDA device that computes the statistics.
        cluster: address of a Ray cluster that computes them; None for this machine.
        out: run folder; None to keep nothing.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        Correlations with bootstrap intervals, of the proxies and of the configuration baselines.

    Raises:
        LmscoutError: a proxy is unknown, or the benchmark cannot be read.

    Example:
        >>> import lmscout
        >>> bench = lmscout.load_benchmark("pico").subset(range(8))
        >>> lmscout.rank(bench, ["snip"], workers=1, progress=False).proxies[0].name
        'snip'
    """
    from lmscout.discovery import rank_proxies

    common = run_settings(workers, backend, device, cluster, seed, out)
    with shown_progress(progress) as advance:
        return rank_proxies(benchmark_named(benchmark), several(proxy), progress=advance, **common)


@public
def explain(
    proxy: str,
    benchmark: Path_ | Benchmark | None = None,
    *,
    seed: int = 0,
    workers: int = -1,
    backend: str = "loky",
    device: str | torch.device = "cpu",
    cluster: str | None = None,
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
        cluster: address of a Ray cluster that computes them; None for this machine.
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
    from lmscout.discovery import explain as explained
    from lmscout.discovery.explain import forms

    if benchmark is None:
        return forms(proxy)
    common = run_settings(workers, backend, device, cluster, seed, out)
    with shown_progress(progress) as advance:
        return explained(benchmark_named(benchmark), proxy, progress=advance, **common)


@public
def design(
    space: Path_ | ArchitectureSpace | Benchmark,
    *,
    proxy: str,
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency: float | None = None,
    evaluations: int = 200,
    seed: int = 0,
    weights: int = 1,
    on_benchmark: bool = False,
    workers: int = -1,
    backend: str = "loky",
    device: str | torch.device = "cpu",
    cluster: str | None = None,
    progress: Progress = True,
) -> Design | Selection:
    """Find the architecture of a space that a proxy scores best, within limits.

    Args:
        space: ``pico``, ``iso``, ``nano``, a JSON file, or a space of architectures: searched by
            regularized evolution (arXiv 1802.01548). A benchmark: the proxy selects among its
            architectures, and the result has the regret of the selection.
        proxy: a name of the catalog or an expression, ``-`` before one whose lower scores are
            better.
        max_params: parameters of the model at most, embeddings included. A space needs one limit
            or several, unless its own budgets limit it; with none, all of a benchmark is searched.
        max_macs: multiply-adds of a token in the blocks at most, in a sequence of the full length.
        max_latency: milliseconds at most of a forward pass of one sequence of the full length,
            measured on the device for every architecture that is considered, in every call, so
            that results may differ.
        evaluations: architectures to score.
        seed: of draws and mutations.
        weights: draws of initial weights and data over which a score is averaged; with two or
            more, ``choices`` have standard errors and their chance to be in the best 5 % by score.
        on_benchmark: whether ``pico`` or ``iso`` names the benchmark instead of the space.
        workers: architectures computed at once; -1 for one per core.
        backend: of joblib.
        device: ``cpu``, or a CUDA device that computes the statistics.
        cluster: address of a Ray cluster that computes them; None for this machine.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        The architecture, and as ``choices`` the five of the best scores: `to_model()` is the
        untrained causal language model with logits, as transformers has them;
        `save_pretrained(folder)` writes it with the architecture's ``spec.json``, and
        ``AutoModelForCausalLM`` loads the folder.

    Raises:
        LmscoutError: an argument is invalid, or nothing is within the limits.

    Example:
        >>> import lmscout, torch
        >>> found = lmscout.design(
        ...     "nano", proxy="parameters", max_params=300_000, evaluations=4, progress=False
        ... )
        >>> found.spec.parameters() <= 300_000
        True
        >>> found.to_model()(input_ids=torch.zeros(1, 9, dtype=torch.int64)).logits.shape
        torch.Size([1, 9, 4096])
        >>> found.save_pretrained("untrained")
    """
    from lmscout.benchmarks import Benchmark
    from lmscout.benchmarks.limits import limits_of
    from lmscout.benchmarks.loading import load, load_space_or_benchmark
    from lmscout.discovery import design as search
    from lmscout.discovery import pick, signed_proxy

    common = run_settings(workers, backend, device, cluster, seed, None)
    del common["out"]
    check_whole("evaluations", evaluations, 1)
    check_whole("weights", weights, 1)
    limits = limits_of(max_params, max_macs, max_latency, device=as_name(device))
    if max_latency is not None and cluster is not None:
        raise LmscoutError(f"max_latency: measured here, not on cluster {cluster}: leave one out")
    signed = signed_proxy(proxy)
    source: Any = as_name(space)
    if isinstance(source, str):
        source = load(source) if on_benchmark else load_space_or_benchmark(source)
    common |= {"limits": limits, "evaluations": evaluations, "weights": weights}
    run: Callable[..., Design | Selection] = pick if isinstance(source, Benchmark) else search
    with shown_progress(progress) as advance:
        return run(source, signed, progress=advance, **common)


@names_config
@public
def prune(
    model: Path_ | LoadedModel,
    *,
    calibration: Path_ | Text,
    out: Path_,
    keep: float | Sequence[float] | None = None,
    report: Path_ | Text | None = None,
    recover_text: Path_ | Text | None = None,
    config: PruneConfig | None = None,
    device: str | torch.device = "cpu",
    compute_dtype: str | torch.dtype | None = None,
    progress: Progress = True,
) -> Pruning:
    """Prune a causal language model to a budget with an accuracy predictor (arXiv 2309.09507).

    Args:
        model: folder or Hub name of the model, or the loaded model, which is then changed.
        calibration: text on which plans are measured: a file, ``hub:NAME`` or a text.
        out: run folder, for the study and the saved model.
        keep: share to keep, or several; 0.8 by default, unless the config has `max_increase`.
        report: text on which perplexities are reported; never the calibration text.
        recover_text: text on which recovery trains; the calibration text if None.
        config: everything else; see `PruneConfig`.
        device: ``cpu``, ``cuda``, ``mps``, or several, as ``cuda:0,cuda:1``: they share the
            measuring, or the blocks of a model that does not fit on one; ``cuda:0+cuda:1`` shares
            the blocks in any case.
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
        ...     measured_tokens=640, final_tokens=640, moment_tokens=1_280
        ... )
        >>> config = lmscout.PruneConfig(pairs=20, calibration=little)
        >>> pruned = lmscout.prune(
        ...     "MODEL", calibration="train.txt", out="smaller", config=config, progress=False
        ... )
        >>> [size.keep for size in pruned.sizes]
        [0.8]
    """
    from lmscout.evaluation import devices_of
    from lmscout.pruning import workflow
    from lmscout.pruning.config import PruneConfig, shares_of

    devices = as_name(device)
    first, *others = devices_of(devices)
    request = config or PruneConfig()
    if keep is not None:
        request = replace(request, keep=shares_of(keep))
    if others:
        request = replace(request, devices=tuple(others), split="+" in devices)
    text, report_on, recover_on = map(text_named, (calibration, report, recover_text))
    assert text is not None
    with shown_progress(progress) as advance:
        return workflow.prune(
            *(model_named(model), text, request, Path(out), first, as_name(compute_dtype)),
            report_on=report_on, recover_on=recover_on, progress=advance,
        )  # fmt: skip


@public
def evaluate(
    model: Path_ | LoadedModel,
    *,
    perplexity: Path_ | Sequence[Path_] = (),
    tasks: str | Sequence[str] = (),
    protocol: str | Sequence[str] = "llm-pruner",
    limit_tokens: int | None = None,
    batch_tokens: int = 4096,
    task_data: Path_ | None = None,
    shots: int | None = None,
    limit: int | None = None,
    speed: bool = False,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
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
            model_named(model),
            perplexity=several(perplexity),
            tasks=[one for one in several(tasks) if one],
            protocol=several(protocol),
            limit_tokens=limit_tokens,
            batch_tokens=batch_tokens,
            task_data=path_of(task_data),
            shots=shots,
            limit=limit,
            speed=speed,
            dtype=as_name(dtype),
            device=as_name(device),
            out=path_of(out),
            progress=advance,
        )


@public
def export(
    model: Path_ | LoadedModel,
    *,
    out: Path_,
    to: str = "gguf",
    quantize: str | None = None,
    progress: Progress = True,
) -> GgufFile:
    """Write a model, pruned or not, as a file of another runtime.

    Args:
        model: folder or Hub name of the model, or the loaded model, in float32.
        out: the file, which must not exist.
        to: the format: ``gguf``, of llama.cpp (``pip install 'lmscout[gguf]'``).
        quantize: type of the weights: ``f32``, ``f16``, ``bf16``, ``q8_0``, or, with xllamacpp
            installed, ``q6_k``, ``q5_k_m``, ``q4_k_m``; None for bf16 if the model was saved so,
            else f16.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        The file, and how it was checked: by llama.cpp where xllamacpp is installed.

    Raises:
        LmscoutError: the format is unknown or cannot hold the model, the file exists or cannot be
            written, or a package is missing.

    Example:
        >>> import lmscout
        >>> written = lmscout.export("MODEL", out="model.gguf", progress=False)
        >>> written.architecture, written.type
        ('llama', 'f16')
    """
    from lmscout.integrations import writer

    with shown_progress(progress) as advance:
        return writer(to)(model_named(model), Path(out), quantize, progress=advance)


@public
def build_benchmark(
    space: Path_ | ArchitectureSpace,
    *,
    n: int,
    out: Path_,
    tokens: int | None = None,
    text: Path_ | Sequence[Path_] = (),
    corpus: Path_ | None = None,
    seed: int = 0,
    seeds: int = 3,
    device: str | torch.device = "auto",
    workers: int | None = None,
    cluster: str | None = None,
    progress: Progress = True,
) -> Built:
    """Train architectures of a space by one recipe and write them as a benchmark.

    Args:
        space: ``pico``, ``iso``, ``nano``, a JSON file, or a space of architectures.
        n: number of architectures.
        out: folder of the benchmark, afterwards ``bench:OUT``; the same call continues a build
            that was stopped.
        tokens: training tokens of each architecture; None for the recipe's.  With fewer than
            218,454 the loss is validated on three fifths as many, else on 131,072 or all there are.
        text: file to train on, or several; the built-in text if none.
        corpus: safetensors file of tokens to train on instead of a text.
        seed: of the draw of architectures.
        seeds: trainings of every tenth one, by which the noise is estimated.
        device: ``auto``, ``cpu`` or CUDA devices.
        workers: models trained at once; None for the device's default.
        cluster: address of a Ray cluster that trains them; None for this machine.
        progress: whether to show progress on stderr, or a callback.

    Returns:
        Numbers of architectures and trainings, and the range of losses.

    Raises:
        LmscoutError: an argument is invalid, or a file cannot be read or written.

    Example:
        >>> import lmscout
        >>> built = lmscout.build_benchmark(
        ...     "nano", n=2, out="mine", tokens=20_000, text="train.txt", seeds=1, progress=False
        ... )
        >>> built.n_architectures
        2
    """
    from lmscout.benchmarks.build import build
    from lmscout.benchmarks.space import load_space
    from lmscout.benchmarks.training import Recipe, tokens_of

    check_whole("seed", seed, 0, LAST_SEED)
    check_whole("seeds", seeds, 1)
    named = as_name(space)
    drawn_from: Any = load_space(named) if isinstance(named, str) else named
    recipe = Recipe.of_tokens(tokens, drawn_from.max_length)
    data = tokens_of(list(map(Path, several(text))), path_of(corpus))
    spread: dict[str, Any] = {"device": as_name(device), "workers": workers, "cluster": cluster}
    with shown_progress(progress) as advance:
        spread["progress"] = advance and partial(advance, "training")
        return build(drawn_from, n, Path(out), data, recipe, seed=seed, seeds=seeds, **spread)


@public
def check_benchmark(
    benchmark: Path_ | Benchmark, *, seed: int = 0, out: Path_ | None = None
) -> Check:
    """Measure what a built benchmark can distinguish: its noise, and its configuration baselines.

    Args:
        benchmark: folder that `build_benchmark` wrote, or ``pico``, ``iso``; or the loaded one.
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
    from lmscout.benchmarks.check import kept_check

    return kept_check(as_name(benchmark), seed, path_of(out))


@public
def report(run: Path_, *, out: Path_ | None = None, beside: Path_ | None = None) -> Path:
    """Write the report of a run: one HTML file with figures and tables, made from its folder.

    Args:
        run: run folder of any command, finished or not, or a file that a result's `save` wrote.
        out: the HTML file; None for ``report.html`` in the run folder.
        beside: run folder of `rank` on the same benchmark, whose proxies are shown beside a
            discovered one.

    Returns:
        The file.

    Raises:
        LmscoutError: the folder holds nothing to show or is damaged, or the file cannot be
            written.

    Example:
        >>> import lmscout
        >>> checked = lmscout.check_benchmark("pico", out="checked")
        >>> lmscout.report("checked").name
        'report.html'
    """
    from lmscout.reports import write_report

    return write_report(run, out, beside)
