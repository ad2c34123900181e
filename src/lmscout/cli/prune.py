"""`lmscout prune`: prune a causal language model with an accuracy predictor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table

from lmscout.children import load_modules
from lmscout.cli import console
from lmscout.cli.options import (
    COMPENSATIONS,
    COMPUTATION,
    DTYPES,
    IMPORTANCES,
    MEASURES,
    OUTPUT,
    QUALITIES,
    RECOVERIES,
    REFITS,
    SEEDS,
    SHAPES,
    TEXT_HELP,
    UNITS,
    ClusterOption,
    JsonOption,
    ModelArgument,
    option,
)
from lmscout.errors import LmscoutError
from lmscout.progress import duration

if TYPE_CHECKING:
    import torch

    from lmscout.pruning.config import PruneConfig
    from lmscout.pruning.recovery.run import RecoveryConfig
    from lmscout.pruning.results import Pruning, Reported

_GIB, _MIB = 2**30, 2**20
_TEXTS, _BUDGET, _SEARCH, _RECOVERY = "Texts", "Budget", "Measurement and search", "Recovery"
_WINDOW, _WINDOWS = (2, 2**31), (12, 10**9)
_NARROWINGS = 8  # lines of the summary, those of the largest cost


def prune(
    model: ModelArgument,
    *,
    calibration: Annotated[
        str, option(_TEXTS, f"Text on which plans are measured: {TEXT_HELP}.", metavar="TEXT")
    ],
    report: Annotated[
        str | None, option(_TEXTS, "Text on which perplexities are reported.", metavar="TEXT")
    ] = None,
    report_tokens: Annotated[
        int | None, option(_TEXTS, "Use only the report text's first tokens.", whole=(2, 10**12))
    ] = None,
    protocol: Annotated[
        str,
        option(
            _TEXTS,
            "Protocol of the reported perplexities: llm-pruner, windows-512, sliding or "
            "sliding-1024.",
            metavar="NAME",
        ),
    ] = "llm-pruner",
    window: Annotated[
        int | None,
        option(
            _TEXTS,
            "Tokens per calibration window (or --seqlen); by default 128, or the model's attention "
            "span if that is less.",
            whole=_WINDOW,
        ),
    ] = None,
    seqlen: Annotated[int | None, option(_TEXTS, "", whole=_WINDOW, hidden=True)] = None,
    calibration_windows: Annotated[
        int | None,
        option(
            _TEXTS,
            "Windows of calibration text, drawn at random (or --nsamples); by default those of "
            "74,000 tokens.",
            whole=_WINDOWS,
        ),
    ] = None,
    nsamples: Annotated[int | None, option(_TEXTS, "", whole=_WINDOWS, hidden=True)] = None,
    calibration_tokens: Annotated[
        int | None,
        option(
            _TEXTS,
            "The same in tokens: an eighth measures plans, a fifth the finalists, two thirds "
            "fit the compensation.",
            whole=(24, 10**12),
        ),
    ] = None,
    keep: Annotated[
        str | None,
        option(
            _BUDGET,
            "Share to keep, or several from one study: 0.9,0.8,0.7; by default 0.8.",
            metavar="SHARE,...",
        ),
    ] = None,
    max_increase: Annotated[
        float | None,
        option(
            _BUDGET,
            "In place of --keep: find the smallest plan whose loss increase on further text is at "
            "most this, in nats/token, with 90 % confidence.",
            metavar="NATS",
        ),
    ] = None,
    worse_by: Annotated[
        str | None, option(_BUDGET, "The same in perplexity: 5%.", metavar="PERCENT")
    ] = None,
    front: Annotated[
        bool,
        option(
            _BUDGET,
            "Measure the best plan of every size from 0.95 to 0.3 as well, and write front.csv and "
            "front.json into the run folder.",
            "--front",
        ),
    ] = False,
    of: Annotated[
        str,
        option(
            _BUDGET,
            "What it is a share of (parameters: in attention and MLP; else of the whole model)",
            choices=MEASURES,
        ),
    ] = "parameters",
    units: Annotated[
        str,
        option(
            _BUDGET,
            "What is removed of mixtures of experts (channels: of every expert)",
            choices=UNITS,
        ),
    ] = "experts",
    shape: Annotated[
        str,
        option(
            _BUDGET,
            "Block sizes (uniform: all alike, a model that stock transformers loads; deci: "
            "attention whole or absent, a model that vLLM loads)",
            choices=SHAPES,
        ),
    ] = "any",
    channel_multiple: Annotated[
        int | None,
        option(
            _BUDGET,
            "MLP widths are multiples of it; by default of what is fast on the device.",
            whole=(1, 2**20),
        ),
    ] = None,
    pairs: Annotated[
        int,
        option(
            _SEARCH,
            "Architecture-accuracy pairs to measure; 0: none, by the estimate of obs.",
            whole=(0, 100_000),
        ),
    ] = 200,
    importance: Annotated[
        str, option(_SEARCH, "Importance that orders units", choices=IMPORTANCES)
    ] = "obs",
    compensation: Annotated[
        str, option(_SEARCH, "Compensation of pruned units", choices=COMPENSATIONS)
    ] = "least-squares",
    refit: Annotated[
        str, option(_SEARCH, "Refit of the best plans' weights", choices=REFITS)
    ] = "sequential",
    quality: Annotated[
        str | None,
        option(
            _SEARCH,
            "What is measured (kl: divergence from the dense model, the default; nll: loss "
            "increase, with a bound or --front)",
            choices=QUALITIES,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        option(
            _SEARCH,
            "Search by a proxy alone, without measured pairs: name of the catalog or expression, "
            "as proxy:snip.",
            metavar="proxy:PROXY",
        ),
    ] = None,
    feature: Annotated[
        list[str] | None,
        option(
            _SEARCH,
            "Use a proxy's score as a feature of the predictor; repeatable.",
            metavar="proxy:PROXY",
        ),
    ] = None,
    seed: Annotated[int, option(_SEARCH, "Seed of everything that is drawn.", whole=SEEDS)] = 0,
    storage: Annotated[
        str | None,
        option(
            _SEARCH,
            "Optuna storage of the study: a URL, a SQLite file, or journal:FILE on a shared file "
            "system; by default a file in the run folder. Runs of the same command measure "
            "together; others that share it take turns.",
            metavar="URL|FILE",
        ),
    ] = None,
    recover: Annotated[
        str | None,
        option(
            _RECOVERY,
            "Train the selected model through adapters that are merged before saving (distill: "
            "towards the dense model's logits)",
            choices=RECOVERIES,
        ),
    ] = None,
    elastic: Annotated[
        bool,
        option(
            _RECOVERY,
            "Train one adapter for all plans before any is measured, by --recover or distill.",
            "--elastic",
        ),
    ] = False,
    recover_text: Annotated[
        str | None,
        option(_RECOVERY, "Training text; by default the calibration text.", metavar="TEXT"),
    ] = None,
    recover_steps: Annotated[
        int | None,
        option(_RECOVERY, "Maximum steps; 300 unless tokens or minutes are given.", metavar="INT"),
    ] = None,
    recover_tokens: Annotated[
        int | None, option(_RECOVERY, "Maximum tokens over all steps.", metavar="INT")
    ] = None,
    recover_minutes: Annotated[
        float | None,
        option(
            _RECOVERY, "Maximum minutes; the result then depends on the machine.", metavar="FLOAT"
        ),
    ] = None,
    recover_rank: Annotated[
        int | None, option(_RECOVERY, "Rank of the adapters; 16 by default.", metavar="INT")
    ] = None,
    recover_rate: Annotated[
        float | None, option(_RECOVERY, "Highest learning rate; 0.001 by default.", metavar="FLOAT")
    ] = None,
    recover_batch: Annotated[
        int | None, option(_RECOVERY, "Tokens per step; 2,048 by default.", metavar="INT")
    ] = None,
    device: Annotated[
        str,
        option(
            COMPUTATION,
            "cpu, cuda, mps, or several that share the measuring, or a model that does not fit on "
            "one: cuda:0,cuda:1 (the model in any case: cuda:0+cuda:1).",
            metavar="DEVICE",
        ),
    ] = "cpu",
    cluster: ClusterOption = None,
    compute_dtype: Annotated[
        str | None,
        option(
            COMPUTATION,
            "Type of the weights in memory; by default float32 on a CPU, else as saved",
            choices=DTYPES,
        ),
    ] = None,
    out: Annotated[
        Path,
        option(
            OUTPUT,
            "Run folder: study and saved model; a stopped run in it continues.",
            metavar="FOLDER",
        ),
    ],
    dtype: Annotated[
        str | None,
        option(OUTPUT, "Type of the saved weights; by default as MODEL's", choices=DTYPES),
    ] = None,
    dry_run: Annotated[
        bool,
        option(
            OUTPUT,
            "Estimate memory and time, and stop; MODEL needs no weights, only its config.json.",
            "--dry-run",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Prune a causal language model with an accuracy predictor.

    The same command continues a run that was stopped; no pair is measured twice.
    """
    console.check_json_target(json)
    if report_tokens is not None and report is None:
        raise LmscoutError("--report-tokens has nothing to apply to: give --report TEXT")
    load_modules("lmscout.pruning.workflow")
    from lmscout import api
    from lmscout.evaluation import devices_of, read_text
    from lmscout.pruning.calibration import CalibrationConfig
    from lmscout.pruning.config import COMMAND, PruneConfig, check_request
    from lmscout.pruning.storage import home_path
    from lmscout.runs import Run

    out = home_path(out)
    windows = calibration_windows or nsamples
    calibration_settings = CalibrationConfig(
        importance=importance,
        compensate=compensation != "none",
        quality=quality,
        window=window or seqlen,
        windows=windows,
    )
    if calibration_tokens is not None:
        if windows is not None:
            raise LmscoutError("--calibration-windows and --calibration-tokens: give one of them")
        calibration_settings = calibration_settings.of_tokens(calibration_tokens)
    devices = devices_of(device)
    request = PruneConfig(
        keep=() if keep is None else _shares(keep),
        max_increase=_bound(max_increase, worse_by),
        front=front,
        of=of,
        units=units,
        shape=shape,
        pairs=pairs,
        refit=refit,
        seed=seed,
        protocol=protocol,
        report_tokens=report_tokens,
        dtype=dtype,
        calibration=calibration_settings,
        storage=storage,
        channel_multiple=channel_multiple,
        devices=devices[1:],
        split="+" in device,
        cluster=cluster,
        recovery=recovery_request(
            recover,
            elastic,
            seed,
            text=recover_text,
            steps=recover_steps,
            tokens=recover_tokens,
            minutes=recover_minutes,
            rank=recover_rank,
            rate=recover_rate,
            batch=recover_batch,
        ),
        objective=objective,
        features=tuple(feature or ()),
    )
    if dry_run:
        texts = [one and read_text(one) for one in (calibration, report, recover_text)]
        check_request(request, texts[0], texts[1], None, texts[2])  # type: ignore[arg-type]
        _estimate(model, request, compute_dtype, devices[0], json, reporting=report is not None)
        return
    result = api.prune(
        model,
        calibration=calibration,
        out=out,
        report=report,
        recover_text=recover_text,
        config=request,
        device=device,
        compute_dtype=compute_dtype,
    )
    console.finish(result, show, json, Run(out, COMMAND))


