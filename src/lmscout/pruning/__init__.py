"""Pruning: families, importance, plans, measuring, learning, searching, saving.

The names below are imported on first use: the command line's help needs nothing of PyTorch,
LightGBM, Optuna or pymoo.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmscout.pruning.calibration import CalibrationConfig
    from lmscout.pruning.config import PruneConfig
    from lmscout.pruning.cutting import cut
    from lmscout.pruning.export import save
    from lmscout.pruning.plan import Plan, Shape
    from lmscout.pruning.results import Pruning
    from lmscout.pruning.study import Pair, PairStudy
    from lmscout.pruning.workflow import prune

_WHERE = {
    "CalibrationConfig": "calibration",
    "PairStudy": "study",
    "Pair": "study",
    "Plan": "plan",
    "Pruning": "results",
    "PruneConfig": "config",
    "Shape": "plan",
    "cut": "cutting",
    "prune": "workflow",
    "save": "export",
}

__all__ = [
    "CalibrationConfig",
    "Pair",
    "PairStudy",
    "Plan",
    "PruneConfig",
    "Pruning",
    "Shape",
    "cut",
    "prune",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
