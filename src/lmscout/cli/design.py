"""`lmscout design`: an untrained architecture within limits."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lmscout.children import load_modules
from lmscout.cli import console
from lmscout.cli.options import (
    OUTPUT,
    SEEDS,
    BackendOption,
    ClusterOption,
    DeviceOption,
    JsonOption,
    WorkersOption,
    argument,
    option,
    parameter_count,
)
from lmscout.files import as_json, check_file, check_folder, write_file

if TYPE_CHECKING:
    from lmscout.discovery import Design, Selection
    from lmscout.discovery.design import Choice
    from lmscout.discovery.selection import Pick
    from lmscout.models import ArchitectureSpec
    from lmscout.runs import Run

_SEARCH, _LIMITS = "Search", "Limits"
SUFFIX = ".json"
REMEDY = "name another"

# Fields of a spec with one entry per block, and their headings.
_OF_BLOCKS = {"heads": "heads", "key_value_heads": "key-value heads", "inner": "MLP width"}


def design(
    space: Annotated[
        str,
        argument(
            "SPACE",
            "Space to search: pico, iso, nano or FILE.json, as for bench build; or a benchmark, as "
            "for rank, to evaluate the proxy's selection.",
        ),
    ],
    proxy: Annotated[
        str,
        option(
            _SEARCH,
            "Name of the catalog, or expression; with a minus sign if lower scores are better.",
            metavar="PROXY",
        ),
    ],
    max_params: Annotated[
        str | None,
        option(
            _LIMITS,
            "Parameters at most, embeddings included: 3M, 120k, 1500000. A space needs one of "
            "these limits, unless it has budgets; several may be combined.",
            metavar="COUNT",
        ),
    ] = None,
    max_macs: Annotated[
        str | None,
        option(
            _LIMITS,
            "Multiply-adds of a token in the blocks at most, on average in a sequence of the full "
            "length.",
            metavar="COUNT",
        ),
    ] = None,
    max_latency: Annotated[
        float | None,
        option(
            _LIMITS,
            "Milliseconds at most of a forward pass of one sequence of the full length, measured "
            "on --device in every run, so that results may differ.",
            metavar="MS",
        ),
    ] = None,
    evaluations: Annotated[
        int, option(_SEARCH, "Architectures to evaluate.", whole=(1, 10**7))
    ] = 200,
    seed: Annotated[int, option(_SEARCH, "Seed of draws and mutations.", whole=SEEDS)] = 0,
    weights: Annotated[
        int,
        option(
            _SEARCH,
            "Draws of initial weights and data over which a score is averaged; two or more give "
            "standard errors, and the chance to be in the best 5 % by score.",
            whole=(1, 10_000),
        ),
    ] = 1,
    on_benchmark: Annotated[
        bool, option(_SEARCH, "SPACE is a benchmark (pico and iso name both).", "--on-benchmark")
    ] = False,
    workers: WorkersOption = -1,
    backend: BackendOption = "loky",
    device: DeviceOption = "cpu",
    cluster: ClusterOption = None,
    out: Annotated[
        Path | None,
        option(
            OUTPUT,
            "Folder for the untrained model, which transformers loads, its spec.json and the "
            "result; or FILE.json for the spec alone.",
            metavar="FOLDER",
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Find the architectures that a proxy scores best, without training.

    In a space, regularized evolution draws and mutates architectures within the limits, and
    evaluates each in one pass; the same command continues a search that was stopped.  On a
    benchmark, the proxy selects among architectures of known quality, and the report has the
    regret of its selection beside configuration baselines and random selection.
    """
    params, macs = (
        None if given is None else parameter_count(given, name)
        for given, name in ((max_params, "--max-params"), (max_macs, "--max-macs"))
    )
    console.check_json_target(json)
    as_folder = out is not None and out.suffix != SUFFIX
    if out is not None:
        _check_target(out, as_folder=as_folder)
    load_modules("lmscout.discovery")
    from lmscout import api
    from lmscout.benchmarks import Benchmark
    from lmscout.benchmarks.loading import load, load_space_or_benchmark
    from lmscout.discovery import Design, Selection, signed_proxy
    from lmscout.runs import Run, default_run_folder, kept_result

    source: Any = load(space) if on_benchmark else load_space_or_benchmark(space)
    known = isinstance(source, Benchmark)
    settings = {
        "space": source.name if known else asdict(source),
        "benchmark_sha256": source.digest if known else None,
        "proxy": str(signed_proxy(proxy)),
        **{"max_params": params, "max_macs": macs, "max_latency": max_latency},
        **{"evaluations": evaluations, "seed": seed, "weights": weights},
        "device": device.partition(":")[0],
    }
    compute = partial(
        api.design,
        source,
        proxy=proxy,
        max_params=params,
        max_macs=macs,
        max_latency=max_latency,
        evaluations=evaluations,
        seed=seed,
        weights=weights,
        workers=workers,
        backend=backend,
        device=device,
        cluster=cluster,
    )
    kind: Any = Selection if known else Design
    folder = out if as_folder else None
    result = kept_result(folder, "design", settings, kind, compute, _write_folder)
    if out is not None and not as_folder:
        write_file(out, as_json(result.spec.to_dict()), name=f"--out {out}")

    def shown(_: object) -> None:
        show(result)
        if out is not None:
            print(f"{_content(result.spec) if as_folder else 'spec'}: {out}")

    console.finish(result, shown, json, Run(default_run_folder("design"), "design", settings))


