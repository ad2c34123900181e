"""Every kind of result as the text that its command prints."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

from lmscout.cli import bench, design, discover, eval, explain, export, prune, rank
from lmscout.results import Result

_SHOW: Mapping[str, Callable[[Any], None]] = {
    "Built": bench.show_built,
    "Check": bench.show_check,
    "DeepDiscovery": discover.show_deep,
    "Design": design.show,
    "Discovery": discover.show,
    "Evaluation": eval.show,
    "Explanation": explain.show,
    "Forms": explain.show_forms,
    "GgufFile": export.show,
    "Pruning": prune.show,
    "RankResult": rank.show,
    "Selection": design.show_selection,
}
"""Name of a result's class -> what prints it."""


def summary(result: Result) -> str:
    """The text without colours; tables have at most 80 columns, and prose is not wrapped."""
    text = io.StringIO()
    with redirect_stdout(text):
        _SHOW[type(result).__name__](result)
    return text.getvalue()
