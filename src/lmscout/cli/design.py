"""`lmscout design`: an architecture within a limit of parameters, found without training."""

from __future__ import annotations

import shlex
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lmscout.cli import console
from lmscout.cli.options import (
    LAST_SEED,
    BackendOption,
    DeviceOption,
    JsonOption,
    WorkersOption,
    parameter_count,
)
from lmscout.files import as_json, check_file, write_file

if TYPE_CHECKING:
    from lmscout.discovery import Design, Selection
    from lmscout.discovery.selection import Pick
    from lmscout.models import ArchitectureSpec

PICO = "pico"  # the space of which there is a benchmark

# Fields of a spec with an entry a block, and how they are shown.
_OF_BLOCKS = {"heads": "heads", "key_value_heads": "key-value heads", "inner": "MLP width"}


def design(
    space: Annotated[
        str,
        typer.Argument(
            metavar="SPACE",
            help="pico, nano or FILE.json, as bench build takes it: searched; or a benchmark as "
            "rank takes it, to see what the proxy's choice is worth.",
            show_default=False,
        ),
    ],
    proxy: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_EXPRESSION",
            help="A proxy of the catalog, or an expression; a minus sign before it, as discover "
            "prints it, where lower scores are better: -snip.",
            show_default=False,
        ),
    ],
    max_params: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="Parameters of the model at most, embeddings and all: 3M, 120k, 1500000.",
            show_default=False,
        ),
    ],
    evaluations: Annotated[int, typer.Option(min=1, max=10**7, help="Architectures read.")] = 200,
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="Of what is drawn and changed.")
    ] = 0,
    weights: Annotated[
        int,
        typer.Option(
            min=1,
            max=10_000,
            metavar="DRAWS",
            help="Of initial weights and data, over which scores are averaged; each reads every "
            "architecture once more.",
        ),
    ] = 1,
    on_benchmark: Annotated[
        bool,
        typer.Option(
            "--on-benchmark", help="SPACE is a benchmark: of pico, the trained architectures."
        ),
    ] = False,
    workers: WorkersOption = -1,
    backend: BackendOption = "loky",
    device: DeviceOption = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the architecture's spec as JSON.", show_default=False
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Find the architecture that a proxy scores best, untrained.

    In a space, regularized evolution draws and changes architectures within the limit, and each is
    built and read in one pass; the same command continues a search that was stopped.  On a
    benchmark, the proxy chooses among architectures whose quality is known, and the report
    says how good its choice is, beside those of the configuration baselines and of chance.
    """
    limit = parameter_count(max_params, "--max-params")
    console.check_json_target(json)
    if out is not None:
        check_file(out, "--out")
    # Imported here, so that `--help` does not wait for PyTorch.
    from lmscout import api
    from lmscout.runs import Run, default_run_folder

    result = api.design(
        space,
        proxy=proxy,
        max_params=limit,
        n_evaluations=evaluations,
        seed=seed,
        n_weights=weights,
        on_benchmark=on_benchmark,
        workers=workers,
        backend=backend,
        device=device,
    )
    if out is not None:
        write_file(out, as_json(result.spec.to_dict()), name=f"--out {out}")
    if json != console.STDOUT:
        show(result)
        if out is not None:
            print(f"spec: {out}")
    update = {"space": space, "on_benchmark": on_benchmark, "evaluations": evaluations}
    console.write_result(json, result, Run(default_run_folder("design"), "design", update))


def show(result: Design | Selection) -> None:
    """Print the architecture, or what selecting it on a benchmark amounts to."""
    from lmscout.discovery import Selection

    if isinstance(result, Selection):
        _show_selection(result)
    else:
        _show_design(result)


def _show_design(result: Design) -> None:
    screen = console.table_console()
    screen.print(
        f"[bold]{escape(result.space)}[/bold] within {result.limit:,} parameters: "
        f"{result.n_scored} architectures scored{_several(result)}{_without_score(result)}",
        highlight=False,
    )
    drawn = "" if result.drawn_score is None else f"; best of those drawn {result.drawn_score:.6g}"
    screen.print(f"{result.proxy}: score {result.score:.6g}{drawn}", highlight=False)
    _show_architecture(result.spec)
    where = f"{PICO} --on-benchmark" if result.space == PICO else "BENCHMARK --on-benchmark"
    proxy = shlex.quote(str(result.proxy))
    print("Nothing was trained. What this proxy's choice is worth where quality was measured:")
    weights = f" --weights {result.weights}" if result.weights > 1 else ""
    print(f"  lmscout design {where} --proxy {proxy} --max-params {result.limit}{weights}")


def _show_selection(result: Selection) -> None:
    screen = console.table_console()
    screen.print(
        f"[bold]{escape(result.benchmark)}[/bold] within {result.limit:,} parameters: "
        f"{result.n_within} architectures, {result.n_drawn} drawn{_several(result)}"
        f"{_without_score(result)}; quality is {result.metric}",
        highlight=False,
    )
    table = Table(
        caption="tied: that it cannot distinguish, over which the figures are means\n"
        "random trials: the fewest trained at random whose best is expected to be as good"
    )
    table.add_column("chosen by")
    rank = f"true rank of {result.n_within}"
    for column in (rank, "top", "regret", "tied", "random trials"):
        table.add_column(column, justify="right")
    table.add_row(*_pick_cells(result.pick), style="bold")
    table.add_section()
    for one in result.baselines:
        table.add_row(*_pick_cells(one))
    table.add_section()
    for one in (result.at_random, result.best_drawn):
        table.add_row(*_pick_cells(one), style="dim")
    screen.print(table)
    if result.seen:
        screen.print(console.FLATTERED, highlight=False)
    own, other = result.pick.rank, result.hardest.rank
    verdict = "better than" if own < other else "as well as" if own == other else "worse than"
    screen.print(
        f"It chooses {verdict} the best of the configuration baselines, {result.hardest.name}.",
        highlight=False,
    )
    others = result.pick.n_tied - 1
    tied = f", the first drawn of {result.pick.n_tied} tied ones" if others else ""
    screen.print(f"architecture {result.identifier}{tied}:", highlight=False)
    _show_architecture(result.spec)


def _several(result: Design | Selection) -> str:
    return f" with {result.weights} draws of weights" if result.weights > 1 else ""


def _without_score(result: Design | Selection) -> str:
    return f", {result.n_undefined} of them without a score" if result.n_undefined else ""


def _pick_cells(one: Pick) -> list[str]:
    return [
        one.name,
        f"{one.rank:.1f}".removesuffix(".0"),
        f"{one.top:.1%}",
        f"{one.regret:.4g}",
        str(one.n_tied),
        str(one.trials),
    ]


def _show_architecture(spec: ArchitectureSpec) -> None:
    screen = console.table_console()
    depth = f"{spec.depth} block{'s' if spec.depth > 1 else ''}"
    screen.print(
        f"{spec.kind}, {depth}, width {spec.width}, {spec.parameters():,} parameters",
        highlight=False,
    )
    blocks = _block_rows(spec)
    table = Table()
    table.add_column("blocks")
    for name in blocks[0]:
        table.add_column(name, justify="right")
    start = 0
    for row, same in groupby(blocks):
        stop = start + len(list(same))
        table.add_row(f"{start}" if stop == start + 1 else f"{start}-{stop - 1}", *row.values())
        start = stop
    screen.print(table)


def _block_rows(spec: ArchitectureSpec) -> list[dict[str, str]]:
    """What each block is, by field."""
    values: dict[str, Any] = spec.to_dict()
    blocks = values.get("blocks") or [
        {shown: values[name][block] for name, shown in _OF_BLOCKS.items() if name in values}
        for block in range(spec.depth)
    ]
    return [
        {name.replace("_", " "): "–" if value == 0 else str(value) for name, value in one.items()}
        for one in blocks
    ]
