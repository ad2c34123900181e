"""Choose or shrink a language model without training or evaluating every candidate.

Discover zero-cost proxies and rank architectures with them (LPZero, arXiv 2410.04808); prune a
trained model with an accuracy predictor (arXiv 2309.09507).  The names below are the public
interface and are imported on first use; everything else is internal and may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmscout.errors import LmscoutError
from lmscout.version import __version__

if TYPE_CHECKING:
    from lmscout import plots
    from lmscout.api import (
        build_benchmark,
        check_benchmark,
        design,
        discover,
        evaluate,
        explain,
        export,
        prune,
        rank,
        report,
    )
    from lmscout.arguments import load_benchmark, load_model, load_result, register
    from lmscout.discovery.symbolic_search import DeepSettings as DeepSearchConfig
    from lmscout.pruning.calibration import CalibrationConfig
    from lmscout.pruning.config import PruneConfig
    from lmscout.pruning.recovery.run import RecoveryConfig

__all__ = [
    "CalibrationConfig",
    "DeepSearchConfig",
    "LmscoutError",
    "PruneConfig",
    "RecoveryConfig",
    "__version__",
    "build_benchmark",
    "check_benchmark",
    "design",
    "discover",
    "evaluate",
    "explain",
    "export",
    "load_benchmark",
    "load_model",
    "load_result",
    "plots",
    "prune",
    "rank",
    "register",
    "report",
]

_ELSEWHERE = {
    "CalibrationConfig": ("pruning.calibration", "CalibrationConfig"),
    "DeepSearchConfig": ("discovery.symbolic_search", "DeepSettings"),
    "PruneConfig": ("pruning.config", "PruneConfig"),
    "RecoveryConfig": ("pruning.recovery.run", "RecoveryConfig"),
    **{
        name: ("arguments", name)
        for name in ("load_benchmark", "load_model", "load_result", "register")
    },
}
"""Public name -> module and name of its definition; all others are functions of `lmscout.api`."""


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module("lmscout.plots")
    if name not in __all__:
        raise AttributeError(f"module 'lmscout' has no attribute {name!r}")
    module, defined = _ELSEWHERE.get(name, ("api", name))
    return getattr(import_module(f"lmscout.{module}"), defined)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
