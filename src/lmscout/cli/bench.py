"""`lmscout bench`: build a benchmark of one's own, and see what it is good for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lmscout.cli import console
from lmscout.cli.options import LAST_SEED, JsonOption, KeepOption

if TYPE_CHECKING:
    from lmscout.benchmarks.build import Built
    from lmscout.benchmarks.check import Check

app = typer.Typer(
    help="Build benchmarks of trained architectures, and check them.", rich_markup_mode=None
)


@app.command()
def build(
    space: Annotated[
        str,
        typer.Argument(
            metavar="SPACE",
            help="pico; nano, a toy to try this with; or FILE.json, a space of your own.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The benchmark's folder.", show_default=False)],
    n: Annotated[int, typer.Option("--n", min=1, max=100_000, help="Architectures.")] = 240,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**12,
            help="Tokens that each architecture is trained on.",
            show_default="the recipe's",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="Of the draw of architectures.")
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Trainings of every tenth one, by which noise is known."
        ),
    ] = 3,
    device: Annotated[
        str, typer.Option(help="cpu, cuda (every GPU), cuda:1, or auto: every GPU, else the CPU.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Models trained at once.",
            show_default="8 a GPU, or one a CPU core",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Train on this text; may be given several times; the built-in text by default.",
            show_default=False,
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train on these tokens: safetensors with the vectors train and validation.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train architectures of a space and write a benchmark.

    All are trained by one recipe.  The same command continues a build that was stopped, at
    whatever moment; the benchmark is then rank's and discover's as bench:DIR.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    from lmscout import api
    from lmscout.benchmarks.space import load_space
    from lmscout.benchmarks.training import Recipe

    drawn_from = load_space(space)
    settings = {} if tokens is None else {"tokens": tokens}
    result = api.build_benchmark(
        drawn_from,
        n=n,
        out=out,
        recipe=Recipe(length=drawn_from.max_length, **settings),
        texts=text or (),
        corpus=corpus,
        seed=seed,
        n_seeds=seeds,
        device=device,
        workers=workers,
    )
    show_built(result)
    print(f"benchmark: {out}")
    print(f"what it is good for: lmscout bench check {out}")


def show_built(result: Built) -> None:
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
    benchmark: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="What lmscout bench build wrote, or pico.", show_default=False
        ),
    ],
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of the simulated noise.")] = 0,
    out: KeepOption = None,
    json: JsonOption = None,
) -> None:
    """Say what a built benchmark is good for.

    How much of a quality is noise, what the configuration alone says, and whether proxies can
    be distinguished on it.
    """
    # Imported here, so that `--help` does not wait for NumPy.
    from lmscout import api
    from lmscout.runs import Run, default_run_folder

    console.check_json_target(json)
    result = api.check_benchmark(benchmark, seed=seed, out=out)
    if json != console.STDOUT:
        show_check(result)
    console.write_result(json, result, Run(out or default_run_folder("bench-check"), "bench check"))


def show_check(result: Check) -> None:
    """Print what a benchmark can distinguish."""
    screen = console.table_console()
    left_out = f", {result.n_left_out} left out" if result.n_left_out else ""
    screen.print(
        f"[bold]{escape(result.folder.name)}[/bold]: {result.n_architectures} architectures"
        f"{left_out}, {result.n_replicated} of them trained with several seeds"
    )
    screen.print(
        f"quality spreads by {result.spread:.3f} nats a token (standard deviation), "
        f"{result.spread_in_cell:.3f} within one depth and width; "
        f"its noise is {result.noise:.3f}",
        highlight=False,
    )
    table = Table(
        caption="95 %: of simulated noise above the line, bootstrap over architectures below it"
    )
    table.add_column("")
    for column in ("ρ", "95 %", "τ", "95 %"):
        table.add_column(column, justify="right")
    table.add_row("noise ceiling: a perfect proxy", *console.agreement_cells(result.ceiling))
    table.add_row("quality measured again", *console.agreement_cells(result.repeat))
    table.add_section()
    for name, found in result.baselines.items():
        table.add_row(name, *console.agreement_cells(found), style="dim")
    screen.print(table)
    screen.print(
        f"pairs of architectures that differ by more than noise: {result.distinguishable:.1%}; "
        f"of one depth and width: {result.distinguishable_in_cell:.1%}",
        highlight=False,
    )
    for condition, holds in result.verdicts.items():
        screen.print(f"  {'yes' if holds else 'no '}  {condition}", highlight=False)
    can = "can" if result.distinguishes else "cannot"
    screen.print(f"This benchmark {can} tell proxies apart.", highlight=False)