def _check_target(out: Path, *, as_folder: bool) -> None:
    """Refuse an --out that cannot be written."""
    if as_folder:
        check_folder(out, f"--out {out}", REMEDY, make=False)
    else:
        check_file(out, "--out")


def _write_folder(run: Run, result: Design | Selection) -> None:
    """Write the untrained model, if transformers has its class, its spec and the result."""
    from lmscout.models.pretrained import has_class
    from lmscout.models.spec import SPEC

    run.begin()
    if has_class(result.spec):
        result.save_pretrained(run.folder)
    else:
        write_file(run.folder / SPEC, as_json(result.spec.to_dict()), name=f"--out {run.folder}")
    run.end(result)


def _content(spec: ArchitectureSpec) -> str:
    """What a folder holds, in words."""
    from lmscout.models.pretrained import has_class

    if has_class(spec):
        return "untrained model, for AutoModelForCausalLM after lmscout.register()"
    return f"spec (transformers has no class for {spec.kind}, so there is no model)"


def show(result: Design | Selection) -> None:
    """Print the architecture that was found in a space, or selected on a benchmark."""
    from lmscout.discovery import Design

    if isinstance(result, Design):
        _show_design(result)
    else:
        _show_selection(result)


def _show_design(result: Design) -> None:
    """Print the architecture that was found."""
    from lmscout.benchmarks.built import SHIPPED

    console.say(
        f"[bold]{result.space}[/bold]{result.within}: "
        f"{result.n_scored} architectures evaluated{_weights(result)}{_undefined(result)}"
    )
    drawn = "" if result.drawn_score is None else f"; best of those drawn {result.drawn_score:.6g}"
    console.say(f"{result.proxy}: score {result.score:.6g}{drawn}")
    _show_choices(result.choices, result.n_scored)
    _show_architecture(result.spec)
    where = f"{result.space if result.space in SHIPPED else 'BENCHMARK'} --on-benchmark"
    proxy = shlex.quote(str(result.proxy))
    weights = f" --weights {result.weights}" if result.weights > 1 else ""
    print("Nothing was trained. To evaluate this proxy's selection where quality is known:")
    limits = "".join(
        f" --{name.replace('_', '-')} {value}"
        for name, value in result.limits_json.items()
        if value is not None
    )
    print(f"  lmscout design {where} --proxy {proxy}{limits}{weights}")


