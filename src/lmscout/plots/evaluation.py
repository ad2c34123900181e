"""Figures of measured models."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from lmscout.evaluation import Evaluation
from lmscout.plots.style import COLOURS, figure, safe


def perplexities(found: Evaluation) -> go.Figure:
    """Perplexity on every text under every protocol; lower is better."""
    rows = found.perplexities
    made = figure("Perplexity", "perplexity, lower is better", height=110 + 34 * len(rows))
    made.add_bar(
        y=[safe(f"{Path(one.source).name or one.source}, {one.protocol.name}", 40) for one in rows],
        x=[one.value for one in rows],
        orientation="h",
        marker={"color": COLOURS["found"]},
        text=[f"{one.value:,.2f}" for one in rows],
        textposition="auto",
        cliponaxis=False,
        customdata=[
            f"{one.value:,.3f} on {one.tokens:,} tokens, windows of {one.protocol.window}, "
            f"stride {one.protocol.stride}"
            for one in rows
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
    made.update_yaxes(autorange="reversed", type="category")
    return made


def tasks(found: Evaluation) -> go.Figure:
    """Scores on tasks, with two standard errors."""
    rows = found.tasks
    made = figure("Tasks", "score, higher is better", height=110 + 34 * len(rows))
    made.add_bar(
        y=[safe(one.task, 40) for one in rows],
        x=[one.value for one in rows],
        orientation="h",
        marker={"color": COLOURS["found"]},
        error_x={
            "type": "data",
            "array": [2 * (one.error or 0.0) for one in rows],
            "thickness": 2,
            "color": COLOURS["dense"],
            "width": 0,
        },
        text=[
            f"{safe(one.metric)} {one.value:.4f} on {one.questions:,} questions, {one.shots} shots"
            for one in rows
        ],
        textposition="none",
        hoverinfo="text+y",
    )
    made.update_yaxes(autorange="reversed", type="category")
    return made