def _shares(given: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in given.split(","))
    except ValueError:
        raise LmscoutError(f"--keep {given}: no share (expected 0.8, or 0.9,0.8)") from None


def _bound(max_increase: float | None, worse_by: str | None) -> float | None:
    """The largest loss increase in nats/token; None if neither option is given."""
    if worse_by is None:
        return max_increase
    if max_increase is not None:
        raise LmscoutError("--max-increase and --worse-by: give one of them")
    try:
        percent = float(worse_by.removesuffix("%")) if worse_by.endswith("%") else math.nan
    except ValueError:
        percent = math.nan
    if not 0 < percent < math.inf:
        raise LmscoutError(
            f"--worse-by {worse_by}: no percentage above 0; write it with its sign, such as 5%"
        )
    return math.log1p(percent / 100)


def recovery_request(
    method: str | None, elastic: bool, seed: int, *, text: str | None = None, **given: Any
) -> RecoveryConfig:
    """The recovery that the options describe; None stands for a default.

    LmscoutError if there are options of a recovery without one, or a number is invalid.
    """
    from lmscout.pruning.recovery.run import RecoveryConfig

    values = {name: value for name, value in given.items() if value is not None}
    if method is None and not elastic:
        for name in [*(["text"] if text is not None else []), *values]:
            raise LmscoutError(
                f"--recover-{name} is for --recover lora, --recover distill or --elastic"
            )
    return RecoveryConfig.of(method, elastic=elastic, seed=seed, **values)


