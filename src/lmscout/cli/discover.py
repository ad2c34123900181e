"""`lmscout discover`: rank a whole space of proxies and judge the best honestly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lmscout.cli import console
from lmscout.cli.options import (
    BackendOption,
    BenchmarkArgument,
    JsonOption,
    OutOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from lmscout.discovery import Discovery
    from lmscout.discovery.assessment import Assessment


def discover(
    benchmark: BenchmarkArgument,
    space: Annotated[str, typer.Option(help="published or two-op.")] = "published",
    aggregations: Annotated[
        str, typer.Option(help="Over blocks: any of mean,sum,max,min.")
    ] = "mean",
    search: Annotated[int, typer.Option(help="Architectures that the choice may see.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    workers: WorkersOption = -1,
    backend: BackendOption = "loky",
    out: OutOption = None,
    json: JsonOption = None,
) -> None:
    """Rank every proxy of a space on a benchmark.

    The best is chosen on a search split and reported on a test split that no choice has
    seen, beside what the configuration alone can say.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    from lmscout import proxies
    from lmscout.benchmarks import load
    from lmscout.benchmarks.locate import cache_directory
    from lmscout.discovery.discover import cache_name
    from lmscout.discovery.discover import discover as run
    from lmscout.discovery.run_folder import check_run_folder, default_run_folder
    from lmscout.discovery.saved_run import save_discovery
    from lmscout.statistics import Workers

    console.check_json_target(json)
    spread = Workers(workers, backend)
    chosen = proxies.space(space, tuple(name.strip() for name in aggregations.split(",")))
    architectures = load(benchmark)
    folder = out or default_run_folder(f"discover-{cache_name(architectures.name)}-{space}-{seed}")
    check_run_folder(folder)
    with console.progress_bars() as progress:
        result = run(
            architectures,
            chosen,
            search=search,
            seed=seed,
            cache=cache_directory() / "statistics",
            workers=spread,
            progress=progress,
        )
    save_discovery(folder, result, seed=seed)
    if json != console.STDOUT:
        show(result)
        print(f"run folder: {folder}")
    console.write_result(json, result.to_json())


def show(result: Discovery, rivals: Sequence[Assessment] = ()) -> None:
    """Print the table: what was chosen, what it is worth, and what it has to beat.

    Args:
        result: what was found.
        rivals: proxies of the literature, judged on the same test split.
    """
    screen = console.table_console()
    screen.print(
        f"[bold]{result.benchmark}[/bold]: {result.n_architectures} architectures, "
        f"{len(result.split.search)} to search on, {len(result.split.test)} to test on; "
        f"quality is {result.metric}"
    )
    screen.print(
        f"{result.space.size:,} proxies, {result.ranking.n_distinct:,} of them distinct; "
        f"statistics {result.seconds['statistics']:.1f} s, "
        f"ranking {result.seconds['ranking']:.1f} s"
    )
    name = ("-" if result.sign < 0 else "") + result.test.name
    screen.print(f"best on the search split: [bold]{name}[/bold]", highlight=False)
    rho, _ = result.search
    table = Table(caption="intervals: 95 % bootstrap over test architectures")
    table.add_column("")
    for column in ("search ρ", "test ρ", "95 %", "test τ", "95 %", "in cell", "given size"):
        table.add_column(column, justify="right")
    best = console.assessment_cells(result.test)
    table.add_row("best proxy", f"{rho:.3f}", *best[:-1], style="bold")
    for some in (rivals, result.baselines):
        table.add_section()
        for one in some:
            table.add_row(one.name, "", *console.assessment_cells(one)[:-1])
    screen.print(table)
    hardest = max(result.baselines, key=lambda one: one.agreement.spearman.value)
    verb = "beats" if result.beats_baselines else "does not beat"
    screen.print(
        f"It {verb} the best configuration baseline, {hardest.name} "
        f"(ρ {hardest.agreement.spearman.value:.3f}).",
        highlight=False,
    )
