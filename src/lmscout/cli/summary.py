"""Every kind of result as the text that its command prints."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from lmscout.benchmarks.build import Built
from lmscout.benchmarks.check import Check
from lmscout.cli import bench, design, discover, explain, prune, rank
from lmscout.cli import eval as evaluation_command
from lmscout.discovery import Design, Explanation, RankResult, Selection
from lmscout.discovery.discover import Discovery
from lmscout.discovery.explain import Forms
from lmscout.discovery.symbolic_search import DeepDiscovery
from lmscout.evaluation import Evaluation
from lmscout.pruning.results import Pruning
from lmscout.results import Result

_SHOW: dict[type[Result], Callable[[Any], None]] = {
    Built: bench.show_built,
    Check: bench.show_check,
    DeepDiscovery: discover.show_deep,
    Design: design.show,
    Discovery: discover.show,
    Evaluation: evaluation_command.show,
    Explanation: explain.show,
    Forms: explain.show_forms,
    RankResult: rank.show,
    Selection: design.show,
    Pruning: prune.show,
}


def summary(result: Result) -> str:
    """The text, without colours, 120 columns wide at most.

    Args:
        result: of any command.
    """
    text = io.StringIO()
    with redirect_stdout(text):
        _SHOW[type(result)](result)
    return text.getvalue()
