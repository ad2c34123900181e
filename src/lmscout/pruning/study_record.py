"""The origin of a study's pairs: model, text and calibration, stored with the study."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from optuna.trial import TrialState

from lmscout.errors import LmscoutError, brief
from lmscout.evaluation.text import row_file
from lmscout.pruning.calibration import CalibrationConfig
from lmscout.pruning.evaluator import QUALITIES
from lmscout.pruning.importance import METHODS
from lmscout.pruning.plan import Plan, Shape
from lmscout.pruning.storage import (
    existing_storage_url,
    may_exist,
    open_storage,
    reported,
    shown_url,
    storage_url,
)
from lmscout.pruning.study import (
    SETTINGS,
    STUDY,
    Pair,
    PairStudy,
    attributes_of,
    find_study,
    settings_of,
)
from lmscout.reading import expanded

_ORIGIN = "origin"
_ORIGIN_KEY = f"lmscout.{_ORIGIN}"
_DTYPES = {
    str(one).removeprefix("torch."): one
    for one in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
}
_COUNTS = re.compile(r"\d{1,9}( \d{1,9}){0,9999}")  # units of each block
_LEAST = {"seed": 0, "window": 2}  # of calibration settings; of others 1
_MOST = 2**63 - 1


@dataclass(frozen=True)
class Recorded:
    """The origin of the pairs of a study."""

    settings: Mapping[str, str | int | float | bool | None]  # as `Calibrated.study_settings`
    model: str | None  # folder or Hub name of the dense model; None if not recorded
    text: str | None  # source of the calibration text; None if not recorded
    calibration: CalibrationConfig  # settings of the calibration
    dtype: torch.dtype | None = None  # of the measured weights; None if not recorded


def record_origin(
    pair_study: PairStudy, model: str, text: str, settings: CalibrationConfig, dtype: torch.dtype
) -> None:
    """Record the origin of a run's pairs, unless the study has one, as in `Recorded`."""
    origin = {
        "model": _absolute(model),
        "text": _absolute(text),
        "final_tokens": settings.final_tokens,
        "dtype": str(dtype).removeprefix("torch."),
    }
    pair_study.note(_ORIGIN, json.dumps(origin))


def read_recorded(storage: str | Path) -> Recorded:
    """Read the origin of the pairs in a run folder or at a URL; LmscoutError if it was edited."""
    url, attributes = _attributes(storage)
    settings = dict(settings_of(attributes, url, STUDY))
    origin = attributes.get(_ORIGIN_KEY, "{}")
    try:
        origin = json.loads(origin) if isinstance(origin, str) else origin
    except (ValueError, RecursionError):
        _refuse(url, _ORIGIN_KEY, origin, "JSON")
    if not isinstance(origin, dict):
        _refuse(url, _ORIGIN_KEY, origin, "a table of settings")
    known = settings | origin
    used = [one for one in fields(CalibrationConfig) if one.name in known]
    calibration = CalibrationConfig(
        **{one.name: _setting(one.name, one.default, known[one.name], url) for one in used}
    )
    for derived in ("groups", "channels"):
        settings.pop(derived, None)
    for name in ("model", "text", "dtype"):
        if not isinstance(origin.get(name, ""), str):
            _refuse(url, f"{_ORIGIN_KEY}: {name}", origin[name], "a text")
    dtype = origin.get("dtype")
    if dtype is not None and dtype not in _DTYPES:
        _refuse(url, f"{_ORIGIN_KEY}: dtype", dtype, f"one of {', '.join(_DTYPES)}")
    model, text = origin.get("model"), origin.get("text")
    return Recorded(settings, model, text, calibration, dtype and _DTYPES[dtype])


@dataclass(frozen=True)
class RecordedPairs:
    """The pairs of a study, and the dense model's plan."""

    dense: Plan
    pairs: tuple[Pair, ...]  # in the order of measuring


def read_pairs(storage: str | Path) -> RecordedPairs:
    """Read the pairs in a run folder or at a URL, also while a run adds more; writes nothing.

    Raises:
        LmscoutError: there is no study of lmscout, or it was edited.
    """
    url, attributes = _attributes(storage)
    found = dict(settings_of(attributes, url, STUDY))
    counts = []
    for name in ("groups", "channels"):
        text = found.pop(name, None)
        if not isinstance(text, str) or not _COUNTS.fullmatch(text):
            _refuse(url, f"{SETTINGS}: {name}", text, "numbers of units")
        counts.append(tuple(map(int, text.split())))
    groups, channels = counts
    if len(groups) != len(channels):
        _refuse(url, f"{SETTINGS}: channels", counts[1], f"numbers of {len(groups)} blocks")
    none = (0,) * len(groups)
    with PairStudy(url, Shape(groups, channels, none, none), found, create=False) as pair_study:
        return RecordedPairs(Plan(groups, channels), pair_study.pairs())


def _attributes(storage: str | Path) -> tuple[str, dict[str, Any]]:
    """The URL of a storage, and the attributes of its study."""
    url = existing_storage_url(storage)
    with closing(open_storage(url, create=False)) as opened:
        study = find_study(opened, url, STUDY, required=True)
        assert study is not None
        return url, attributes_of(study, opened, url)


def recorded_chunks(storage: str | Path, study: str = STUDY) -> int | None:
    """Number of chunks of a study's complete pairs; None without one.  Creates no file.

    Plans are compared chunk by chunk, and the number of chunks depends on the device, so a study
    continues with the number it has.
    """
    if not may_exist(storage):
        return None
    url = storage_url(storage)
    with reported(url), closing(open_storage(url)) as opened:
        try:
            found = find_study(opened, url, study)
            complete = found and found.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError, LmscoutError):
            return None  # opening the study reports the problem
    return len(complete[0].intermediate_values) or None if complete else None


def _setting(name: str, default: object, value: object, url: str) -> Any:
    """A calibration setting, if its type and size are valid."""
    known = {"importance": METHODS, "quality": QUALITIES}.get(name)
    if known:
        valid, expected = value in known, f"one of {', '.join(known)}"
    elif isinstance(default, bool):
        valid, expected = isinstance(value, bool), "true or false"
    elif name == "windows" and value is None:
        return None
    else:
        least = _LEAST.get(name, 1)
        valid = type(value) is int and least <= value <= _MOST
        expected = f"a whole number, {least} to {_MOST}"
    if not valid:
        _refuse(url, f"{SETTINGS}: {name}", value, expected)
    return value


def _refuse(url: str, name: str, value: object, expected: str) -> NoReturn:
    raise LmscoutError(
        f"study at {shown_url(url)}: attribute {name} of study {STUDY!r} was edited or is damaged "
        f"(got {brief(value)}, expected {expected}); restore a copy, or name another run"
    )


def _absolute(source: str) -> str:
    """A path as an absolute path; a Hub name or address as it is."""
    rows = row_file(source)
    if rows is not None and rows.path.exists():
        return rows.absolute()
    path = expanded(source)
    return str(path.resolve()) if path.exists() else source