def show(result: Pruning) -> None:
    """Print the found models beside uniform pruning, and what the run measured."""
    console.print_table(table(result))
    for note in _notes(result):
        console.say(note, style="dim")
    _show_run(result)
    if result.front:
        console.print_table(front_table(result))
    print(f"study: {result.study}")
    for size in result.sizes:
        print(f"saved model: {size.folder}")


def table(result: Pruning) -> Table:
    """The models of the report, one row each."""
    from lmscout.pruning.results import LABELS

    dense = result.dense
    shown = console.table(
        "",
        *("parameters", "kept\nof all", "of pru-\nnable", "loss\nincr."),
        *(["perplex-\nity", "over\ndense"] if dense.perplexity is not None else []),
    )
    recovered = any(size.recovery for size in result.sizes)
    rows: list[tuple[str, Reported | None]] = [(LABELS["dense"], dense)]
    if result.dense_elastic is not None:
        rows.append((LABELS["dense_elastic"], result.dense_elastic))
    for size in result.sizes:
        rows.append((f"keep {size.keep:g} of {result.of}", None))
        rows += [(LABELS[one.name], one) for one in size.models]
    for name, one in rows:
        if one is None:
            shown.add_section()
            shown.add_row(f"[italic]{name}[/italic]")
            continue
        cells = [name, f"{one.params:,}", f"{one.kept_of_all:.1%}", f"{one.kept:.1%}"]
        cells.append(_signed(one.loss_increase))
        if one.perplexity is not None and dense.perplexity is not None:
            cells.append(f"{one.perplexity.value:,.2f}")
            over = one.perplexity.value / dense.perplexity.value - 1
            cells.append(f"{over:+.{0 if over >= 10 else 1}%}")
        best = one.name == ("found_recovered" if recovered else "found")
        shown.add_row(*cells, style="bold" if best else None)
    return shown


