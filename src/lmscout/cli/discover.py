"""`lmscout discover`: rank a whole space of proxies and judge the best honestly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lmscout.cli import console
from lmscout.cli.options import (
    LAST_SEED,
    BackendOption,
    DeviceOption,
    JsonOption,
    OutOption,
    WorkersOption,
)
from lmscout.errors import LmscoutError
from lmscout.progress import shown_progress

if TYPE_CHECKING:
    from pathlib import Path

    from lmscout.discovery import Discovery
    from lmscout.discovery.assessment import Assessment
    from lmscout.discovery.discover import Finding
    from lmscout.discovery.symbolic_search import DeepDiscovery, DeepSettings
    from lmscout.statistics import Workers

_STUDY, _DEEP = "study:", "deep"
_EARLIER = "ledger:"  # how runs were named in version 0.1; scripts use it

# Options that mean nothing to the other kind of space.
_OF_DEEP = ("engine", "evaluations", "searches", "objective", "spec_leaves", "correction")
_OF_RANKED = ("aggregations", "model", "calibration")


def discover(
    context: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(
            metavar="BENCHMARK",
            help="pico, flexibert, lts:random_GPT2_wt103, or bench:DIR, flexibert:PATH, lts:PATH; "
            "or study:RUN, the folder of a prune run.",
            show_default=False,
        ),
    ],
    space: Annotated[str, typer.Option(help="published, two-op, or deep.")] = "published",
    aggregations: Annotated[
        str, typer.Option(help="Over blocks: any of mean,sum,max,min.")
    ] = "mean",
    search: Annotated[
        str, typer.Option(help="Architectures that the choice may see; of several, 100,40.")
    ] = "100",
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of the split.")] = 0,
    engine: Annotated[
        str, typer.Option(help="Of the deep space: genetic, regularized, random or exhaustive.")
    ] = "genetic",
    evaluations: Annotated[
        int,
        typer.Option(
            min=1,
            max=10**7,
            help="Of the deep space: proxies evaluated in full, in all; fewer where rules and race "
            "let next to none through.",
        ),
    ] = 600,
    searches: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Of the deep space: independent searches that share the evaluations; the best of "
            "each are multiplied. 4, or 1 where it is exhaustive.",
            show_default=False,
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(help="Of the deep space: spearman, spearman+pearson, kendall or beyond-size."),
    ] = "spearman+pearson",
    spec_leaves: Annotated[
        bool, typer.Option(help="Of the deep space: may it read depth, width and size?")
    ] = True,
    correction: Annotated[
        bool,
        typer.Option(help="Of the deep space: may numbers fit it to depth, width and size?"),
    ] = True,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Of study:RUN: the dense model, if it has moved since.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Of study:RUN: the calibration text, if it has moved since.",
            show_default=False,
        ),
    ] = None,
    workers: WorkersOption = -1,
    backend: BackendOption = "loky",
    device: DeviceOption = "cpu",
    out: OutOption = None,
    json: JsonOption = None,
) -> None:
    """Find the best proxy of a space on a benchmark.

    The published space and two-op are ranked outright; the deep space is searched, and the
    same command continues a search that was stopped, in its run folder.  In the deep space
    BENCHMARK may be several, as pico,flexibert: a proxy is then worth what it is worth on the
    one that it ranks worst.  The best proxy is chosen on a search split and reported on a test
    split that no choice has seen, beside what the configuration alone can say.  study:RUN is
    the folder of a prune run: the architectures are its plans, read in the trained model.
    """
    # Imported here and below, so that `--help` does not wait for PyTorch.
    from lmscout.statistics import Workers

    if benchmark.startswith(_EARLIER):
        benchmark = _STUDY + benchmark.removeprefix(_EARLIER)
    _refuse_given(context, _OF_RANKED if space == _DEEP else _OF_DEEP, space)
    _refuse_device(benchmark, device)
    console.check_json_target(json)
    spread = Workers(workers, backend, device)
    if space == _DEEP:
        if _STUDY in benchmark:
            raise LmscoutError(
                f"{benchmark}: the deep space reads architectures that are built anew; a study "
                "has the spaces published and two-op"
            )
        from lmscout.discovery.engines import EXHAUSTIVE
        from lmscout.discovery.symbolic_search import DeepSettings

        settings = DeepSettings(
            engine=engine,
            evaluations=evaluations,
            searches=searches or (1 if engine == EXHAUSTIVE else DeepSettings.searches),
            objective=objective,
            spec_leaves=spec_leaves,
            correction=correction,
        )
        names = benchmark.split(",")
        sizes = _sizes(search, len(names))
        _discover_deep(names, settings, sizes, seed, spread, out, json)
        return
    _discover_ranked(
        benchmark,
        space,
        aggregations,
        search,
        seed,
        spread,
        model,
        calibration,
        out,
        json,
    )


def _discover_ranked(
    benchmark: str,
    space: str,
    aggregations: str,
    search: str,
    seed: int,
    spread: Workers,
    model: str | None,
    calibration: str | None,
    out: Path | None,
    json: str | None,
) -> None:
    # Imported here, so that `--help` does not wait for PyTorch.
    from lmscout import api
    from lmscout.discovery.discover import Discovery
    from lmscout.discovery.scorer import cache_name
    from lmscout.runs import Run, default_run_folder

    if "," in benchmark and not benchmark.startswith(_STUDY) and ":" not in benchmark:
        raise LmscoutError(f"{benchmark}: several at once are for --space {_DEEP}; give one")
    folder = out or default_run_folder(f"discover-{cache_name(benchmark)}-{space}-{seed}")
    result = api.discover(
        benchmark,
        space=space,
        aggregations=[name.strip() for name in aggregations.split(",")],
        n_search=_sizes(search, 1),
        seed=seed,
        model=model,
        calibration=calibration,
        workers=spread.count,
        backend=spread.backend,
        device=spread.device,
        out=folder,
    )
    assert isinstance(result, Discovery)
    if json != console.STDOUT:
        show(result)
        print(f"run folder: {folder}")
    console.write_result(json, result, Run(folder, "discover"))


def _refuse_device(benchmark: str, device: str) -> None:
    if benchmark.startswith(_STUDY) and device != "cpu":
        raise LmscoutError(
            f"--device {device}: not for {_STUDY}RUN, whose statistics are computed on the CPU; "
            "leave --device out"
        )


def _refuse_given(context: typer.Context, names: Sequence[str], space: str) -> None:
    """Refuse options that a space has no use for: who gives them believes otherwise."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option = f"--{name.replace('_', '-')}"
            wanted = "published or two-op" if space == _DEEP else "deep"
            raise LmscoutError(
                f"{option} is not for --space {space}: give --space {wanted}, or leave {option} out"
            )


