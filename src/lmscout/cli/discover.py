"""`lmscout discover`: find the best proxy of a space, and test it on held-out architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from lmscout.children import load_modules
from lmscout.cli import console
from lmscout.cli.options import (
    BENCHMARK_HELP,
    ENGINES,
    FITNESS,
    SEEDS,
    SPACES,
    TEXT_HELP,
    BackendOption,
    ClusterOption,
    DeviceOption,
    JsonOption,
    OutOption,
    WorkersOption,
    argument,
    option,
    refuse_given,
)
from lmscout.errors import LmscoutError

if TYPE_CHECKING:
    from lmscout.discovery import Assessment, Discovery
    from lmscout.discovery.discover import Finding
    from lmscout.discovery.symbolic_search import DeepDiscovery

_STUDY, _DEEP = "study:", "deep"
_SPACE, _SEARCH, _PAIRS = "Space and split", "Search of the deep space", "Pairs of a pruning run"

# Options that apply to one kind of space only.
_OF_DEEP = (
    *("engine", "evaluations", "searches", "objective", "spec_leaves", "correction", "weights"),
)
_OF_RANKED = ("aggregations", "model", "calibration")


def discover(
    context: typer.Context,
    benchmark: Annotated[
        str,
        argument(
            "BENCHMARK",
            f"{BENCHMARK_HELP[:-1]}; several with commas for the deep space; or study:RUN, the "
            "folder of a prune run.",
        ),
    ],
    space: Annotated[str, option(_SPACE, "Space of proxies", choices=SPACES)] = "published",
    aggregations: Annotated[
        str, option(_SPACE, "Over blocks: any of mean,sum,max,min.", metavar="NAME,...")
    ] = "mean",
    n_search: Annotated[
        str | None,
        option(
            _SPACE,
            "Search architectures; of several benchmarks 100,40; by default half of a "
            "benchmark's, at most 100.",
            *("--n-search", "--search"),
            metavar="INT,...",
        ),
    ] = None,
    seed: Annotated[int, option(_SPACE, "Seed of the split and the search.", whole=SEEDS)] = 0,
    engine: Annotated[str, option(_SEARCH, "Search engine", choices=ENGINES)] = "genetic",
    evaluations: Annotated[
        int,
        option(_SEARCH, "Proxies evaluated on all search architectures, in all.", whole=(1, 10**7)),
    ] = 600,
    searches: Annotated[
        int | None,
        option(
            _SEARCH,
            "Independent searches that share the evaluations; the product of their best proxies "
            "is tested; 4 by default, 1 for the exhaustive engine.",
            whole=(1, 1000),
        ),
    ] = None,
    objective: Annotated[str, option(_SEARCH, "Fitness", choices=FITNESS)] = "spearman+pearson",
    spec_leaves: Annotated[
        bool, option(_SEARCH, "Whether a proxy may use depth, width and size.")
    ] = True,
    correction: Annotated[
        bool, option(_SEARCH, "Whether coefficients of depth, width and size are fitted.")
    ] = True,
    weights: Annotated[
        int,
        option(
            _SEARCH,
            "Draws of initial weights and data over which a score is averaged.",
            whole=(1, 1000),
        ),
    ] = 1,
    model: Annotated[
        str | None, option(_PAIRS, "Dense model, if it has moved.", metavar="MODEL")
    ] = None,
    calibration: Annotated[
        str | None,
        option(_PAIRS, f"Calibration text, if it has moved: {TEXT_HELP}.", metavar="TEXT"),
    ] = None,
    workers: WorkersOption = -1,
    backend: BackendOption = "loky",
    device: DeviceOption = "cpu",
    cluster: ClusterOption = None,
    out: OutOption = None,
    json: JsonOption = None,
) -> None:
    """Find the best proxy of a space on a benchmark.

    The spaces published and two-op are ranked exhaustively; the deep space is searched, and the
    same command continues a search that was stopped.  The best proxy is chosen on a search split
    and reported on a held-out test split, beside configuration baselines.  On several benchmarks
    fitness is the minimum over them.  With study:RUN the architectures are the measured plans of
    a pruning run, evaluated in the trained model.
    """
    other = "published or two-op" if space == _DEEP else "deep"
    refuse_given(
        context,
        _OF_RANKED if space == _DEEP else _OF_DEEP,
        f"{{option}} is not for --space {space}: give --space {other}, or leave {{option}} out",
    )
    console.check_json_target(json)
    load_modules("lmscout.discovery")
    from lmscout import api
    from lmscout.discovery.scorer import cache_name
    from lmscout.runs import Run, default_run_folder

    common: dict[str, Any] = {
        "n_search": _sizes(n_search),
        "seed": seed,
        "workers": workers,
        "backend": backend,
        "device": device,
        "cluster": cluster,
    }
    if space != _DEEP:
        if "," in benchmark and ":" not in benchmark:
            raise LmscoutError(f"{benchmark}: several at once are for --space {_DEEP}; give one")
        folder = out or default_run_folder(f"discover-{cache_name(benchmark)}-{space}-{seed}")
        ranked = api.discover(
            benchmark,
            space=space,
            aggregations=[name.strip() for name in aggregations.split(",")],
            model=model,
            calibration=calibration,
            out=folder,
            **common,
        )
        console.finish(ranked, show, json, Run(folder, "discover"), kept=True)
        return
    from lmscout.arguments import discover_deep
    from lmscout.discovery.engines import EXHAUSTIVE
    from lmscout.discovery.symbolic_search import DeepSettings

    config = DeepSettings(
        engine=engine,
        evaluations=evaluations,
        searches=searches or (1 if engine == EXHAUSTIVE else DeepSettings.searches),
        objective=objective,
        spec_leaves=spec_leaves,
        correction=correction,
        weights=weights,
    )
    names = [name.strip() for name in benchmark.split(",")]
    run, found = discover_deep(names, config, out=out, progress=True, **common)
    console.finish(found, show, json, run, kept=True)


def _sizes(given: str | None) -> list[int] | None:
    """Numbers of search architectures."""
    try:
        return None if given is None else list(map(int, given.split(",")))
    except ValueError:
        raise LmscoutError(f"--n-search {given}: no number; give 100, or 100,40,40") from None


def show(result: Discovery | DeepDiscovery) -> None:
    """Print the best proxy of a space, or that of a search of the deep space."""
    from lmscout.discovery.discover import Discovery

    if isinstance(result, Discovery):
        show_ranked(result)
    else:
        _show_deep(result)


def _show_deep(result: DeepDiscovery) -> None:
    """Print a search of the deep space, and the proxy that was selected."""
    from lmscout.proxies import format_expression

    for one in result.findings:
        _show_benchmark(one)
    console.say(
        f"{result.proposed:,} proxies proposed by the {result.settings.engine} engine in "
        f"{result.settings.searches} searches, {result.evaluations:,} evaluated; discarded before: "
        + ", ".join(f"{count:,} {name}" for name, count in result.discarded.most_common())
    )
    for title, candidates in (
        ("fittest on sketches", result.top),
        ("fittest of every size, on sketches", result.front),
        ("best of every search, on full tensors", result.members),
    ):
        rows = [
            ((str(one.node.size), f"{one.fitness:.3f}"), format_expression(one.node))
            for one in candidates
        ]
        console.print_formulas(title, ("size", "fitness"), rows)
    for finding in result.findings:
        print()
        if len(result.findings) > 1:
            console.say(f"[bold]{escape(finding.benchmark)}[/bold]")
        _show_choice(finding)


def show_ranked(result: Discovery, others: Sequence[Assessment] = ()) -> None:
    """Print the best proxy of a space beside others on the same test split and the baselines."""
    _show_benchmark(result)
    console.say(
        f"{result.space.size:,} proxies, {result.n_distinct:,} of them distinct; "
        f"statistics {result.seconds['statistics']:.1f} s, "
        f"ranking {result.seconds['ranking']:.1f} s"
    )
    _show_choice(result, others)
    rows = [
        ((console.number(one.search), console.number(one.test)), str(one.proxy))
        for one in result.top
    ]
    console.print_formulas("best on the search split", ("search ρ", "test ρ"), rows)


def _show_benchmark(result: Finding) -> None:
    split = f", {len(result.split.search)} for search, {len(result.split.test)} for test"
    console.print_benchmark(result.benchmark, result.n_architectures, result.metric, split)


def _show_choice(result: Finding, others: Sequence[Assessment] = ()) -> None:
    """Print the selected proxy, and its baselines on the test split."""
    from lmscout.discovery import SignedProxy

    name = str(SignedProxy(result.test.name, result.sign))
    console.say(f"best on the search split: [bold]{escape(name)}[/bold]", whole=True)
    table = console.table(
        "on the test split",
        "search\nρ",
        *console.ASSESSMENT,
        caption="95 % bootstrap over test architectures",
    )
    rho, _ = result.search
    table.add_row("best proxy", f"{rho:.3f}", *console.assessment_cells(result.test), style="bold")
    for group in (others, result.baselines):
        table.add_section()
        for one in group:
            table.add_row(one.name, "", *console.assessment_cells(one))
    console.print_table(table)
    console.say(result.against_hardest)
