"""`lmscout prune`: a smaller model, chosen by a predictor, saved and reported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from lmscout.cli import console, recovery_options
from lmscout.cli.dry_run import estimate_training_cost
from lmscout.cli.options import DTYPES, LAST_SEED, JsonOption
from lmscout.errors import LmscoutError

if TYPE_CHECKING:
    from lmscout.pruning.results import Pruning, Reported

_SHRINKS = 8  # that the table lists, those of most account
_WIDE = 90  # characters, from which on the table has all its columns


def prune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder that save_pretrained wrote, or a name on the Hugging Face Hub.",
            show_default=False,
        ),
    ],
    calibration: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Text on which plans are measured: a file (plain, gzip, or FILE#FIELD of .jsonl "
            "or .parquet), or hub:OWNER/NAME/CONFIG with :SPLIT#FIELD behind it.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the study and the saved model; a stopped run in it goes on.",
            show_default=False,
        ),
    ],
    keep: Annotated[
        str, typer.Option(help="Share to keep, or several: 0.9,0.8,0.7, served by one study.")
    ] = "0.8",
    of: Annotated[
        str,
        typer.Option(
            help="What it is a share of: parameters (in attention and MLP), multiply-adds, "
            "memory or latency (of the whole model)."
        ),
    ] = "parameters",
    report: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Text on which perplexities are reported.", show_default=False
        ),
    ] = None,
    report_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Use only the report text's first tokens.", show_default=False),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            "--seqlen",
            min=2,
            help="Tokens of a calibration window (sequence length); 128 by default, or what the "
            "model attends over if that is less.",
            show_default=False,
        ),
    ] = None,
    calibration_windows: Annotated[
        int | None,
        typer.Option(
            "--calibration-windows",
            "--nsamples",
            min=12,
            help="Windows of calibration text in all, drawn at random; by default as many as make "
            "74,000 tokens.",
            show_default=False,
        ),
    ] = None,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(
            min=24,
            help="The same in tokens: an eighth measures plans, a fifth the finalists, two thirds "
            "fit the compensation.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=20, max=100_000, help="Architecture-accuracy pairs.")
    ] = 200,
    importance: Annotated[
        str, typer.Option(help="random, magnitude, taylor, activation or fluctuation.")
    ] = "taylor",
    compensation: Annotated[
        str,
        typer.Option(
            help="least-squares, or none: whether what stays is compensated for what goes."
        ),
    ] = "least-squares",
    quality: Annotated[
        str, typer.Option(help="nll, or kl (divergence from the dense model): what is measured.")
    ] = "nll",
    shape: Annotated[
        str,
        typer.Option(
            help="any: every block at its own size; uniform: as stock transformers loads."
        ),
    ] = "any",
    protocol: Annotated[str, typer.Option(help="Of the reported perplexities.")] = "llm-pruner",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the saved weights: " + ", ".join(DTYPES) + "; as MODEL's by default.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="cpu, cuda, mps, or several that share the measuring: cuda:0,cuda:1."),
    ] = "cpu",
    compute_dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the weights in memory: " + ", ".join(DTYPES) + "; by default float32 on a "
            "CPU, as MODEL is saved elsewhere.",
            show_default=False,
        ),
    ] = None,
    channel_multiple: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**20,
            help="MLP widths are multiples of it; by default of what the device runs fast.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="Of everything that is drawn.")
    ] = 0,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FILE",
            help="Optuna storage for the study: a URL or a SQLite file; by default a file in the "
            "run folder. Runs that share one wait for each other.",
            show_default=False,
        ),
    ] = None,
    recover: recovery_options.MethodOption = None,
    elastic: recovery_options.ElasticOption = False,
    recover_text: recovery_options.TextOption = None,
    recover_steps: recovery_options.StepsOption = None,
    recover_tokens: recovery_options.TokensOption = None,
    recover_minutes: recovery_options.MinutesOption = None,
    recover_rank: recovery_options.RankOption = None,
    recover_rate: recovery_options.RateOption = None,
    recover_batch: recovery_options.BatchOption = None,
    judge: Annotated[str | None, typer.Option(hidden=True)] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="proxy:PROXY",
            help="Search by a proxy alone, with no pair and no finalist measured: an expression, "
            "or a name of the catalog, such as proxy:snip.",
            show_default=False,
        ),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            metavar="proxy:PROXY",
            help="Tell the predictor a proxy's score of every plan; may be given again.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what memory and time a run would take, and stop; a MODEL with nothing but "
            "its config.json will do.",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Prune a causal language model with an accuracy predictor.

    The same command continues a run that was stopped; nothing is measured twice.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    import torch

    from lmscout import api
    from lmscout.evaluation import devices_of, read_text
    from lmscout.pruning.calibration import CalibrationConfig
    from lmscout.pruning.config import PruneConfig, check_request
    from lmscout.pruning.saved_run import COMMAND
    from lmscout.pruning.storage import home_path
    from lmscout.runs import Run

    console.check_json_target(json)
    out = home_path(out)
    if compensation not in ("least-squares", "none"):
        raise LmscoutError(f"--compensation {compensation}: is neither least-squares nor none")
    for option, name in (("--dtype", dtype), ("--compute-dtype", compute_dtype)):
        if name is not None and name not in DTYPES:
            raise LmscoutError(f"{option} {name}: is none of {', '.join(DTYPES)}")
    if report_tokens is not None and report is None:
        raise LmscoutError("--report-tokens has nothing to apply to: give --report TEXT")
    calibration_settings = CalibrationConfig(
        importance=importance,
        compensate=compensation != "none",
        quality=quality,
        window=window,
        windows=calibration_windows,
    )
    if calibration_tokens is not None:
        if calibration_windows is not None:
            raise LmscoutError("--calibration-windows and --calibration-tokens: give one of them")
        calibration_settings = calibration_settings.of_tokens(calibration_tokens)
    devices_of(device)
    request = PruneConfig(
        keep=_shares(keep),
        of=of,
        shape=shape,
        pairs=pairs,
        seed=seed,
        protocol=protocol,
        report_tokens=report_tokens,
        dtype=None if dtype is None else getattr(torch, dtype),
        calibration=calibration_settings,
        storage=storage,
        channel_multiple=channel_multiple,
        recovery=recovery_options.recovery_request(
            recover,
            elastic,
            recover_text,
            seed,
            steps=recover_steps,
            tokens=recover_tokens,
            minutes=recover_minutes,
            rank=recover_rank,
            rate=recover_rate,
            batch=recover_batch,
        ),
        objective=objective or judge,  # `--judge` is its name in version 0.1
        features=tuple(feature or ()),
    )
    if dry_run:
        text = read_text(calibration)
        others = [read_text(one) for one in (report, recover_text) if one is not None]
        check_request(
            request,
            text,
            others[0] if report is not None else None,
            None,
            others[-1] if recover_text is not None else None,
        )
        estimate_training_cost(model, request, compute_dtype, devices_of(device)[0], json,
                 reporting=report is not None)  # fmt: skip
        return
    result = api.prune(
        model,
        calibration=calibration,
        out=out,
        report=report,
        recovery_text=recover_text,
        config=request,
        device=device,
        compute_dtype=compute_dtype,
    )
    if json != console.STDOUT:
        show(result)
    console.write_result(json, result, Run(out, COMMAND))


def _shares(given: str) -> tuple[float, ...]:

    try:
        return tuple(float(one) for one in given.split(","))
    except ValueError:
        raise LmscoutError(
            f"--keep {given}: is no share, nor shares with commas between; try 0.8"
        ) from None


def show(result: Pruning) -> None:
    """Print what was found beside what a uniform cut gives, and what was learnt on the way."""
    screen = console.table_console()
    screen.print(table(result, wide=screen.width >= _WIDE))
    for note in _notes(result):
        screen.print(note, highlight=False, style="dim")
    _tell(result)
    print(f"study: {result.study}")
    for size in result.sizes:
        print(f"saved model: {size.folder}")


def table(result: Pruning, *, wide: bool) -> Table:
    """The models of the report, a row each.

    Args:
        result: what was found.
        wide: whether there is room for perplexities over the dense model's.
    """
    from lmscout.pruning.results import LABELS

    dense = result.dense
    measured = dense.perplexity is not None
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown.add_column("", overflow="fold", min_width=len("uniform, compensated"))
    perplexities = ["perplexity", *(["over\ndense"] if wide else [])] if measured else []
    for column in (
        *("parameters", "kept\nof all", "kept of\nprunable", "loss\nincrease"),
        *perplexities,
    ):
        shown.add_column(column, justify="right", no_wrap=True, vertical="bottom")
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
            cells.append(f"{one.perplexity.value / dense.perplexity.value - 1:+.1%}")
        best = one.name == ("found_recovered" if recovered else "found")
        shown.add_row(*cells[: len(shown.columns)], style="bold" if best else None)
    return shown


def _notes(result: Pruning) -> list[str]:
    """What the table's columns are."""
    rows = [one for size in result.sizes for one in size.models]
    seen = any(one.loss_increase is None for one in rows)
    protected = any(one.name == "uniform_protected" for one in rows)
    return [
        "kept: share of the dense model's parameters: of all, and of the prunable ones, those in "
        "attention and MLP",
        f"loss increase: nats/token over the dense model on {result.held_out_tokens:,} held-out "
        f"tokens of calibration text{'; –: recovery was trained on them' if seen else ''}",
        *(["protected: first and last sixth of the blocks unpruned"] if protected else []),
    ]


