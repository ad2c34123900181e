"""Models that a run had saved when it was stopped: told from those of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lmscout.errors import LmscoutError, shown
from lmscout.pruning.saving.export import CONFIG, RECORD
from lmscout.pruning.subnetworks.plan import Plan
from lmscout.reading import read_json_object


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a whole model: its configuration is written last."""
    return (folder / CONFIG).exists()


def check_asked(folder: Path, shape: str, note: Mapping[str, Any]) -> None:
    """Refuse a finished model that was asked for otherwise, as far as a request tells.

    Args:
        folder: of the model.
        shape: that is wanted.
        note: what its record is to say; what it says besides may be anything.

    Raises:
        LmscoutError: its record cannot be read, or differs.
    """
    record = _read(folder, RECORD)
    asked = record.get("asked")
    found = {"shape": record.get("shape"), **(asked if isinstance(asked, dict) else {})}
    _compare(folder, found, {"shape": shape, **note})


def check_plan(folder: Path, plan: Plan, dtype: torch.dtype) -> None:
    """Refuse a finished model that is not the one that a run has found.

    Args:
        folder: of the model.
        plan: that was found.
        dtype: of the weights that would be saved.

    Raises:
        LmscoutError: its record cannot be read, or differs.
    """
    found = {
        "plan": _read(folder, RECORD).get("plan"),
        "dtype": _read(folder, CONFIG).get("dtype"),
    }
    saved = str(dtype).removeprefix("torch.")
    _compare(folder, found, {"plan": plan.as_dict(), "dtype": saved})


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json_object(folder / name, lenient=True)
    except LmscoutError as error:
        raise LmscoutError(
            f"output folder {folder} holds a model whose {name} cannot be read: name another"
        ) from error


def _compare(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            both = "" if key == "plan" else f" ({shown(found.get(key))}, in this run {value})"
            raise LmscoutError(
                f"output folder {folder} holds a finished model with another {key}{both}: name "
                "another folder"
            )