def front_table(result: Pruning) -> Table:
    """Size against quality, one row for each size."""
    shown = console.table(
        "front: best plan", "kept", "loss\nincr.", "at\nmost", "perplexity\nover dense"
    )
    for one in result.front:
        over = f"{one.perplexity_ratio - 1:+.1%}"
        values = f"{one.kept:.1%}", _signed(one.loss_increase), _signed(one.upper), over
        shown.add_row(f"keep {one.keep:g} of {result.of}", *values)
    return shown


def _notes(result: Pruning) -> list[str]:
    """Legends of the table's columns and rows."""
    from lmscout.pruning.results import LABELS

    rows = [one for size in result.sizes for one in size.models]
    seen = any(one.loss_increase is None for one in rows)
    protected = any("protected" in LABELS[one.name] for one in rows)
    return [
        "kept: share of the dense model's parameters; prunable: those in attention and MLP",
        f"loss increase: nats/token over the dense model on {result.held_out_tokens:,} held-out "
        f"tokens of calibration text{'; –: recovery was trained on them' if seen else ''}",
        *(["protected: first and last sixth of the blocks unpruned"] if protected else []),
    ]


def _signed(increase: float | None) -> str:
    if increase is None:
        return "–"
    return f"{increase:+.4f}" if math.isfinite(increase) else "infinite"