def _show_selection(result: Selection) -> None:
    """Print the architecture that was selected on a benchmark, and its regret."""
    console.print_benchmark(
        f"{result.benchmark}{result.within}",
        result.n_within,
        result.metric,
        f", {result.n_drawn} drawn{_weights(result)}{_undefined(result)}",
    )
    table = console.table(
        "selected by",
        *(f"true rank\nof {result.n_within}", "top", "regret", "tied", "random\ntrials"),
        caption="tied: architectures of the same score; figures are means over them\n"
        "random trials: trained at random until the best is expected to be as good",
    )
    table.add_row(*_pick_cells(result.pick), style="bold")
    table.add_section()
    for one in result.baselines:
        table.add_row(*_pick_cells(one))
    table.add_section()
    for one in (result.at_random, result.best_drawn):
        table.add_row(*_pick_cells(one), style="dim")
    console.print_table(table)
    if result.seen:
        console.say(console.FLATTERED)
    console.say(
        f"Its selection is {result.against_hardest} that of the best configuration baseline, "
        f"{result.hardest.name}."
    )
    tied = f", the first drawn of {result.pick.n_tied} tied ones" if result.pick.n_tied > 1 else ""
    _show_choices(result.choices, result.n_drawn, result.n_within)
    console.say(f"architecture {result.identifier}{tied}:")
    _show_architecture(result.spec)


def _show_choices(choices: Sequence[Choice], scored: int, within: int | None = None) -> None:
    """Print the architectures of the best scores, if the result has them."""
    if not choices:
        return
    several = choices[0].standard_error is not None
    timed = choices[0].latency is not None
    note = f"best 5 %: chance to be there, of {scored} by score, with other draws of weights"
    table = console.table(
        "best\nby score",
        *([] if within is None else [f"true rank\nof {within}"]),
        *("score", *(["std.\nerror", "best\n5 %"] if several else [])),
        *("blocks", "width", "params", "MACs", *(["ms"] if timed else [])),
        caption=note if several else "with --weights 2 or more: how sure the order is",
    )
    for number, one in enumerate(choices, 1):
        cells = [one.identifier or str(number)]
        cells += [] if one.rank is None else [f"{one.rank:.1f}".removesuffix(".0")]
        cells += [f"{one.score:.6g}"]
        if one.standard_error is not None and one.chance is not None:
            cells += [f"{one.standard_error:.2g}", f"{one.chance:.0%}"]
        spec = one.spec
        cells += [str(spec.depth), str(spec.width)]
        cells += [_rounded(spec.parameters()), _rounded(spec.multiply_adds())]
        cells += [] if one.latency is None else [f"{one.latency:.3g}"]
        table.add_row(*cells)
    console.print_table(table)
    tied = sum(one.score == choices[0].score for one in choices)
    if tied > 1:
        console.say(f"The first {tied} have one score: the proxy does not tell them apart.")


def _rounded(count: int) -> str:
    return f"{count / 1e6:,.3g}M" if count >= 1e6 else f"{count / 1e3:,.3g}k"


def _weights(result: Design | Selection) -> str:
    return f" with {result.weights} draws of weights" if result.weights > 1 else ""


def _undefined(result: Design | Selection) -> str:
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
    depth = f"{spec.depth} block{'s' if spec.depth > 1 else ''}"
    size = f"{spec.parameters():,} parameters, {spec.multiply_adds():,} multiply-adds a token"
    console.say(f"{spec.kind}, {depth}, width {spec.width}, {size}")
    blocks = _block_rows(spec)
    table = console.table("blocks", *blocks[0])
    start = 0
    for row, same in groupby(blocks):
        stop = start + len(list(same))
        table.add_row(f"{start}" if stop == start + 1 else f"{start}-{stop - 1}", *row.values())
        start = stop
    console.print_table(table)


def _block_rows(spec: ArchitectureSpec) -> list[dict[str, str]]:
    """The fields of each block."""
    values: dict[str, Any] = spec.to_dict()
    blocks = values.get("blocks") or [
        {shown: values[name][block] for name, shown in _OF_BLOCKS.items() if name in values}
        for block in range(spec.depth)
    ]
    return [
        {name.replace("_", " "): "–" if value == 0 else str(value) for name, value in one.items()}
        for one in blocks
    ]
