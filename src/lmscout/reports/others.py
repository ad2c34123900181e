"""The sections of reports on designs, benchmarks and evaluations."""

from __future__ import annotations

import math
from pathlib import Path

from lmscout import plots
from lmscout.benchmarks.build import Built
from lmscout.benchmarks.check import Check, check
from lmscout.discovery.design import Design
from lmscout.discovery.selection import Selection
from lmscout.errors import LmscoutError
from lmscout.evaluation import Evaluation
from lmscout.plots.models import trained_rows
from lmscout.reports.page import (
    Content,
    Figure,
    Part,
    Section,
    Table,
    Text,
    Verdict,
    time_section,
)

_CURVES = "A line for every model; lines that still fall were stopped early."
_LOSSES = "Points above each other are architectures of one size, or one with several seeds."


def design_content(result: Design) -> Content:
    """The report of a design."""
    spec = result.spec
    text = (
        f"{result.proxy} scores a {spec.kind} of {spec.depth} blocks, width {spec.width} and "
        f"{spec.parameters():,} parameters best of {result.n_scored:,} architectures of "
        f"{result.space}{result.within}: {result.score:,.6g}"
    )
    if result.drawn_score is not None:
        text += f", against {result.drawn_score:,.6g} before any mutation"
    parts = [architecture_section(result), *choices_section(result)]
    if result.trace:
        caption = (
            "Every architecture that was scored, later ones darker; the largest star is the one "
            "found, the dotted line the limit of parameters, if there is one. A proxy that only "
            "follows size ends there."
        )
        parts.append(Section("The search", [Figure(plots.trace(result), caption)]))
    parts.append(time_section(result.seconds))
    warning = Verdict(
        "Nothing was trained: the score is not a quality. "
        "design --on-benchmark shows the proxy’s regret where quality is known.",
        "warn",
    )
    return Content(f"{text}.", parts, [warning])


def selection_content(result: Selection) -> Content:
    """The report of a selection on a benchmark."""
    own, other = result.pick, result.hardest
    text = (
        f"{own.name} selects an architecture of true rank {own.rank:.4g} of {result.n_within:,} "
        f"of {result.benchmark}{result.within}, with regret {own.regret:.4g}; "
        f"the best configuration baseline, {other.name}, selects rank {other.rank:.4g} with regret "
        f"{other.regret:.4g}."
    )
    kind = {"better than": "good", "as good as": "", "worse than": "bad"}[result.against_hardest]
    found = [
        Verdict(f"Its selection is {result.against_hardest} that of {other.name}.", kind),
        Verdict(f"Equivalent number of random trials: {own.trials:,}."),
    ]
    if result.seen:
        found.append(Verdict("It was found on part of this benchmark: optimistic.", "warn"))
    rows = [
        [one["name"], one["rank"], one["top"], one["regret"], one["n_tied"], one["random_trials"]]
        for one in result.rows()
    ]
    columns = "selected by; true rank:.1f; top:.1%; regret:.4g; tied:d; random trials:,d"
    note = (
        "Regret: the best quality within the limits less that of the choice; means over tied "
        "choices. Random trials: trained at random until the best is expected to be as good."
    )
    drawn = Figure(plots.regret(result), "Teal is the proxy; shorter is better.")
    table = Table("Ways to select", columns, rows, note, [0])
    parts = [Section("The selection", [drawn, table]), *choices_section(result)]
    if result.points is not None:
        caption = "The star is what the proxy selects: the rightmost point. Higher is better."
        parts.append(Section("Score against quality", [Figure(plots.quality(result), caption)]))
    return Content(text, [*parts, architecture_section(result)], found)


def choices_section(result: Design | Selection) -> list[Section]:
    """The architectures of the best scores, if the result has them."""
    headings = (
        "architecture; true rank:.1f; score:.6g; standard error:.2g; in the best 5 %:.0%; "
        "blocks:d; width:d; parameters:,d; multiply-adds a token:,d; ms a sequence:.3g"
    )
    rows = [
        [
            *(one.identifier or str(number), one.rank, one.score, one.standard_error, one.chance),
            *(one.spec.depth, one.spec.width, one.spec.parameters(), one.spec.multiply_adds()),
            one.latency,
        ]
        for number, one in enumerate(result.choices, 1)
    ]
    columns = headings.split("; ")
    shown = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]
    note = (
        "In the best 5 %: the chance to be there by score, among all that were scored, with other "
        "draws of initial weights; a bootstrap over the draws. It says nothing about quality."
        if result.weights > 1
        else "With two draws of weights or more, there are standard errors and chances."
    )
    kept = [[row[place] for place in shown] for row in rows]
    left = "; ".join(columns[place] for place in shown)
    table = Table("The best by score", left, kept, note, [0])
    return [Section("The best by score", [table])] if rows else []


