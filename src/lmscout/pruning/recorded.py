"""What a ledger says of itself: of which model and text its pairs are, and how they were measured.

A prune run writes it down, so that its pairs can be read again without being told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from lmscout.errors import LmscoutError
from lmscout.evaluation.text_rows import row_file
from lmscout.pruning.calibration import CalibrationSettings
from lmscout.pruning.ledger import SETTINGS, STUDY, Ledger
from lmscout.pruning.storage import ERRORS, FILE_NAME, is_there, open_storage, quiet, storage_url

_ORIGIN = "origin"


@dataclass(frozen=True)
class Recorded:
    """How the pairs of a ledger came about.

    Attributes:
        settings: all on which their values depend, as `Calibrated.ledger_settings`.
        model: folder or Hub name of the dense model; None where nobody wrote it down.
        text: source of the calibration text, likewise.
        calibration: how it was used.
        dtype: of the weights in memory, while pairs were measured; None where nobody wrote it
            down.
    """

    settings: Mapping[str, str | int | float | bool | None]
    model: str | None
    text: str | None
    calibration: CalibrationSettings
    dtype: torch.dtype | None = None


def record_origin(
    ledger: Ledger, model: str, text: str, settings: CalibrationSettings, dtype: torch.dtype
) -> None:
    """Write down what a run's pairs are of; what is there already stays.

    Args:
        ledger: of the run.
        model: folder or Hub name of the dense model.
        text: source of the calibration text.
        settings: of the calibration.
        dtype: of the weights in memory.
    """
    origin = {
        "model": _absolute(model),
        "text": _absolute(text),
        "final_tokens": settings.final_tokens,
        "dtype": str(dtype).removeprefix("torch."),
    }
    ledger.note(_ORIGIN, json.dumps(origin))


def read_recorded(storage: str | Path) -> Recorded:
    """Read it.

    Args:
        storage: a run folder, or the URL of an Optuna storage.

    Raises:
        LmscoutError: there is no ledger there.
    """
    if "://" not in str(storage) and not (Path(storage) / FILE_NAME).is_file():
        raise LmscoutError(
            f"{storage}: holds no ledger; name the folder of a prune run, or its storage's URL"
        )
    url = storage_url(storage)
    found: Mapping[str, Any] = {}
    # KeyError: there is no such study
    with suppress(KeyError, *ERRORS), quiet(), closing(open_storage(url)) as opened:
        found = optuna.load_study(study_name=STUDY, storage=opened).user_attrs
    if SETTINGS not in found:
        raise LmscoutError(f"{url}: holds no ledger of lmscout; name a prune run's")
    settings = dict(found[SETTINGS])
    origin = json.loads(found.get(f"lmscout.{_ORIGIN}", "{}"))
    known = {**settings, **origin}
    calibration = CalibrationSettings(
        **{one.name: known[one.name] for one in fields(CalibrationSettings) if one.name in known}
    )
    for derived in ("groups", "channels"):
        settings.pop(derived, None)
    dtype = getattr(torch, origin["dtype"]) if "dtype" in origin else None
    return Recorded(settings, origin.get("model"), origin.get("text"), calibration, dtype)


def begun_portions(storage: str | Path, study: str = STUDY) -> int | None:
    """In how many portions the plans of a ledger were measured; None where it holds none yet.

    The race compares plans portion by portion, and how many a device takes by itself depends on
    its kind.  So a ledger goes on as it was begun, wherever that is.  Where there is no ledger
    nothing is made; what is wrong with one, opening it says.

    Args:
        storage: a run folder, or the URL of an Optuna storage.
        study: which of its studies.

    Raises:
        LmscoutError: the URL is none, or there is no driver for its database.
    """
    if not is_there(storage):
        return None
    with (
        suppress(KeyError, *ERRORS),
        quiet(),
        closing(open_storage(storage_url(storage))) as opened,
    ):
        known = optuna.load_study(study_name=study, storage=opened)
        for whole in known.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return len(whole.intermediate_values) or None
    return None


def _absolute(source: str) -> str:
    """A path as it is found from everywhere; a Hub name or address as it is."""
    rows = row_file(source)
    if rows is not None and rows.path.exists():
        return rows.absolute()
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source