def _sizes(search: str, benchmarks: int) -> tuple[int, ...]:
    """Architectures to search on, of every benchmark."""
    try:
        sizes = tuple(map(int, search.split(",")))
    except ValueError:
        raise LmscoutError(f"--search {search} is no number: say 100, or 100,40,40") from None
    if len(sizes) == 1:
        return sizes * benchmarks
    if len(sizes) != benchmarks:
        raise LmscoutError(
            f"--search {search} gives {len(sizes)} numbers for {benchmarks} of BENCHMARK: give one "
            "for all, or one for each"
        )
    return sizes


def _discover_deep(
    names: Sequence[str],
    settings: DeepSettings,
    search: Sequence[int],
    seed: int,
    spread: Workers,
    out: Path | None,
    json: str | None,
) -> None:
    from lmscout.benchmarks import load
    from lmscout.benchmarks.download import cache_directory
    from lmscout.discovery.saved_run import begin_deep
    from lmscout.discovery.symbolic_search import DeepDiscovery, discover_deep

    benchmarks = [load(name.strip()) for name in names]
    run = begin_deep(out, benchmarks, settings, search=search, seed=seed, device=spread.device)
    if run.finished:
        result = run.load(DeepDiscovery)
    else:
        with shown_progress() as progress:
            result = discover_deep(
                benchmarks,
                settings,
                search=search,
                seed=seed,
                cache=cache_directory() / "statistics",
                folder=run.folder,
                workers=spread,
                progress=progress,
            )
        run.end(result)
    if json != console.STDOUT:
        show_deep(result)
        print(f"run folder: {run.folder}")
    console.write_result(json, result, run)


