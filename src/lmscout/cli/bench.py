"""`lmscout bench`: build a benchmark of trained architectures, and check it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from lmscout.children import load_modules
from lmscout.cli import console
from lmscout.cli.options import (
    COMPUTATION,
    OUTPUT,
    SEEDS,
    ClusterOption,
    JsonOption,
    KeepOption,
    argument,
    option,
)

if TYPE_CHECKING:
    from lmscout.benchmarks.build import Built
    from lmscout.benchmarks.check import Check

_ARCHITECTURES, _TRAINING = "Architectures", "Training"

app = typer.Typer(help="Build benchmarks of trained architectures, and check them.")


@app.command()
def build(
    space: Annotated[
        str, argument("SPACE", "pico, iso, nano (a toy), or FILE.json, your own space.")
    ],
    *,
    n: Annotated[
        int, option(_ARCHITECTURES, "Number of architectures.", "--n", whole=(1, 100_000))
    ] = 240,
    seed: Annotated[
        int, option(_ARCHITECTURES, "Seed of the draw of architectures.", whole=SEEDS)
    ] = 0,
    seeds: Annotated[
        int,
        option(
            _ARCHITECTURES,
            "Trainings of every tenth architecture, or of each in a space with budgets, by which "
            "noise is estimated.",
            whole=(1, 1000),
        ),
    ] = 3,
    tokens: Annotated[
        int | None,
        option(
            _TRAINING,
            "Training tokens of each; by default the recipe's. The losses are validated on three "
            "fifths as many, at most 131,072.",
            whole=(1, 10**12),
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        option(_TRAINING, "Training text; repeatable; by default the built-in.", metavar="FILE"),
    ] = None,
    corpus: Annotated[
        Path | None,
        option(
            _TRAINING,
            "Training tokens: safetensors with the vectors train and validation.",
            metavar="FILE",
        ),
    ] = None,
    device: Annotated[
        str,
        option(
            COMPUTATION,
            "cpu, cuda (every GPU), cuda:1, or auto: every GPU, else the CPU.",
            metavar="DEVICE",
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        option(
            COMPUTATION,
            "Models trained at once; by default 8 per GPU, or one per CPU core.",
            whole=(1, 1024),
        ),
    ] = None,
    cluster: ClusterOption = None,
    out: Annotated[Path, option(OUTPUT, "Folder of the benchmark.", metavar="FOLDER")],
) -> None:
    """Train architectures of a space by one recipe, and write a benchmark.

    The same command continues a build that was stopped.  The benchmark is bench:FOLDER for rank
    and discover.
    """
    load_modules("lmscout.benchmarks.build")
    from lmscout import api

    result = api.build_benchmark(
        space,
        n=n,
        out=out,
        tokens=tokens,
        text=text or (),
        corpus=corpus,
        seed=seed,
        seeds=seeds,
        device=device,
        workers=workers,
        cluster=cluster,
    )
    _show_built(result)
    print(f"benchmark: {out}")
    print(f"check it: lmscout bench check {out}")


def show(result: Built | Check) -> None:
    """Print what was trained, or what a benchmark can distinguish."""
    from lmscout.benchmarks.build import Built

    if isinstance(result, Built):
        _show_built(result)
    else:
        _show_check(result)


def _show_built(result: Built) -> None:
    """Print what was trained."""
    left_out = f", {result.n_left_out} left out" if result.n_left_out else ""
    losses = ""
    if result.losses is not None:
        losses = f"; final losses {result.losses[0]:.3f} to {result.losses[1]:.3f} nats/token"
    print(
        f"{result.n_architectures} architectures{left_out}, {result.n_models} models trained in "
        f"{result.seconds:,.0f} s{losses}"
    )


@app.command()
def check(
    benchmark: Annotated[str, argument("FOLDER", "Folder of bench build, pico or iso.")],
    seed: Annotated[int, option("Noise", "Seed of the simulated noise.", whole=SEEDS)] = 0,
    out: KeepOption = None,
    json: JsonOption = None,
) -> None:
    """Measure whether a built benchmark can distinguish proxies.

    The noise of a quality, the correlations of the configuration baselines, and the share of
    architectures that differ by more than noise.
    """
    load_modules("lmscout.benchmarks.check")
    from lmscout import api
    from lmscout.runs import Run, default_run_folder

    console.check_json_target(json)
    result = api.check_benchmark(benchmark, seed=seed, out=out)
    run = Run(out or default_run_folder("bench-check"), "bench check")
    console.finish(result, _show_check, json, run)


def _show_check(result: Check) -> None:
    """Print what a benchmark can distinguish."""
    left_out = f", {result.n_left_out} left out" if result.n_left_out else ""
    console.say(
        f"[bold]{escape(result.folder.name)}[/bold]: {result.n_architectures} architectures"
        f"{left_out}, {result.n_replicated} of them trained with several seeds"
    )
    cells = math.isfinite(result.spread_in_cell)
    within = f", {result.spread_in_cell:.3f} within one depth and width" if cells else ""
    console.say(
        f"standard deviation of quality {result.spread:.3f} nats/token{within}; "
        f"noise {result.noise:.3f}"
    )
    table = console.table(
        "",
        *("ρ", "95 %", "τ", "95 %"),
        caption="95 %: of simulated noise in the first rows, bootstrap over architectures below",
    )
    table.add_row("noise ceiling: a perfect proxy", *console.agreement_cells(result.ceiling))
    table.add_row("quality measured again", *console.agreement_cells(result.repeat))
    table.add_section()
    for name, found in result.baselines.items():
        table.add_row(name, *console.agreement_cells(found), style="dim")
    if result.equal:
        known = {names: tau for names, tau in result.pairs.items() if math.isfinite(tau)}
        for best in sorted(known, key=lambda names: abs(known[names]))[-1:]:
            table.add_row(f"fitted: {best}", "", "", f"{known[best]:.3f}", "", style="dim")
    console.print_table(table)
    of_one = f"; of one depth and width: {result.distinguishable_in_cell:.1%}" if cells else ""
    console.say(
        "pairs of architectures that differ by more than noise: "
        f"{result.distinguishable:.1%}{of_one}"
    )
    for condition, holds in result.verdicts.items():
        console.say(f"  {'yes' if holds else 'no '}  {condition}")
    held, of = sum(result.verdicts.values()), len(result.verdicts)
    can = "can" if result.distinguishes else "cannot"
    console.say(f"This benchmark {can} distinguish proxies: {held} of {of} conditions hold.")
