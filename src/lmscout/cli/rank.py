"""`lmscout rank`: rank given proxies by their correlation with quality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from lmscout.children import load_modules
from lmscout.cli import console
from lmscout.cli.options import (
    SEEDS,
    BackendOption,
    BenchmarkArgument,
    ClusterOption,
    DeviceOption,
    JsonOption,
    OutOption,
    WorkersOption,
    option,
)

if TYPE_CHECKING:
    from lmscout.discovery import RankResult

_PROXIES = "Proxies"


def rank(
    benchmark: BenchmarkArgument,
    proxy: Annotated[
        list[str] | None,
        option(
            _PROXIES,
            "Name of the catalog, or expression such as 'sum(std(grad))'; with a minus sign if "
            "lower scores are better; repeatable; by default the whole catalog.",
            metavar="PROXY",
        ),
    ] = None,
    seed: Annotated[int, option(_PROXIES, "Seed of the models' weights.", whole=SEEDS)] = 0,
    workers: WorkersOption = -1,
    backend: BackendOption = "loky",
    device: DeviceOption = "cpu",
    cluster: ClusterOption = None,
    out: OutOption = None,
    json: JsonOption = None,
) -> None:
    """Rank given proxies on all architectures of a benchmark.

    Correlations have the sign that a proxy is published or given with: a negative one is a
    proxy that ranks architectures in the wrong direction.
    """
    console.check_json_target(json)
    load_modules("lmscout.discovery")
    from lmscout import api
    from lmscout.discovery.scorer import cache_name
    from lmscout.runs import Run, default_run_folder

    folder = out or default_run_folder(f"rank-{cache_name(benchmark)}")
    result = api.rank(
        benchmark,
        proxy or (),
        seed=seed,
        workers=workers,
        backend=backend,
        device=device,
        cluster=cluster,
        out=folder,
    )
    console.finish(result, show, json, Run(folder, "rank"), kept=True)


def show(result: RankResult) -> None:
    """Print the correlations of proxies and baselines."""
    console.print_benchmark(result.benchmark, result.n_architectures, result.metric)
    table = console.table("", *console.ASSESSMENT, caption="95 % bootstrap over architectures")
    seen = [one.name for one in result.proxies if result.seen(one.name)]
    for one in result.proxies:
        mark = console.SEEN if one.name in seen else ""
        table.add_row(one.name + mark, *console.assessment_cells(one))
    table.add_section()
    for one in result.baselines:
        table.add_row(one.name, *console.assessment_cells(one), style="dim")
    console.print_table(table)
    if seen:
        console.say(f"{console.SEEN.strip()} {console.FLATTERED}")