def architecture_section(result: Design | Selection) -> Section:
    """The blocks of an architecture, and the fields of its spec."""
    rows = [
        [name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
        for name, value in result.spec.to_dict().items()
    ]
    drawn = Figure(plots.architecture(result), "What every block has.")
    return Section("The architecture", [drawn, Table("Spec", "field; value:wide", rows)])


def check_content(result: Check) -> Content:
    """The report of a check."""
    can = "can" if result.distinguishes else "cannot"
    ceiling, best = result.ceiling.spearman, result.baselines[result.best_baseline].spearman
    text = (
        f"{result.folder.name} {can} distinguish proxies: a perfect one would reach ρ "
        f"{ceiling.value:.3f}, the best configuration baseline, {result.best_baseline}, has "
        f"{best.value:.3f} (95 % {best.low:.3f} to {best.high:.3f}), and "
        f"{result.distinguishable_in_cell:.0%} of the pairs of one depth and width differ by more "
        "than noise."
    )
    found = [
        Verdict(f"{'Yes' if holds else 'No'}: {name}.", "good" if holds else "bad")
        for name, holds in result.verdicts.items()
    ]
    return Content(text, [check_section(result)], found)


def check_section(result: Check) -> Section:
    """Noise ceiling and baselines."""
    caption = (
        "Teal: what a perfect proxy would reach, as the measured quality has noise. The room "
        "between it and the orange baselines is what proxies can compete for."
    )
    every = [
        ("a perfect proxy", result.ceiling),
        ("quality measured again", result.repeat),
        *result.baselines.items(),
    ]
    rows = [
        [name, one.spearman.value, one.spearman.low, one.spearman.high, one.kendall.value]
        for name, one in every
    ]
    columns = "; Spearman’s ρ:.3f; low:.3f; high:.3f; Kendall’s τ:.3f"
    note = (
        f"Noise of one training {result.noise:.4f} nats/token; standard deviation of quality "
        f"{result.spread:.4f}, within one depth and width {result.spread_in_cell:.4f}. "
        f"{result.n_replicated} of {result.n_architectures} architectures were trained with "
        "several seeds."
    )
    table = Table("Ceiling and baselines", columns, rows, note)
    drawn = Figure(plots.correlations(result), caption)
    return Section("What it can distinguish", [drawn, table])


def build_content(folder: Path, result: Built | None, wanted: object = None) -> Content:
    """The report of a benchmark; LmscoutError if no model is trained yet or a file is damaged."""
    rows = trained_rows(folder)
    losses = [one.validation_loss[-1] for one in rows if one.validation_loss[-1] is not None]
    architectures = len({one.architecture for one in rows})
    text = f"{architectures:,} architectures, {len(rows):,} models trained"
    text += f" of {wanted} wanted architectures" if result is None and wanted else ""
    if losses:
        text += f"; final losses {min(losses):.3f} to {max(losses):.3f} nats/token"
    found, parts = [], []
    if result is not None:
        text += f", in {result.seconds:,.0f} s"
        try:
            checked = check(folder)
        except LmscoutError as error:
            found.append(Verdict(f"It cannot be checked: {error}.", "warn"))
        else:
            can, kind = ("can", "good") if checked.distinguishes else ("cannot", "bad")
            found.append(Verdict(f"It {can} distinguish proxies.", kind))
            parts.append(check_section(checked))
    table = [
        [one.architecture, one.seed, one.parameters, one.validation_loss[-1], one.seconds]
        for one in rows
    ]
    columns = "architecture:d; seed:d; parameters:,d; loss:.4f; seconds:,.1f"
    trained: list[Part] = [
        Figure(plots.losses(folder), _LOSSES),
        Figure(plots.curves(folder), _CURVES),
        Table("Trained models", columns, table, "Loss: validation, nats/token.", long=True),
    ]
    return Content(f"{text}.", [*parts, Section("What was trained", trained)], found)


def eval_content(result: Evaluation) -> Content:
    """The report of an evaluation."""
    parts = []
    text = f"{result.parameters:,} parameters ({result.bytes / 1e6:,.1f} MB, {result.dtype})"
    if result.perplexities:
        one = result.perplexities[0]
        text += (
            f": perplexity {one.value:,.2f} on {Path(one.source).name or one.source} by "
            f"{one.protocol.name} ({one.tokens:,} tokens)"
        )
        rows = [
            [
                *(each.source, each.value, each.nll, each.protocol.name, each.protocol.window),
                *(each.protocol.stride, each.tokens, ", ".join(each.special_tokens) or "none"),
            ]
            for each in result.perplexities
        ]
        columns = (
            "text; perplexity:,.3f; nll:.4f; protocol; window:d; stride:d; tokens:,d; "
            "special tokens"
        )
        note = "Perplexities compare only under the same protocol, text and tokenizer."
        drawn = Figure(plots.perplexities(result), note)
        parts.append(Section("Perplexity", [drawn, Table("Perplexities", columns, rows)]))
    if result.tasks:
        text += f"; {len(result.tasks)} tasks"
        rows = [
            [one.task, one.metric, one.value, one.error, one.shots, one.questions, one.note or ""]
            for one in result.tasks
        ]
        columns = "task; metric; score:.4f; standard error:.4f; shots:d; questions:,d; note"
        drawn = Figure(plots.tasks(result), "By log-likelihood; bars of two standard errors.")
        parts.append(Section("Tasks", [drawn, Table("Task scores", columns, rows)]))
    cost = [f"{result.multiply_adds:,} multiply-adds per token in the linear layers"]
    if (speed := result.speed) is not None:
        cost.append(
            f"{speed.tokens_per_second:,.0f} tokens/s in batches of {speed.batch} x {speed.length}"
        )
        if speed.peak_bytes is not None and math.isfinite(speed.peak_bytes):
            cost.append(f"peak memory {speed.peak_bytes / 1e6:,.0f} MB")
    parts.append(Section("Cost", [Text(f"{'; '.join(cost)}.")]))
    return Content(f"{text}.", parts)
