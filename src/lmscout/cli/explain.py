"""`lmscout explain`: dead branches, sensitivity and the closest surrogate formula of a proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lmscout.children import load_modules
from lmscout.cli import console
from lmscout.cli.options import (
    BENCHMARK_HELP,
    SEEDS,
    BackendOption,
    ClusterOption,
    DeviceOption,
    JsonOption,
    KeepOption,
    WorkersOption,
    argument,
    option,
    refuse_given,
)

if TYPE_CHECKING:
    from lmscout.discovery import Explanation
    from lmscout.discovery.explain import Forms

_FORMS = "Explanation"


def explain(
    context: typer.Context,
    proxy: Annotated[
        str, argument("PROXY", "Name of the catalog, or expression such as 'sum(std(grad))'.")
    ],
    benchmark: Annotated[
        str | None,
        argument("BENCHMARK", f"{BENCHMARK_HELP[:-1]}; without one, the formula alone is shown."),
    ] = None,
    seed: Annotated[
        int,
        option(
            _FORMS,
            "Seed of the models' weights, and of the half that selects a surrogate formula.",
            whole=SEEDS,
        ),
    ] = 0,
    latex: Annotated[bool, option(_FORMS, "Print the proxy in LaTeX.", "--latex")] = False,
    torch: Annotated[
        bool, option(_FORMS, "Print a module that computes it with PyTorch alone.", "--torch")
    ] = False,
    workers: WorkersOption = -1,
    backend: BackendOption = "loky",
    device: DeviceOption = "cpu",
    cluster: ClusterOption = None,
    out: KeepOption = None,
    json: JsonOption = None,
) -> None:
    """Explain a proxy on all architectures of a benchmark.

    Branches that do not matter; the correlation of its scores with those on other data, with
    other initial weights, and without each input; with depth, width and size; and the surrogate
    formula of these three that is closest to it.  The sign is as given.  LaTeX and PyTorch
    follow from the formula and need no benchmark.
    """
    console.check_json_target(json)
    if benchmark is None:
        problem = "{option} has nothing to apply to: give BENCHMARK after PROXY, or leave it out"
        refuse_given(context, ("seed", "workers", "backend", "cluster"), problem)
    load_modules("lmscout.discovery")
    from lmscout import api
    from lmscout.discovery.explain import Forms
    from lmscout.runs import Run, default_run_folder

    result = api.explain(
        proxy,
        benchmark,
        seed=seed,
        workers=workers,
        backend=backend,
        device=device,
        cluster=cluster,
        out=out,
    )

    def shown(_: object) -> None:
        forms = isinstance(result, Forms)
        if not forms or not (latex or torch):
            show(result)
        if forms and not (latex or torch):
            console.say("For its other forms give --latex or --torch; to explain it, BENCHMARK.")
        for wanted, text, form in (
            (latex, result.latex, "LaTeX"),
            (torch, result.torch, "PyTorch"),
        ):
            if wanted:  # plain, so that it can be pasted
                print(f"\n{text or f'It is no expression, so it has no {form} form.'}")

    console.finish(result, shown, json, Run(out or default_run_folder("explain"), "explain"))


def show(result: Explanation | Forms) -> None:
    """Print dead branches, sensitivities and the closest formula; or a proxy's definition."""
    from lmscout.discovery.explain import Forms
    from lmscout.proxies import format_expression

    if isinstance(result, Forms):
        if result.definition:
            console.say(f"{result.name}: {result.definition}")
        print("no expression" if result.tree is None else format_expression(result.tree))
        return
    console.print_benchmark(result.benchmark, result.n_architectures, result.metric)
    name, tree = result.assessment.name, result.tree
    text = name if tree is None else format_expression(tree)
    console.say(f"[bold]{name}[/bold]{f' is {text}' if text != name else ''}")
    table = console.table("", *console.ASSESSMENT, caption="95 % bootstrap over architectures")
    table.add_row("the proxy", *console.assessment_cells(result.assessment), style="bold")
    table.add_row(result.hardest.name, *console.assessment_cells(result.hardest), style="dim")
    console.print_table(table)
    if result.seen:
        console.say(console.FLATTERED)
    console.say(result.against_hardest)
    _show_dead_branches(result)
    _show_sensitivity(result)
    _show_configuration(result)


def _show_dead_branches(result: Explanation) -> None:
    from lmscout.discovery.explain import DEAD
    from lmscout.proxies import format_expression

    found = result.dead_branches
    if found is None:
        console.say("\nIt is no expression, so no branch can be taken out.")
        return
    if not found.dead:
        console.say(
            "\nNo dead branch: without any of them the order of architectures changes (|ρ| below "
            f"{DEAD} on {found.measured_on})."
        )
        return
    print()
    table = console.table(
        "dead branch",
        "|ρ| with the whole",
        caption=f"dead: |ρ| of at least {DEAD} without it, on {found.measured_on}",
    )
    for cut in found.dead:
        table.add_row(cut.removed, f"{cut.spearman:.4f}")
    console.print_table(table)
    console.say(
        f"Without dead branches: [bold]{format_expression(found.shortest)}[/bold] "
        f"(|ρ| {found.spearman:.4f} on full tensors)."
    )


def _show_sensitivity(result: Explanation) -> None:
    print()
    found = result.sensitivity
    table = console.table("what is changed", "ρ with itself", "ρ with quality")
    changes = {
        "other data": found.other_data,
        "other initial weights": found.other_weights,
        **{f"ones for {name}": one for name, one in found.inputs.items()},
    }
    for name, one in changes.items():
        table.add_row(name, console.number(one.spearman), console.number(one.quality))
    console.print_table(table)
    if found.left_out:
        console.say(f"Inputs cannot be replaced by ones: {found.left_out}.")
    else:
        console.say("Ones for an input: only its size has an effect.")


def _show_configuration(result: Explanation) -> None:
    print()
    rhos = (f"{name} {console.number(rho)}" for name, rho in result.configuration.items())
    console.say(f"Its ρ with {', '.join(rhos)}.")
    closest = result.surrogate
    if closest is None:
        console.say("No formula of the configuration orders these architectures.")
        return
    console.say(closest.words)
    if closest.says_as_much:
        console.say(f"The proxy adds little to {closest.formula}.")
