"""`lmscout explain`: what a proxy says, and whether anything simpler says the same."""

from __future__ import annotations

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
    KeepOption,
    WorkersOption,
)
from lmscout.errors import LmscoutError

if TYPE_CHECKING:
    from lmscout.discovery import Explanation
    from lmscout.discovery.explain import Change, Forms


def explain(
    context: typer.Context,
    proxy: Annotated[
        str,
        typer.Argument(
            metavar="PROXY",
            help="A proxy of the catalog, or an expression such as 'sum(std(grad))'.",
            show_default=False,
        ),
    ],
    benchmark: Annotated[
        str | None,
        typer.Argument(
            metavar="BENCHMARK",
            help="pico, flexibert, lts:random_GPT2_wt103, or bench:DIR, flexibert:PATH, lts:PATH; "
            "without one, the formula alone is printed.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=LAST_SEED,
            help="Of the models' weights, and of the half that chooses a formula.",
        ),
    ] = 0,
    latex: Annotated[bool, typer.Option("--latex", help="Print the proxy in LaTeX.")] = False,
    torch: Annotated[
        bool, typer.Option("--torch", help="Print a module that computes it with PyTorch alone.")
    ] = False,
    workers: WorkersOption = -1,
    backend: BackendOption = "loky",
    device: DeviceOption = "cpu",
    out: KeepOption = None,
    json: JsonOption = None,
) -> None:
    """Take a proxy apart on all architectures of a benchmark.

    Which of its branches do not matter; what its order of architectures owes to the data, to
    the weights and to each input; how it goes with depth, width and size, and which formula of
    these alone comes nearest to it.  The sign is as given.  LaTeX and PyTorch follow from the
    formula and need no benchmark.
    """
    console.check_json_target(json)
    if benchmark is None:
        _show_forms(context, proxy, latex=latex, torch=torch, json=json)
        return
    # Imported here, so that `--help` does not wait for PyTorch.
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
        out=out,
    )
    assert not isinstance(result, Forms)
    if json != console.STDOUT:
        show(result)
        if latex:
            _show_form(result.latex, "LaTeX")
        if torch:
            _show_form(result.torch, "PyTorch")
    console.write_result(json, result, Run(out or default_run_folder("explain"), "explain"))