def _signed(increase: float | None) -> str:
    if increase is None:
        return "–"
    return f"{increase:+.4f}" if math.isfinite(increase) else "infinite"


def _tell(result: Pruning) -> None:
    """Predictor, narrowings, sizes, recovery and seconds, in sentences."""
    screen = console.table_console()
    words = result.predictor.words if result.predictor else "none: all plans were measured"
    who = "predictor" if result.objective is None else "objective"
    words = words if result.objective is None else result.objective.words
    screen.print(f"{who}: {words}", highlight=False)
    telling = sorted(result.narrowing_steps, key=lambda narrowing_step: -abs(narrowing_step.cost))
    for narrowing_step in telling[:_SHRINKS]:
        screen.print(f"  {narrowing_step.words}", highlight=False)
    if len(telling) > _SHRINKS:
        screen.print(f"  and {len(telling) - _SHRINKS} more narrowings, see --json")
    for size in result.sizes:
        screen.print(size.words, highlight=False)
        for verdict in size.verdict:
            screen.print(verdict, highlight=False, style="bold")
        if size.recovery is not None:
            screen.print(f"  recovered by {size.recovery.words}", highlight=False)
    if result.elastic is not None:
        screen.print(f"elastic recovery by {result.elastic.trained.words}", highlight=False)
        for change in result.elastic.orders:
            screen.print(f"  {change.words}", highlight=False)
    if result.below_dense is not None:
        screen.print(result.below_dense, highlight=False)
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items())
    screen.print(f"{result.pairs} pairs; {seconds}", highlight=False)
