"""The sections of reports on discovered, ranked and explained proxies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lmscout import plots
from lmscout.discovery.assessment import Assessment
from lmscout.discovery.discover import Discovery, Finding
from lmscout.discovery.engines import Candidate
from lmscout.discovery.exhaustive import SCORES
from lmscout.discovery.explain import Explanation, Forms
from lmscout.discovery.rank import RankResult
from lmscout.discovery.search_record import EVALUATIONS
from lmscout.discovery.symbolic_search import DeepDiscovery
from lmscout.errors import LmscoutError
from lmscout.metrics import agreement
from lmscout.plots.discovery import by_correlation, findings_of, searches
from lmscout.proxies import format_expression
from lmscout.reports.page import (
    Code,
    Content,
    Figure,
    Formula,
    Part,
    Section,
    Table,
    Text,
    Verdict,
    time_section,
)

_SCATTER = (
    "An architecture a point. The proxy was chosen by the pale circles alone; the teal points, "
    "which no choice has seen, show how well it ranks. The closer to one rising curve, the better."
)
_AGAINST = (
    "On the held-out test split, with 95 % bootstrap intervals over architectures. A proxy must be "
    "ahead of the orange configuration baselines, which need no computation."
)
_COMPLEXITY = (
    "A longer formula must earn its length: the teal line is the best up to each size, every other "
    "point an evaluated proxy."
)
_RANKING = (
    "On all architectures, as nothing was chosen, with 95 % bootstrap intervals and the sign "
    "as given: a negative ρ ranks in the wrong direction."
)
_ON_ALL = _AGAINST.replace("On the held-out test split", "On all architectures")
_FILTERED = (
    "Most proposals are dropped before they are computed on every search architecture: by rules on "
    "the formula, by their values on a few architectures, and by racing."
)
_RANKED = (
    "Every proxy of the space was ranked. The best of so many is flattered by chance on the search "
    "split; the test split shows what is left."
)
_DISTINCT = (
    "Many formulas give the same scores; an undefined one has no finite score for some "
    "architecture, or the same for all."
)
_CHANGED = (
    "Teal: how far the order of architectures stays the same after a change; near 1 the change "
    "does not matter. With ones for an input, only the input’s size has an effect."
)
_INPUTS = (
    "Inputs whose row is dark carry information about quality whatever they are joined with; the "
    "operations are the best of the space for each pair."
)
_TREE = "Operations are teal, their inputs blue; a score is computed from the leaves up."
_ASSESSED = (
    "proxy:wide; kind; Spearman’s ρ:.3f; low:.3f; high:.3f; Kendall’s τ:.3f; in cell:.3f; "
    "given size:.3f; top tenth:.2f"
)
_CANDIDATES = "proxy:wide; words:d; fitness:.3f"
_COLUMNS_NOTE = (
    "Low and high: 95 % bootstrap interval of ρ. In cell: ρ among architectures of one depth and "
    "width. Given size: partial ρ with the number of parameters held fixed. Top tenth: share of "
    "the best tenth that is in the scores’ best tenth."
)


def interval(one: Assessment) -> str:
    """ρ with its interval."""
    rho = one.agreement.spearman
    return f"ρ {rho.value:.3f} (95 % {rho.low:.3f} to {rho.high:.3f})"


def content(
    result: Discovery | DeepDiscovery, folder: Path | None, beside: Path | None = None
) -> Content:
    """The report of a finished discovery, also without its folder.

    `beside` is the folder of a `rank` run on the same benchmark, whose proxies are compared;
    LmscoutError if it is of another one, or a file is damaged.
    """
    return Content(
        headline(result), _sections(result, folder, beside), _verdicts(result), _tiles(result)
    )


def headline(result: Discovery | DeepDiscovery) -> str:
    """What was found, how well it ranks, against what."""
    findings = findings_of(result)
    if len(findings) == 1:
        one = findings[0]
        return (
            f"The best proxy ranks {len(one.split.test):,} held-out architectures of "
            f"{one.benchmark} with {interval(one.test)}{_ahead(one)}."
        )
    parts = "; ".join(f"{one.benchmark} {interval(one.test)}{_ahead(one)}" for one in findings)
    return f"One proxy for {len(findings)} benchmarks, on held-out architectures: {parts}."


def _ahead(one: Finding | Explanation) -> str:
    if one.beats_baselines is None:
        return ""
    rho = one.hardest.agreement.spearman.value
    return (
        f", {one.ahead.value:+.3f} (95 % {one.ahead.low:+.3f} to {one.ahead.high:+.3f}) against "
        f"the best configuration baseline, {one.hardest.name} (ρ {rho:.3f})"
    )


def verdict(one: Finding | Explanation, name: str = "") -> Verdict:
    """Whether a proxy beats the best configuration baseline."""
    start = f"{name}: it" if name else "It"
    if one.beats_baselines is None:
        return Verdict(
            f"{start} has no baseline: all architectures have one configuration.", "warn"
        )
    if not one.beats_baselines:
        return Verdict(f"{start} does not beat {one.hardest.name}.", "bad")
    if one.ahead.low <= 0 <= one.ahead.high:
        return Verdict(f"{start} beats {one.hardest.name}, but not significantly.", "warn")
    return Verdict(f"{start} beats {one.hardest.name}, the best configuration baseline.", "good")


def _verdicts(result: Discovery | DeepDiscovery) -> list[Verdict]:
    """Sentences on the baselines."""
    first, *more = findings_of(result)
    return [verdict(one, one.benchmark) for one in (first, *more)] if more else [verdict(first)]


def _tiles(result: Discovery | DeepDiscovery) -> list[tuple[str, str, str]]:
    """The most important numbers."""
    one = findings_of(result)[0]
    rho, best = one.test.agreement.spearman, one.hardest.agreement.spearman.value
    shown = [
        ("test ρ", f"{rho.value:.3f}", f"95 % {rho.low:.3f} to {rho.high:.3f}"),
        ("search ρ", f"{one.search[0]:.3f}", f"{len(one.split.search)} architectures"),
        (f"{one.hardest.name}, ρ", f"{best:.3f}", "best configuration baseline"),
    ]
    if math.isfinite(one.test.within_cell):
        shown.append(("ρ in cell", f"{one.test.within_cell:.3f}", "of one depth and width"))
    if isinstance(result, Discovery):
        return [*shown, ("proxies", f"{result.space.size:,}", f"{result.n_distinct:,} distinct")]
    return [*shown, ("evaluated", f"{result.evaluations:,}", f"of {result.proposed:,} proposed")]


def _sections(
    result: Discovery | DeepDiscovery, folder: Path | None, beside: Path | None
) -> list[Section]:
    formula: list[Part] = [Formula(result.proxy)]
    findings = findings_of(result)
    if findings[0].sign < 0:
        formula.append(Text("Lower scores are better: figures have the sign reversed."))
    if result.proxy.size <= 60:
        formula.append(Figure(plots.tree(result), _TREE))
    found = [Section("The formula", formula)]
    for one in findings:
        others = [] if beside is None else assessed_beside(one, beside)
        where = f" on {one.benchmark}" if len(findings) > 1 else ""
        if one.points is not None:
            found.append(
                Section(f"Score against quality{where}", [Figure(plots.quality(one), _SCATTER)])
            )
        found.append(
            Section(
                f"Against the baselines{where}",
                [
                    Figure(plots.correlations(one, others), _AGAINST),
                    assessments_table([(one.best, one.test)], others, one.baselines),
                ],
            )
        )
    found.append(Section("The search", _search(result, folder)))
    found.append(Section("The best proxies", _best(result)))
    found.append(time_section(result.seconds))
    return found


def _search(result: Discovery | DeepDiscovery, folder: Path | None) -> list[Part]:
    parts: list[Part] = []
    if isinstance(result, DeepDiscovery):
        recorded = folder if folder and (folder / EVALUATIONS).is_dir() else None
        caption = "The best of each search so far; searches start anew, with seeds of their own."
        parts.append(Figure(plots.convergence(recorded or result), caption))
        parts.append(Figure(plots.complexity(result, recorded), _COMPLEXITY))
        parts.append(Figure(plots.filters(result), _FILTERED))
        return parts
    recorded = folder if folder and (folder / SCORES).is_file() else None
    if recorded or result.ranking is not None:
        parts.append(Figure(plots.distribution(result, recorded), _RANKED))
    if recorded:
        parts.append(Figure(plots.inputs(recorded), _INPUTS))
    parts.append(Figure(plots.filters(result), _DISTINCT))
    return parts


def _best(result: Discovery | DeepDiscovery) -> list[Part]:
    if isinstance(result, Discovery):
        rows = [[str(one.proxy), one.search, one.test] for one in result.top]
        note = (
            "The best on the search split, which orders architectures differently from each other."
        )
        return [Table("Best proxies", "proxy:wide; search ρ:.3f; test ρ:.3f", rows, note, [0])]
    return [
        Table(title, _CANDIDATES, _candidates(some), note)
        for title, some, note in (
            (
                "Members of the product",
                result.members,
                "The best of every search, on full tensors; their product is the proxy.",
            ),
            ("Front", result.front, "The fittest of every size, on sketches of the tensors."),
            ("Fittest", result.top, "On sketches of the tensors."),
        )
    ]


def _candidates(some: Sequence[Candidate]) -> list[list[object]]:
    """Rows of `_CANDIDATES`."""
    return [[format_expression(one.node), one.node.size, one.fitness] for one in some]


def assessments_table(
    own: Sequence[tuple[str, Assessment]],
    others: Sequence[Assessment],
    baselines: Sequence[Assessment],
) -> Table:
    """Correlations of proxies and baselines."""
    rows = [
        [name, kind, *_figures(one)]
        for kind, some in (
            ("found", own),
            ("given", [(one.name, one) for one in others]),
            ("baseline", [(one.name, one) for one in baselines]),
        )
        for name, one in some
    ]
    return Table("Correlations", _ASSESSED, rows, _COLUMNS_NOTE, range(len(own)))


def _figures(one: Assessment) -> list[float]:
    rho, tau = one.agreement.spearman, one.agreement.kendall
    more = one.within_cell, one.given_params, one.recall_top_tenth
    return [rho.value, rho.low, rho.high, tau.value, *more]


def assessed_beside(one: Finding, folder: Path) -> list[Assessment]:
    """Proxies of a `rank` run, assessed on the test split of a finding.

    LmscoutError if the run ranked other architectures, or holds no scores.
    """
    path = folder / SCORES
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise LmscoutError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): name the folder of a rank run"
        ) from error
    if one.points is None or "architecture" not in table.column_names:
        raise LmscoutError(f"{path}: holds no scores of single architectures to compare")
    if tuple(table.column("architecture").to_pylist()) != one.points.names:
        raise LmscoutError(f"{path}: ranks other architectures than {one.benchmark}")
    test, found = one.split.test, []
    quality = table.column("quality").to_numpy()[test]
    for name in table.column_names[2:]:
        scores = table.column(name).to_numpy()[test]
        found.append(Assessment(name, agreement(scores, quality), *[math.nan] * 3))
    return by_correlation(found)


def running(folder: Path, problem: str) -> Content:
    """The report of a search of the deep space without a result; LmscoutError if it is empty."""
    if not (folder / EVALUATIONS).is_dir():
        raise LmscoutError(f"{folder}: {problem}, and there is nothing to show yet")
    every = [one for each in searches(folder) for one in each]
    fit = sorted(
        (one for one in every if one.fitness is not None), key=lambda one: -(one.fitness or 0.0)
    )
    text = f"{len(fit):,} proxies evaluated so far, of {len(every):,} proposed"
    if not fit:
        return Content(f"{text}.", [])
    note = "On sketches of the search architectures’ tensors; nothing was tested yet."
    best = Table("Fittest", _CANDIDATES, _candidates(fit[:50]), note)
    drawn = Figure(plots.convergence(folder), "The best of each search so far.")
    found = [
        Section("The fittest so far", [Formula(fit[0].node), best]),
        Section("Convergence", [drawn]),
    ]
    return Content(f"{text}; the highest fitness on search data is {fit[0].fitness:.3f}.", found)


def rank_content(result: RankResult) -> Content:
    """The report of a ranking."""
    proxies, baselines = by_correlation(result.proxies), by_correlation(result.baselines)
    (best, rho), (hardest, least) = (
        (some[0], some[0].agreement.spearman.value) for some in (proxies, baselines)
    )
    drawn = Figure(plots.correlations(result), _RANKING)
    correlations: list[Part] = [drawn, assessments_table([], proxies, result.baselines)]
    sections = [Section("Correlations", correlations), time_section(result.seconds)]
    text = f"{len(proxies)} proxies on {result.n_architectures:,} architectures of "
    text += result.benchmark
    if not math.isfinite(rho):
        return Content(f"{text}: none has a finite score on all.", sections)
    text += f": the best is {best.name} with {interval(best)}"
    if not math.isfinite(least):
        return Content(f"{text}.", sections)
    ahead = sum(one.agreement.spearman.value > least for one in proxies)
    text += f"; the best configuration baseline is {hardest.name} with {interval(hardest)}."
    say = f"{ahead} of {len(proxies)} proxies are ahead of it."
    found = [
        Verdict(say if ahead else f"No proxy beats {hardest.name}.", "good" if ahead else "bad")
    ]
    seen = ", ".join(one.name for one in result.proxies if result.seen(one.name))
    if seen:
        start = "Found by a search on part of this benchmark, so optimistic"
        found.append(Verdict(f"{start}: {seen}.", "warn"))
    return Content(text, sections, found)


def explain_content(result: Explanation) -> Content:
    """The report of an explanation."""
    text = (
        f"{result.assessment.name} ranks {result.n_architectures:,} architectures of "
        f"{result.benchmark} with {interval(result.assessment)}{_ahead(result)}."
    )
    found = [verdict(result)]
    closest = result.surrogate
    if closest is not None and closest.says_as_much:
        found.append(Verdict(f"It adds little to {closest.formula}.", "bad"))
    if result.seen:
        found.append(Verdict("It was found on part of this benchmark: optimistic.", "warn"))
    shown: list[Part] = [Figure(plots.sensitivity(result), _CHANGED)]
    if result.sensitivity.left_out:
        shown.append(Text(f"Inputs cannot be replaced by ones: {result.sensitivity.left_out}."))
    own = [(result.assessment.name, result.assessment)]
    table = assessments_table(own, [], result.baselines)
    sections = [
        _formula(result),
        Section("Correlations", [Figure(plots.correlations(result), _ON_ALL), table]),
        Section("Sensitivity", shown),
        Section("Dead branches", _dead(result)),
        Section("Configuration", _configuration(result)),
        time_section(result.seconds),
    ]
    return Content(text, sections, found)


def _dead(result: Explanation) -> list[Part]:
    found = result.dead_branches
    if found is None:
        return [Text("It is no expression, so no branch can be taken out.")]
    if not found.dead:
        return [Text("No branch is dead: without any of them the order of architectures changes.")]
    rows = [[one.removed, format_expression(one.shorter), one.spearman] for one in found.dead]
    columns = "removed:wide; left:wide; |ρ| with the whole:.4f"
    return [
        Table("Dead branches", columns, rows, f"Measured on {found.measured_on}."),
        Text(f"Without dead branches (|ρ| {found.spearman:.4f} on full tensors):"),
        Formula(found.shortest),
    ]


def _configuration(result: Explanation) -> list[Part]:
    rows = [[name, rho] for name, rho in result.configuration.items()]
    parts: list[Part] = [Table("With the configuration", "of; Spearman’s ρ:.3f", rows)]
    if (one := result.surrogate) is not None:
        parts.append(
            Text(
                f"Of {one.tried} formulas of depth, width and parameters {one.formula} is closest: "
                f"ρ {one.held_out:.3f} with the proxy on the half that did not select it; "
                f"its own ρ with quality is {one.quality:.3f}."
            )
        )
    return parts


def forms_content(result: Forms) -> Content:
    """The report of a formula without a benchmark."""
    return Content(result.definition or result.name, [_formula(result)])


def _formula(result: Forms | Explanation) -> Section:
    parts: list[Part] = []
    if result.tree is not None:
        parts = [Formula(result.tree), Figure(plots.tree(result), _TREE)]
    parts += [Code("as a PyTorch module", result.torch)] if result.torch else []
    return Section("The formula", parts)
