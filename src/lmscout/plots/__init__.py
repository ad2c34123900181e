"""Figures of results as plotly figures, alike in notebooks and in the page of `lmscout report`.

`plot(result)` picks the obvious figure of any result, as `result.plot()` does; the other functions
draw one figure each.  Those of a pruning run also take its folder, also while it is running, or an
Optuna study.  Every function's docstring says which results it takes.

Example:
    >>> import lmscout
    >>> checked = lmscout.check_benchmark("pico")
    >>> figure = lmscout.plots.correlations(checked)
    >>> figure.layout.xaxis.title.text
    "Spearman's ρ (95 % interval)"
"""

from __future__ import annotations

import plotly.graph_objects as go

from lmscout.benchmarks.build import Built
from lmscout.benchmarks.check import Check
from lmscout.discovery.design import Design
from lmscout.discovery.discover import Discovery
from lmscout.discovery.explain import Explanation, Forms
from lmscout.discovery.rank import RankResult
from lmscout.discovery.selection import Selection
from lmscout.discovery.symbolic_search import DeepDiscovery
from lmscout.errors import LmscoutError
from lmscout.evaluation import Evaluation
from lmscout.plots.discovery import (
    complexity,
    convergence,
    correlations,
    distribution,
    filters,
    findings_of,
    inputs,
    quality,
    sensitivity,
    tree,
)
from lmscout.plots.models import architecture, curves, losses, perplexities, regret, tasks, trace
from lmscout.plots.pruning import narrowing, plan, predicted, progress, tradeoff
from lmscout.plots.pruning import sensitivity as block_sensitivity
from lmscout.plots.style import COLOURS, time_spent
from lmscout.pruning.results import Pruning
from lmscout.results import Result

__all__ = [
    "COLOURS",
    "architecture",
    "block_sensitivity",
    "complexity",
    "convergence",
    "correlations",
    "curves",
    "distribution",
    "filters",
    "inputs",
    "losses",
    "narrowing",
    "perplexities",
    "plan",
    "plot",
    "predicted",
    "progress",
    "quality",
    "regret",
    "sensitivity",
    "tasks",
    "time_spent",
    "trace",
    "tradeoff",
    "tree",
]


def plot(result: Result) -> go.Figure:  # noqa: PLR0911 - one per class
    """The figure that a reader of a result wants first.

    Args:
        result: of any command.

    Returns:
        Score against quality for a discovery, correlations for a ranking and a check, loss
        increase against size for a pruning run, and so on.

    Raises:
        LmscoutError: the result holds nothing that can be drawn.
    """
    match result:
        case Pruning():
            return tradeoff(result)
        case Discovery() | DeepDiscovery() if findings_of(result)[0].points is not None:
            return quality(result)
        case Discovery() | DeepDiscovery() | RankResult() | Check():
            return correlations(result)
        case Explanation():
            return sensitivity(result)
        case Forms() if result.tree is not None:
            return tree(result)
        case Design() if result.trace:
            return trace(result)
        case Design():
            return architecture(result)
        case Selection():
            return regret(result)
        case Built():
            return losses(result)
        case Evaluation() if result.perplexities:
            return perplexities(result)
        case Evaluation() if result.tasks:
            return tasks(result)
    raise LmscoutError(f"this {type(result).__name__} holds nothing that can be drawn")
