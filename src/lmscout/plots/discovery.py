"""Figures of discovered, ranked and explained proxies, designs and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmscout.benchmarks.check import Check
from lmscout.discovery.assessment import Assessment, Points
from lmscout.discovery.discover import SCORES, Discovery, Finding
from lmscout.discovery.engines import Candidate
from lmscout.discovery.explain import Explanation, Forms
from lmscout.discovery.rank import RankResult
from lmscout.discovery.search_record import EVALUATIONS, Record
from lmscout.discovery.selection import Selection
from lmscout.discovery.symbolic_search import DeepDiscovery
from lmscout.errors import LmscoutError
from lmscout.metrics import Interval, rounded
from lmscout.plots.style import (
    COLOURS,
    bars,
    dots,
    errors,
    figure,
    finite,
    line,
    mark,
    safe,
    wrapped,
)
from lmscout.proxies import Expression, format_expression

_BINS = 60  # of a histogram of correlations
_SIDES = ("left_input", "right_input")


def findings_of(found: Discovery | DeepDiscovery | Finding) -> tuple[Finding, ...]:
    """The findings of a discovery, one for each benchmark."""
    return found.findings if isinstance(found, DeepDiscovery) else (found,)


def quality(found: Discovery | DeepDiscovery | Finding | Selection) -> go.Figure:
    """Score against measured quality, an architecture a point.

    Of a discovery with the search and the test split marked; of a selection on a benchmark the
    architectures drawn, with the selected and the best.

    Raises:
        LmscoutError: the result is of an earlier version, which kept no scores.
    """
    finding = found if isinstance(found, Selection) else findings_of(found)[0]
    points = finding.points
    if points is None:
        raise LmscoutError("the result holds no scores of single architectures: run it again")
    scores, title = spread_out(points)
    proxy = str(found.proxy) if isinstance(found, Selection) else finding.best  # type: ignore[union-attr]
    made = figure("Score against quality", title, safe(finding.metric))

    def some(name: str, colour: str, rows: Sequence[int], size: int, **marker: Any) -> None:
        texts = [
            f"{safe(points.names[row])}<br>{points.params[row]:,} parameters<br>"
            f"quality {points.quality[row]:.4g}, score {points.scores[row]:.4g}"
            for row in rows
        ]
        x, y = ([one[row] for row in rows] for one in (scores, points.quality))
        dots(made, name, colour, x, y, marker={"size": size, **marker}, text=texts)

    if isinstance(finding, Selection):
        every = range(len(points.names))
        best = max(every, key=lambda row: points.quality[row])
        chosen = [row for row in every if points.names[row] == finding.identifier]
        some("drawn", "searched", list(every), 7, opacity=0.7)
        some("best drawn", "uniform", [best], 13, symbol="diamond")
        some("selected", "found", chosen, 15, symbol="star")
    else:
        few, rest = finding.split.search.tolist(), finding.split.test.tolist()
        some(f"search split ({len(few)})", "searched", few, 7, symbol="circle-open")
        some(f"held-out test split ({len(rest)})", "found", rest, 7, opacity=0.75)
    made.update_layout(title_text=wrapped(f"{proxy} against quality", 70, 2))
    return made


def spread_out(points: Points) -> tuple[list[float], str]:
    """Scores on a scale that shows all of them, and the title of their axis.

    Those of one sign over several powers of ten as logarithms, mixed ones as ranks.
    """
    values = np.array(points.scores)
    known = values[np.isfinite(values)]
    if not known.size or np.ptp(known) == 0:
        return values.tolist(), "score"
    least, most = np.abs(known).min(), np.abs(known).max()
    if (known > 0).all() and most > 30 * least:
        return np.log10(values).tolist(), "log₁₀ of the score"
    if (known < 0).all() and most > 30 * least:
        return (-np.log10(-values)).tolist(), "−log₁₀ of the negated score"
    low, high = np.quantile(known, [0.1, 0.9])
    if np.ptp(known) > 10 * (high - low):
        return values.argsort().argsort().astype(float).tolist(), "rank of the score"
    return values.tolist(), "score"


def correlations(
    found: Discovery | DeepDiscovery | Finding | RankResult | Explanation | Check,
    beside: Iterable[Assessment] = (),
) -> go.Figure:
    """Spearman's ρ with 95 % intervals: proxies, and the configuration baselines.

    Args:
        found: a discovery, a ranking, an explanation, or the check of a benchmark.
        beside: further proxies on the same architectures.
    """
    if isinstance(found, Check):
        rows = [
            ("a perfect proxy", "found", found.ceiling.spearman),
            ("quality measured again", "predicted", found.repeat.spearman),
        ]
        rows += [(name, "uniform", one.spearman) for name, one in found.baselines.items()]
        kinds = {"found": "noise ceiling", "predicted": "measured again"}
        return whiskers("Noise ceiling and configuration baselines", rows, kinds)
    if isinstance(found, RankResult):
        named = [(one.name, "literature", one) for one in by_correlation(found.proxies)]
        baselines = found.baselines
    elif isinstance(found, Explanation):
        named, baselines = [(found.assessment.name, "found", found.assessment)], found.baselines
    else:
        finding = findings_of(found)[0]
        named, baselines = [("found proxy", "found", finding.test)], finding.baselines
        named += [(one.name, "literature", one) for one in beside]
    named += [(one.name, "uniform", one) for one in baselines]
    rows = [(name, colour, one.agreement.spearman) for name, colour, one in named]
    return whiskers("Rank correlation with quality", rows)


_KINDS = {"found": "found", "literature": "given proxies", "uniform": "configuration baselines"}


def whiskers(
    title: str, rows: Sequence[tuple[str, str, Interval]], kinds: Mapping[str, str] | None = None
) -> go.Figure:
    """A dot and an interval a row: label, colour, correlation; `kinds` names colours."""
    names = {**_KINDS, **(kinds or {})}
    made = figure(title, "Spearman's ρ (95 % interval)", height=110 + 26 * len(rows))
    labels = [safe(name, 34) for name, _, _ in rows]
    places = list(range(len(rows)))
    for colour in dict.fromkeys(kind for _, kind, _ in rows):
        own = [place for place in places if rows[place][1] == colour]
        values = [rows[place][2] for place in own]
        dots(
            made,
            names[colour],
            colour,
            [one.value for one in values],
            own,
            error_x=errors(
                [one.high - one.value for one in values], [one.value - one.low for one in values]
            ),
            text=[
                f"{wrapped(rows[place][0])}<br>ρ {rounded(rows[place][2].value)} "
                f"({rounded(rows[place][2].low)} to {rounded(rows[place][2].high)})"
                for place in own
            ],
            marker={"size": 10},
        )
    made.update_yaxes(
        tickvals=places, ticktext=labels, range=[len(rows) - 0.5, -0.5], showgrid=False
    )
    made.update_xaxes(zeroline=True, zerolinecolor="rgba(128,134,142,0.5)")
    return made


def complexity(found: DeepDiscovery, folder: Path | str | None = None) -> go.Figure:
    """Fitness on search data against the size of a proxy in words, with the front.

    Args:
        found: a search of the deep space; proxies of a ranked space all have about one size.
        folder: of its run, with every evaluated proxy; without it, those that the result holds.

    Raises:
        LmscoutError: a file of the run folder is damaged.
    """
    every = _evaluated(found, folder)
    made = figure(
        "Correlation against complexity", "size of the formula, words", "fitness on search data"
    )
    aside = np.random.default_rng(0).uniform(-0.25, 0.25, len(every)).tolist()

    def some(name: str, candidates: Sequence[Candidate], x: Sequence[float], **more: Any) -> None:
        made.add_scatter(
            name=name,
            x=x,
            y=finite([one.fitness for one in candidates]),
            text=[
                f"{one.fitness:.3f}<br>{wrapped(format_expression(one.node))}" for one in candidates
            ],
            hoverinfo="text",
            **more,
        )

    sizes = [one.node.size + by for one, by in zip(every, aside, strict=True)]
    marker = {"size": 5, "opacity": 0.6, "color": COLOURS["searched"]}
    some(f"evaluated ({len(every):,})", every, sizes, mode="markers", marker=marker)
    front = found.front
    some(
        "front: the best up to each size",
        front,
        [one.node.size for one in front],
        mode="lines+markers",
        line={"color": COLOURS["found"], "width": 2, "shape": "hv"},
        marker={"size": 9},
    )
    return made


def ranked(folder: Path | str, *columns: str) -> pa.Table:
    """Every proxy of a ranked space with its ρ on the search split, undefined ones left out.

    LmscoutError if the file is missing or damaged.
    """
    path = Path(folder, SCORES)
    try:
        table = pq.read_table(path, columns=["spearman", *columns])
        return table.filter(pc.is_valid(table.column("spearman")))
    except (OSError, pa.ArrowException) as error:
        raise LmscoutError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error


def distribution(found: Discovery, folder: Path | str | None = None) -> go.Figure:
    """How many proxies of a ranked space have which |ρ| on the search split.

    Args:
        found: the discovery.
        folder: of its run; not needed for a result that was just computed.

    Raises:
        LmscoutError: there is neither.
    """
    if folder is not None:
        values = ranked(folder).column("spearman").to_numpy()
    elif found.ranking is not None:
        values = found.ranking.spearman
    else:
        raise LmscoutError("the result holds no ranking: give the run folder")
    strength = np.abs(values[~np.isnan(values)])
    counts, edges = np.histogram(strength, _BINS, (0, 1))
    made = figure("All proxies of the space", "|ρ| on the search split", "proxies", height=300)
    made.add_bar(
        name="proxies",
        x=((edges[1:] + edges[:-1]) / 2).tolist(),
        y=counts.tolist(),
        width=1 / _BINS,
        marker={"color": COLOURS["searched"]},
        text=[
            f"|ρ| {low:.2f} to {high:.2f}: {count:,}"
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
        textposition="none",
        hoverinfo="text",
        showlegend=False,
    )
    mark(made, abs(found.search[0]), "the found one ", "found")
    made.update_layout(bargap=0)
    return made


def inputs(folder: Path | str) -> go.Figure:
    """The highest |ρ| on the search split of every pair of inputs of a ranked space.

    Args:
        folder: of the run.

    Raises:
        LmscoutError: the file of the ranking is missing or damaged.
    """
    table = ranked(folder, "left_input", "right_input")
    sides = [table.column(name).cast(pa.string()).to_pylist() for name in _SIDES]
    best: dict[tuple[str, str], float] = {}
    for *pair, rho in zip(*sides, table.column("spearman").to_pylist(), strict=True):
        key = (pair[0], pair[1])
        best[key] = max(best.get(key, 0.0), abs(rho))
    names = list(dict.fromkeys(name for pair in best for name in pair))
    values = [
        [best.get((row, column), best.get((column, row))) for column in names] for row in names
    ]
    shown = [safe(one) for one in names]
    made = figure("The best proxy of every pair of inputs", height=400)
    made.add_heatmap(
        x=shown,
        y=shown,
        z=values,
        texttemplate="%{z:.2f}",
        hovertemplate="%{y} with %{x}: |ρ| %{z:.3f}<extra></extra>",
        colorscale=[[0, "rgba(18,165,148,0.05)"], [1, COLOURS["found"]]],
        colorbar={"title": {"text": "|ρ|"}, "thickness": 10, "outlinewidth": 0},
        xgap=2,
        ygap=2,
        hoverongaps=False,
    )
    made.update_xaxes(showgrid=False)
    made.update_yaxes(showgrid=False, autorange="reversed")
    return made


def filters(found: Discovery | DeepDiscovery) -> go.Figure:
    """How many proxies there were, and how many of them each filter discarded."""
    if isinstance(found, DeepDiscovery):
        rows = [("evaluated in full", found.evaluations, "found")]
        rows += [(name, count, "searched") for name, count in found.discarded.most_common()]
    else:
        size = found.space.size
        same = size - found.n_undefined - found.n_distinct
        rows = [
            ("distinct", found.n_distinct, "found"),
            ("same scores as another", same, "searched"),
            ("undefined or constant", found.n_undefined, "searched"),
        ]
    names, counts, colours = zip(*rows, strict=True)
    texts = [f"{count:,} ({count / (sum(counts) or 1):.0%})" for count in counts]
    return bars("What became of the proxies", "proxies", names, counts, texts, colours=colours)


def searches(folder: Path | str) -> list[list[Candidate]]:
    """Candidates of each search of a run folder, as evaluated; LmscoutError if one is damaged."""
    record = Path(folder) / EVALUATIONS
    numbers = sorted({int(path.name.split("-")[0]) for path in record.glob("[0-9]*-*.parquet")})
    return [
        [one for batch in Record(Path(folder), number).batches() for one in batch]
        for number in numbers
    ]


def convergence(found: DeepDiscovery | Path | str) -> go.Figure:
    """The best fitness of each search of the deep space so far, by evaluated proxies.

    Args:
        found: the run folder, of a finished or a running search; or a result, which holds the
            fittest of each search alone.

    Raises:
        LmscoutError: a file of the run folder is damaged.
    """
    made = figure("Convergence of the search", "proxies evaluated", "best fitness on search data")
    if isinstance(found, DeepDiscovery):
        halls = [sorted(one.hall, key=lambda each: each.order) for one in found.evolutions]
        runs = [[one for one in hall if one.fitness is not None] for hall in halls]
    else:
        runs = [[one for one in each if one.fitness is not None] for each in searches(found)]
    for number, some in enumerate(runs):
        best = np.maximum.accumulate([one.fitness or 0.0 for one in some]).tolist()
        colour = list(COLOURS)[number % len(COLOURS)]
        across = list(range(1, len(best) + 1))
        line(made, f"search {number + 1}", colour, across, best, shape="hv", hoverinfo="x+y+name")
    return made


def _evaluated(found: DeepDiscovery, folder: Path | str | None) -> list[Candidate]:
    if folder is not None and Path(folder, EVALUATIONS).is_dir():
        every = [one for each in searches(folder) for one in each]
    else:
        every = [one for each in found.evolutions for one in (*each.front, *each.hall)]
    known = {one.node: one for one in every if one.fitness is not None}
    return list(known.values())


def sensitivity(found: Explanation) -> go.Figure:
    """ρ of a proxy's scores with those after a change of its inputs, and with quality then."""
    rows = found.rows()
    made = figure("What the scores depend on", "Spearman's ρ", height=130 + 44 * len(rows))
    for name, key, colour in (
        ("with the proxy unchanged", "spearman", "found"),
        ("with quality", "quality", "uniform"),
    ):
        made.add_bar(
            name=name,
            y=[safe(one["change"]) for one in rows],
            x=finite([one[key] for one in rows]),
            orientation="h",
            marker={"color": COLOURS[colour]},
            hovertemplate=f"%{{y}}: ρ {name} %{{x:.3f}}<extra></extra>",
        )
    made.update_yaxes(autorange="reversed", type="category")
    made.update_xaxes(zeroline=True, zerolinecolor="rgba(128,134,142,0.5)")
    return made