def _show_run(result: Pruning) -> None:
    """Print predictor, narrowing, sizes, recovery and seconds."""
    if result.objective is not None:
        console.say(f"objective: {result.objective.words}")
    else:
        without = "all plans were measured" if result.pairs else "no plan was measured"
        words = result.predictor.words if result.predictor else f"none: {without}"
        console.say(f"predictor: {words}")
    steps = sorted(result.narrowing_steps, key=lambda one: -abs(one.cost))
    for step in steps[:_NARROWINGS]:
        console.say(f"  {step.words}")
    if len(steps) > _NARROWINGS:
        console.say(f"  and {len(steps) - _NARROWINGS} more narrowing steps, see --json")
    if result.bound is not None:
        console.say(result.bound.words, style="bold")
    for size in result.sizes:
        console.say(size.words)
        for verdict in size.verdict:
            console.say(verdict, style="bold")
        if size.recovery is not None:
            console.say(f"  recovered by {size.recovery.words}")
    if result.elastic is not None:
        console.say(f"elastic recovery by {result.elastic.trained.words}")
        for change in result.elastic.orders:
            console.say(f"  {change.words}")
    if result.below_dense is not None:
        console.say(result.below_dense)
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
    console.say(f"{result.pairs} pairs; {seconds}")


def _estimate(
    model: str,
    request: PruneConfig,
    compute_dtype: str | None,
    device: torch.device,
    json: str | None,
    *,
    reporting: bool,
) -> None:
    """Print an estimate of a run that would report perplexities, or not.

    LmscoutError if the run would be refused because of its model.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    from lmscout.evaluation import dtype_named, fit_protocol, load_config, memory_dtype
    from lmscout.pruning.estimate import estimate

    config = load_config(model)
    if reporting:
        fit_protocol(request.protocol, config)  # refuses windows longer than the model's
    dtype = dtype_named(compute_dtype) if compute_dtype else memory_dtype(config, device)
    found = estimate(config, request, dtype=dtype, device=device)
    if json != console.STDOUT:
        table = console.table("", "memory", "time")
        table.add_row("weights", _bytes(found.weights), "")
        table.add_row("gradients", _bytes(found.importance), "")
        ordering = f"about {duration(found.ordering)}"
        table.add_row("ordering units", _bytes(found.calibrating), ordering)
        pairs = _bytes(found.measuring)
        if found.pairs:
            for keep, seconds in found.pair.items():
                short = f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
                table.add_row(f"a pair at keep {keep:g}", pairs, short)
            table.add_row(f"{found.pairs} pairs", pairs, f"at most {duration(found.total)}")
        if found.refitting:
            plans = "a plan" if found.refits <= 1 else f"about {found.refits} plans"
            refitting = f"about {duration(max(1, found.refits) * found.refit)}"
            table.add_row(f"refitting {plans}", _bytes(found.refitting), refitting)
        for one in found.recovery:
            what = {"elastic": "all plans", "winners": f"{one.trainings} winner(s)"}[one.name]
            steps = "" if one.steps is None else f", {one.steps:,} steps"
            table.add_row(
                f"recovering {what}{steps}",
                _bytes(one.memory),
                f"about {duration(one.seconds)}",
            )
        console.print_table(table)
        blocks = sum(part.blocks for part in found.parts)
        for part in found.parts:
            size = f"{_bytes(part.weights)} of weights, peak {_bytes(part.peak)}"
            console.say(f"{part.device}: {part.blocks} of {blocks} blocks, {size}")
        if found.in_host:
            console.say("Factors of the compensation and refit weights in the host's memory.")
        where = ", ".join(part.device for part in found.parts) or found.device
        console.say(
            f"{found.parameters:,} parameters in {str(dtype).removeprefix('torch.')} on "
            f"{where}; peak {_bytes(found.peak)}. Nothing was pruned."
        )
    console.write_values(json, found.to_json())


def _bytes(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / _MIB:.1f} MiB"
