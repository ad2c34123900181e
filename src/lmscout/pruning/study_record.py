"""What a study says of itself: of which model and text its pairs are, and how they were measured.

A prune run writes it down, so that its pairs can be read again without being told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, cast

import optuna
import torch
from optuna.trial import TrialState

from lmscout.errors import LmscoutError
from lmscout.evaluation.text import row_file
from lmscout.pruning.calibration import CalibrationConfig
from lmscout.pruning.evaluator import QUALITIES
from lmscout.pruning.importance import METHODS
from lmscout.pruning.storage import (
    is_there,
    kept_storage,
    open_storage,
    reported,
    shown_url,
    storage_url,
)
from lmscout.pruning.study import SETTINGS, STUDY, PairStudy, attributes_of, is_number, shown_value

_ORIGIN = "origin"
_ORIGIN_KEY = f"lmscout.{_ORIGIN}"
_DTYPES = {
    str(one).removeprefix("torch."): one
    for one in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
}
_LEAST = {"seed": 0, "window": 2}  # of calibration settings; of others 1
_MOST = 2**63 - 1


@dataclass(frozen=True)
class Recorded:
    """How the pairs of a study came about.

    Attributes:
        settings: all on which their values depend, as `Calibrated.study_settings`.
        model: folder or Hub name of the dense model; None where nobody wrote it down.
        text: source of the calibration text, likewise.
        calibration: how it was used.
        dtype: of the weights in memory, while pairs were measured; None where nobody wrote it
            down.
    """

    settings: Mapping[str, str | int | float | bool | None]
    model: str | None
    text: str | None
    calibration: CalibrationConfig
    dtype: torch.dtype | None = None


def record_origin(
    pair_study: PairStudy, model: str, text: str, settings: CalibrationConfig, dtype: torch.dtype
) -> None:
    """Write down what a run's pairs are of; what is there already stays.

    Args:
        pair_study: of the run.
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
    pair_study.note(_ORIGIN, json.dumps(origin))


def read_recorded(storage: str | Path) -> Recorded:
    """Read it.

    Args:
        storage: a run folder, or the URL of an Optuna storage.

    Raises:
        LmscoutError: there is no study there, it is none of lmscout, or was edited.
    """
    url = kept_storage(storage)
    shown = shown_url(url)
    with closing(open_storage(url, begin=False)) as opened:
        found: Mapping[str, Any] = {}
        with reported(url):
            try:
                study = optuna.load_study(study_name=STUDY, storage=opened)
            except KeyError:
                raise LmscoutError(
                    f"study at {shown}: there is no study {STUDY!r} of lmscout; name the folder of "
                    "a prune run, or the URL of its storage"
                ) from None
        found = attributes_of(study, opened, url)
    if SETTINGS not in found:
        raise LmscoutError(
            f"study at {shown}: {STUDY!r} is a study of something else, and no prune run of "
            "lmscout; name the folder of one, or the URL of its storage"
        )
    settings = _table(found[SETTINGS], SETTINGS, shown)
    origin = _table(_parsed(found.get(_ORIGIN_KEY, "{}"), shown), _ORIGIN_KEY, shown)
    calibration = CalibrationConfig(
        **{
            one.name: _setting(one.name, one.default, known[one.name], shown)
            for known in (settings, origin)
            for one in fields(CalibrationConfig)
            if one.name in known
        }
    )
    for derived in ("groups", "channels"):
        settings.pop(derived, None)
    for name in ("model", "text", "dtype"):
        if not isinstance(origin.get(name, ""), str):
            _refuse(shown, f"{_ORIGIN_KEY}: {name}", origin[name], "a text")
    dtype = origin.get("dtype")
    if dtype is not None and dtype not in _DTYPES:
        _refuse(shown, f"{_ORIGIN_KEY}: dtype", dtype, f"one of {', '.join(_DTYPES)}")
    return Recorded(
        settings,
        origin.get("model"),
        origin.get("text"),
        calibration,
        None if dtype is None else _DTYPES[dtype],
    )


def begun_chunks(storage: str | Path, study: str = STUDY) -> int | None:
    """In how many chunks the plans of a study were measured; None where it holds none yet.

    The race compares plans chunk by chunk, and how many a device takes by itself depends on
    its kind.  So a study goes on as it was begun, wherever that is.  Where there is no study
    nothing is made.

    Args:
        storage: a run folder, or the URL of an Optuna storage.
        study: which of its studies.

    Raises:
        LmscoutError: the URL is none, or the storage cannot be read.
    """
    if not is_there(storage):
        return None
    url = storage_url(storage)
    with reported(url), closing(open_storage(url)) as opened:
        try:
            known = optuna.load_study(study_name=study, storage=opened)
            for whole in known.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                return len(whole.intermediate_values) or None
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError):
            return None  # there is none, or opening it says what is wrong with it
    return None


def _parsed(value: object, shown: str) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        _refuse(shown, _ORIGIN_KEY, value, "JSON")


def _table(value: object, name: str, shown: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        _refuse(shown, name, value, "a table of settings")
    return dict(value)


def _setting(name: str, default: object, value: object, shown: str) -> Any:
    """A calibration setting of the kind and size that one has."""
    if isinstance(default, bool):
        good, expected = isinstance(value, bool), "true or false"
    elif name == "windows" and value is None:
        return None
    elif default is None or isinstance(default, int):
        least = _LEAST.get(name, 1)
        good = is_number(value, whole=True) and least <= cast(int, value) <= _MOST
        expected = f"a whole number, {least} to {_MOST}"
    else:
        known = METHODS if name == "importance" else QUALITIES
        good, expected = value in known, f"one of {', '.join(known)}"
    if not good:
        _refuse(shown, f"{SETTINGS}: {name}", value, expected)
    return value


def _refuse(shown: str, name: str, value: object, expected: str) -> NoReturn:
    raise LmscoutError(
        f"study at {shown}: attribute {name} of study {STUDY!r} was edited or is damaged (got "
        f"{shown_value(value)}, expected {expected}); restore a copy, or name another run"
    )


def _absolute(source: str) -> str:
    """A path as it is found from everywhere; a Hub name or address as it is."""
    rows = row_file(source)
    if rows is not None and rows.path.exists():
        return rows.absolute()
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source