def tree(proxy: Expression | Forms | Explanation | Discovery | DeepDiscovery) -> go.Figure:
    """The tree of a proxy: operations, and below them what they are applied to.

    Raises:
        LmscoutError: the proxy is no expression.
    """
    node = (
        proxy
        if isinstance(proxy, Expression)
        else proxy.proxy
        if isinstance(proxy, Discovery | DeepDiscovery)
        else proxy.tree
    )
    if node is None:
        raise LmscoutError("the proxy is no expression, so it has no tree")
    x: list[float] = []
    y: list[int] = []
    labels: list[str] = []
    edges: list[tuple[float | None, float | None]] = []
    leaves = 0

    def place(one: Expression, depth: int) -> float:
        nonlocal leaves
        below = [place(each, depth + 1) for each in one.operands]
        if below:
            across = sum(below) / len(below)
        else:
            across, leaves = float(leaves), leaves + 1
        x.append(across)
        y.append(-depth)
        labels.append(one.name)
        for each in below:
            edges.extend([(across, -depth), (each, -depth - 1), (None, None)])
        return across

    place(node, 0)
    made = figure("The formula as a tree", height=110 + 54 * (1 - min(y)))
    line(made, "", "dense", [one for one, _ in edges], [one for _, one in edges], showlegend=False)
    inputs = node.leaves
    ends = [COLOURS["predicted" if one in inputs else "found"] for one in labels]
    made.add_trace(
        go.Scatter(
            mode="markers+text",
            x=x,
            y=y,
            text=[f" {safe(one)}" for one in labels],
            textposition="middle right",
            marker={"size": 9, "color": ends},
            hoverinfo="text",
            showlegend=False,
            cliponaxis=False,
        )
    )
    made.update_xaxes(visible=False, range=[-0.4, max(leaves - 1, 0) + 1.0])
    made.update_yaxes(visible=False, range=[min(y) - 0.5, 0.5])
    return made


def by_correlation(some: Iterable[Assessment]) -> list[Assessment]:
    """Proxies by Spearman's ρ, highest first; those without one last."""

    def place(one: Assessment) -> float:
        rho = one.agreement.spearman.value
        return -rho if math.isfinite(rho) else math.inf

    return sorted(some, key=place)
