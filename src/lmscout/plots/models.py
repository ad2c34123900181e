"""Figures of designed, of trained and of measured models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from lmscout.benchmarks.build import Built
from lmscout.benchmarks.built import TrainedRow, read_rows, read_table
from lmscout.discovery.design import Choice, Design
from lmscout.discovery.selection import Selection
from lmscout.errors import LmscoutError
from lmscout.evaluation import Evaluation
from lmscout.plots.style import COLOURS, bars, dots, errors, figure, finite, logarithmic, mark, safe
from lmscout.reading import expanded


def trace(found: Design) -> go.Figure:
    """Score against size of every architecture that a search evaluated, and the best of them.

    Raises:
        LmscoutError: the result is of an earlier version, which kept no scores.
    """
    if not found.trace:
        raise LmscoutError("the result holds no scores of single architectures: run it again")
    choices = found.choices or (Choice(found.spec, found.score),)
    params, scores = ([one[place] for one in found.trace] for place in (0, 1))
    made = figure("Architectures that were scored", "parameters", safe(f"score: {found.proxy}", 40))
    dots(
        made,
        "scored, later ones darker",
        "searched",
        params,
        scores,
        marker={
            "size": 8,
            "color": list(range(len(params))),
            "colorscale": [[0, "#c4cedd"], [1, "#4f6f9f"]],
        },
        text=[
            f"number {place + 1}: {size:,} parameters, score {score:.5g}"
            for place, (size, score) in enumerate(found.trace)
        ],
    )
    dots(
        made,
        "found",
        "found",
        [one.spec.parameters() for one in choices],
        [one.score for one in choices],
        error_y={
            "array": [one.standard_error for one in choices],
            "visible": choices[0].standard_error is not None,
        },
        marker={"size": [15, *[9] * (len(choices) - 1)], "symbol": "star"},
        text=[
            f"{number} by score: {one.spec.parameters():,} parameters, score {one.score:.5g}"
            for number, one in enumerate(choices, 1)
        ],
    )
    if found.limit is not None:
        mark(made, found.limit, "limit ", "uniform")
    return made


def regret(found: Selection) -> go.Figure:
    """True rank of what each way to select would have chosen; 1 is the best."""
    ways = [
        (found.pick, "found"),
        *((one, "uniform") for one in found.baselines),
        (found.at_random, "dense"),
        (found.best_drawn, "dense"),
    ]
    return bars(
        "True rank of the choice",
        f"true rank of {found.n_within}, 1 is the best",
        [one.name for one, _ in ways],
        [one.rank for one, _ in ways],
        [f"{one.rank:.4g}" for one, _ in ways],
        colours=[colour for _, colour in ways],
        hover=[
            f"{one.name}: rank {one.rank:.4g}, regret {one.regret:.4g}, {one.n_tied} tied"
            for one, _ in ways
        ],
    )


def architecture(found: Design | Selection) -> go.Figure:
    """Heads and MLP width of every block of an architecture."""
    values: dict[str, Any] = found.spec.to_dict()
    rows = {
        title: list(values[name])
        for name, title in (("heads", "attention heads"), ("inner", "MLP width"))
        if isinstance(values.get(name), list | tuple)
    }
    if not rows:
        blocks = values.get("blocks", ())
        rows = {"MLP width": [one.get("feed_forward", 0) for one in blocks]}
    made = figure("The architecture", "block", height=200 + 130 * len(rows))
    made.set_subplots(rows=len(rows), cols=1, shared_xaxes=True, vertical_spacing=0.12)
    made.update_layout(showlegend=False)
    for row, (title, counts) in enumerate(rows.items(), 1):
        made.add_bar(
            x=list(range(len(counts))),
            y=counts,
            row=row,
            col=1,
            text=counts,
            textposition="auto",
            marker={"color": COLOURS["found"], "opacity": 1 if row == 1 else 0.65},
            hovertemplate=f"block %{{x}}: {title} %{{y}}<extra></extra>",
        )
        made.update_yaxes(title_text=title, row=row, col=1)
        made.update_xaxes(dtick=1 if len(counts) <= 16 else None, row=row, col=1)
    made.update_xaxes(title_text="block", row=len(rows), col=1)
    return made


def losses(built: Built | Path | str) -> go.Figure:
    """Final validation loss against size, an architecture a point.

    Args:
        built: a built benchmark or its folder, also while it is being built.

    Raises:
        LmscoutError: a file is damaged.
    """
    rows = trained_rows(built)
    made = figure("What was trained", "parameters", "final validation loss, nats/token")
    depths = [one.spec.get("depth") or len(one.spec.get("heads", ())) for one in rows]
    dots(
        made,
        f"trained models ({len(rows)})",
        "found",
        [float(one.parameters) for one in rows],
        [one.validation_loss[-1] for one in rows],
        marker={"size": 8, "opacity": 0.8},
        text=[
            f"architecture {one.architecture}, seed {one.seed}<br>{depth} blocks, "
            f"{one.parameters:,} parameters<br>loss {one.validation_loss[-1]}"
            for one, depth in zip(rows, depths, strict=True)
        ],
    )
    made.update_xaxes(logarithmic([float(one.parameters) for one in rows]))
    return made


def trained_rows(built: Built | Path | str) -> list[TrainedRow]:
    """The trained models of a benchmark or its folder, finished or not; LmscoutError if damaged."""
    path = expanded(str(built.folder if isinstance(built, Built) else built))
    try:
        return read_table(path)
    except LmscoutError:
        rows = list(read_rows(path).values())
        if not rows:
            raise
        return rows


def curves(built: Built | Path | str) -> go.Figure:
    """Validation loss during training, a model a line.

    Args:
        built: a built benchmark or its folder, also while it is being built.

    Raises:
        LmscoutError: a file is damaged.
    """
    rows = trained_rows(built)
    made = figure("Training", "validation during training", "validation loss, nats/token")
    across: list[float | None] = []
    along: list[float | None] = []
    for one in rows:
        across += [*(float(place + 1) for place in range(len(one.validation_loss))), None]
        along += [*one.validation_loss, None]
    made.add_trace(
        go.Scatter(
            name="a model",
            mode="lines+markers",
            x=across,
            y=finite(along),
            showlegend=False,
            line={"color": COLOURS["searched"], "width": 1},
            marker={"size": 3},
            opacity=0.6,
            hoverinfo="y",
        )
    )
    return made


def perplexities(found: Evaluation) -> go.Figure:
    """Perplexity on every text under every protocol; lower is better."""
    rows = found.perplexities
    return bars(
        "Perplexity",
        "perplexity, lower is better",
        [f"{Path(one.source).name or one.source}, {one.protocol.name}" for one in rows],
        [one.value for one in rows],
        [f"{one.value:,.2f}" for one in rows],
        hover=[
            f"{one.value:,.3f} on {one.tokens:,} tokens, windows of {one.protocol.window}, "
            f"stride {one.protocol.stride}"
            for one in rows
        ],
    )


def tasks(found: Evaluation) -> go.Figure:
    """Scores on tasks, with two standard errors."""
    rows = found.tasks
    return bars(
        "Tasks",
        "score, higher is better",
        [one.task for one in rows],
        [one.value for one in rows],
        [
            f"{one.metric} {one.value:.4f} on {one.questions:,} questions, {one.shots} shots"
            for one in rows
        ],
        textposition="none",
        error_x=errors([2 * (one.error or 0.0) for one in rows], colour="dense"),
    )
