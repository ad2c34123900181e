"""Pruning: families, importance, plans, pairs, predictor, search, recovery, export.

The names are imported on first use, so that `lmscout --help` imports neither PyTorch nor Optuna.
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

_MODULES = {
    "CalibrationConfig": "calibration",
    "Pair": "study",
    "PairStudy": "study",
    "Plan": "plan",
    "PruneConfig": "config",
    "Pruning": "results",
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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