def show_deep(result: DeepDiscovery) -> None:
    """Print what searches of the deep space went through, and what they found."""
    from lmscout.proxies import format_expression

    screen, settings = console.table_console(), result.settings
    for one in result.findings:
        _show_benchmark(one)
    screen.print(
        f"{result.proposed:,} proxies proposed by the {settings.engine} engine in "
        f"{settings.searches} searches, {result.evaluations:,} evaluated; discarded before: "
        + ", ".join(f"{count:,} {name}" for name, count in result.discarded.most_common()),
        highlight=False,
    )
    for title, candidates in (
        ("fittest on sketches", result.top),
        ("fittest of every size, on sketches", result.front),
        ("best of every search, on full tensors", result.members),
    ):
        _show_formulas(
            title,
            ("size", "fitness"),
            [
                ((str(one.node.size), f"{one.fitness:.3f}"), format_expression(one.node))
                for one in candidates
            ],
        )
    for finding in result.findings:
        screen.print()
        if len(result.findings) > 1:
            screen.print(f"[bold]{escape(finding.benchmark)}[/bold]")
        show_choice(finding)


def show(result: Discovery, rivals: Sequence[Assessment] = ()) -> None:
    """Print the table: what was chosen, what it is worth, and what it has to beat.

    Args:
        result: what was found.
        rivals: proxies of the literature, judged on the same test split.
    """
    screen = console.table_console()
    _show_benchmark(result)
    screen.print(
        f"{result.space.size:,} proxies, {result.n_distinct:,} of them distinct; "
        f"statistics {result.seconds['statistics']:.1f} s, "
        f"ranking {result.seconds['ranking']:.1f} s",
        highlight=False,
    )
    show_choice(result, rivals)
    _show_formulas(
        "best on the search split",
        ("search ρ", "test ρ"),
        [
            ((console.number(one.search), console.number(one.test)), str(one.proxy))
            for one in result.top
        ],
    )


def _show_formulas(
    title: str, headings: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]
) -> None:
    """Print formulas a line each, unbroken however long they are: `rank --proxy` reads them.

    Args:
        title: of the list.
        headings: of the figures before each.
        rows: figures and formula.
    """
    screen = console.table_console()
    screen.print(f"\n{title}:", highlight=False)
    lines = ["  ".join(f"{one:>8}" for one in headings) + "  formula"]
    lines += [
        "  ".join(f"{figure:>8}" for figure in figures) + f"  {formula}"
        for figures, formula in rows
    ]
    for line in lines:
        screen.print(line, soft_wrap=True, highlight=False, markup=False)


def _show_benchmark(result: Finding) -> None:
    console.table_console().print(
        f"[bold]{escape(result.benchmark)}[/bold]: {result.n_architectures} architectures, "
        f"{len(result.split.search)} to search on, {len(result.split.test)} to test on; "
        f"quality is {result.metric}",
        highlight=False,
    )


def show_choice(result: Finding, rivals: Sequence[Assessment] = ()) -> None:
    """Print the proxy that was chosen, and what it has to beat on the test split."""
    from lmscout.discovery import SignedProxy

    screen = console.table_console()
    name = str(SignedProxy(result.test.name, result.sign))
    screen.print(f"best on the search split: [bold]{name}[/bold]", highlight=False, soft_wrap=True)
    rho, _ = result.search
    table = Table(caption="intervals: 95 % bootstrap over test architectures")
    console.add_name_column(table)
    headings = console.fitting(
        ("test ρ", "95 %", "test τ", "95 %", "in cell", "given size", "top tenth")
    )
    for column in ("search ρ", *headings):
        table.add_column(column, justify="right", no_wrap=True)
    best = console.assessment_cells(result.test)
    table.add_row("best proxy", f"{rho:.3f}", *best, style="bold")
    for some in (rivals, result.baselines):
        table.add_section()
        for one in some:
            table.add_row(one.name, "", *console.assessment_cells(one))
    screen.print(table)
    if result.beats_baselines is None:
        screen.print(console.NO_BASELINE)
        return
    verb = "beats" if result.beats_baselines else "does not beat"
    screen.print(
        f"It {verb} the best configuration baseline, {result.hardest.name} "
        f"(ρ {console.number(result.hardest.agreement.spearman.value)})"
        f"{console.difference(result.ahead)}.",
        highlight=False,
    )
