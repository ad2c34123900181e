"""Pruning: families, importance, plans, measuring, learning, searching, saving.

The names below are imported when they are first asked for: transformers imports this package
to load saved models, and those need nothing of LightGBM, Optuna or pymoo.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmscout.pruning.calibration import CalibrationSettings
    from lmscout.pruning.ledger import Ledger, Pair
    from lmscout.pruning.outcome import Pruning
    from lmscout.pruning.request import Request
    from lmscout.pruning.saving.cutting import cut
    from lmscout.pruning.saving.export import save
    from lmscout.pruning.subnetworks.plan import Plan, Shape
    from lmscout.pruning.workflow import prune

_WHERE = {
    "CalibrationSettings": "calibration",
    "Ledger": "ledger",
    "Pair": "ledger",
    "Plan": "subnetworks.plan",
    "Pruning": "outcome",
    "Request": "request",
    "Shape": "subnetworks.plan",
    "cut": "saving.cutting",
    "prune": "workflow",
    "save": "saving.export",
}

__all__ = [
    "CalibrationSettings",
    "Ledger",
    "Pair",
    "Plan",
    "Pruning",
    "Request",
    "Shape",
    "cut",
    "prune",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