def _show_forms(
    context: typer.Context, proxy: str, *, latex: bool, torch: bool, json: str | None
) -> None:
    """Print what follows from the formula alone.

    Args:
        context: of the command.
        proxy: as it was given.
        latex: whether LaTeX is wanted.
        torch: whether the module is; where either is, nothing else is printed.
        json: where the forms go as JSON.

    Raises:
        LmscoutError: the proxy is none, or an option needs a benchmark.
    """
    from lmscout.discovery.explain import forms

    for name in ("seed", "workers", "backend"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise LmscoutError(
                f"--{name} has nothing to apply to: give BENCHMARK after PROXY, or leave it out"
            )
    found = forms(proxy)
    if json != console.STDOUT:
        screen = console.table_console()
        if not (latex or torch):
            show_forms(found)
            screen.print(
                "Give BENCHMARK to take it apart on, --latex or --torch for its other forms.",
                highlight=False,
            )
        if latex:
            _show_form(found.latex, "LaTeX")
        if torch:
            _show_form(found.torch, "PyTorch")
    console.write_values(json, found.to_json())


def show_forms(found: Forms) -> None:
    """Print a proxy's definition and its expression."""
    from lmscout.proxies import format_expression

    screen = console.table_console()
    if found.definition:
        screen.print(f"{found.name}: {found.definition}", highlight=False)
    text = "no expression" if found.tree is None else format_expression(found.tree)
    screen.print(text, soft_wrap=True, highlight=False, markup=False)


def show(result: Explanation) -> None:
    """Print dead branches, sensitivities and the closest formula."""
    from lmscout.proxies import format_expression

    screen = console.table_console()
    screen.print(
        f"[bold]{escape(result.benchmark)}[/bold]: {result.n_architectures} architectures; "
        f"quality is {result.metric}",
        highlight=False,
    )
    name, tree = result.assessment.name, result.tree
    text = name if tree is None else format_expression(tree)
    screen.print(f"[bold]{name}[/bold]{f' is {text}' if text != name else ''}", highlight=False)
    _show_assessment(result)
    _show_dead_branches(result)
    _show_sensitivity(result)
    _show_configuration(result)


def _show_assessment(result: Explanation) -> None:
    screen = console.table_console()
    table = console.assessment_table()
    table.add_row("the proxy", *console.assessment_cells(result.assessment), style="bold")
    table.add_row(result.hardest.name, *console.assessment_cells(result.hardest), style="dim")
    screen.print(table)
    if result.seen:
        screen.print(console.FLATTERED, highlight=False)
    if result.beats_baselines is None:
        screen.print(console.NO_BASELINE)
        return
    verb = "beats" if result.beats_baselines else "does not beat"
    screen.print(
        f"It {verb} the best configuration baseline, {result.hardest.name}"
        f"{console.difference(result.ahead)}.",
        highlight=False,
    )


def _show_dead_branches(result: Explanation) -> None:
    from lmscout.discovery.explain import DEAD
    from lmscout.proxies import format_expression

    screen, found = console.table_console(), result.dead_branches
    if found is None:
        screen.print("It is no expression, so no branch can be taken out of it.")
        return
    if not found.dead:
        screen.print(
            f"No dead branch: no part can be taken out without changing the order of "
            f"architectures (|ρ| below {DEAD} on {found.measured_on}).",
            highlight=False,
        )
        return
    table = Table(caption=f"dead: |ρ| of at least {DEAD} without it, on {found.measured_on}")
    console.add_name_column(table, "dead branch")
    table.add_column("|ρ| with the whole", justify="right", no_wrap=True)
    for cut in found.dead:
        table.add_row(cut.removed, f"{cut.spearman:.4f}")
    screen.print(table)
    screen.print(
        f"Without all that is dead: [bold]{format_expression(found.shortest)}[/bold] "
        f"(|ρ| {found.spearman:.4f} on full tensors).",
        highlight=False,
    )


def _show_sensitivity(result: Explanation) -> None:
    screen, update = console.table_console(), result.sensitivity
    table = Table()
    for column in ("what is changed", "ρ with itself", "ρ with quality"):
        table.add_column(column, justify="left" if column[0] == "w" else "right")

    def row(name: str, one: Change) -> None:
        table.add_row(name, console.number(one.spearman), console.number(one.quality))

    row("other data", update.other_data)
    row("other initial weights", update.other_weights)
    for name, one in update.inputs.items():
        row(f"ones for {name}", one)
    screen.print(table)
    if update.left_out:
        screen.print(f"Inputs cannot be replaced by ones: {update.left_out}.")
    else:
        screen.print("Ones for an input: what is left where it tells nothing but its size.")


def _show_configuration(result: Explanation) -> None:
    screen, nearest = console.table_console(), result.surrogate
    screen.print(
        "Its ρ with "
        + ", ".join(f"{name} {console.number(rho)}" for name, rho in result.configuration.items())
        + ".",
        highlight=False,
    )
    if nearest is None:
        screen.print("No formula of the configuration orders these architectures.")
        return
    fitted, held_out, quality = map(
        console.number, (nearest.fitted, nearest.held_out, nearest.quality)
    )
    screen.print(
        f"Of {nearest.tried} formulas of depth, width and params, "
        f"[bold]{nearest.formula}[/bold] is most like it: chosen on half of the architectures "
        f"(ρ {fitted}), on the others ρ {held_out}; the formula's own ρ with quality is {quality}.",
        highlight=False,
    )
    if nearest.says_as_much:
        screen.print(f"The proxy says little that {nearest.formula} does not.", highlight=False)


def _show_form(text: str | None, form: str) -> None:
    """Print a form as it is: plain, so that it can be pasted."""
    print()
    print(text if text is not None else f"It is no expression, so it has no {form} form.")
