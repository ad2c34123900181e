"""`lmscout rank`: judge given proxies on a benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from lmscout.cli import console
from lmscout.cli.options import (
    LAST_SEED,
    BackendOption,
    BenchmarkArgument,
    DeviceOption,
    JsonOption,
    OutOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from lmscout.discovery import RankResult


def rank(
    benchmark: BenchmarkArgument,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME_OR_EXPRESSION",
            help="A proxy of the catalog, or an expression such as 'sum(std(grad))'; a minus sign "
            "before it where lower scores are better; may be given several times; the whole "
            "catalog by default.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of the models' weights.")] = 0,
    workers: WorkersOption = -1,
    backend: BackendOption = "loky",
    device: DeviceOption = "cpu",
    out: OutOption = None,
    json: JsonOption = None,
) -> None:
    """Judge proxies on all architectures of a benchmark.

    Correlations are with the sign that a proxy was published with, or is given: a negative one
    says that the proxy ranks architectures the wrong way round.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    from lmscout import api
    from lmscout.discovery.scorer import cache_name
    from lmscout.runs import Run, default_run_folder

    console.check_json_target(json)
    folder = out or default_run_folder(f"rank-{cache_name(benchmark)}")
    result = api.rank(
        benchmark,
        proxy or (),
        seed=seed,
        workers=workers,
        backend=backend,
        device=device,
        out=folder,
    )
    if json != console.STDOUT:
        show(result)
        print(f"run folder: {folder}")
    console.write_result(json, result, Run(folder, "rank"))


def show(result: RankResult) -> None:
    """Print the correlations of proxies and baselines."""
    screen = console.table_console()
    screen.print(
        f"[bold]{escape(result.benchmark)}[/bold]: {result.n_architectures} architectures; "
        f"quality is {result.metric}",
        highlight=False,
    )
    table = console.assessment_table()
    for one in result.proxies:
        mark = console.SEEN if result.seen(one.name) else ""
        table.add_row(one.name + mark, *console.assessment_cells(one))
    table.add_section()
    for one in result.baselines:
        table.add_row(one.name, *console.assessment_cells(one), style="dim")
    screen.print(table)
    if any(result.seen(one.name) for one in result.proxies):
        screen.print(f"{console.SEEN.strip()} {console.FLATTERED}", highlight=False)
