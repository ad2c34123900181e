"""The measured pairs of a run, stored as an Optuna study.

A pair is one trial, written in one transaction after its measurement, so a killed run loses at
most the pair that it was measuring.  Parameters are named by block as in `Plan.as_dict`.

A run writes its pairs from a process of their own: a study writes a row per parameter of a plan,
which takes as long as a plan of a small model on a GPU and would hold up the threads that launch
its work.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmscout.children import python_child, signals_held
from lmscout.errors import LmscoutError, brief, first_line
from lmscout.pruning.backends import Storage
from lmscout.pruning.plan import Plan, Shape
from lmscout.pruning.storage import (
    masked,
    open_storage,
    patiently,
    reported,
    shown_url,
    storage_url,
)
from lmscout.pruning.study_lock import StudyLock, study_lock

Setting = str | int | float | bool | None

STUDY = "lmscout"
SETTINGS = "lmscout.measured"  # the study's attribute with the settings of its measurements
_ATTRIBUTES = ("tokens", "round", "kept", "seconds", "origin")  # of a trial
_UNREADABLE = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
_ENDED = (
    "the process that writes it has ended; pairs written before are kept: run the same command "
    "again"
)
_EDITED = "it was edited or is damaged; restore a copy, or use another folder or study"


@dataclass(frozen=True)
class Pair:
    """A plan with its measured quality."""

    plan: Plan
    value: float  # loss increase over the dense model on the same tokens, nats/token
    tokens: int  # number of tokens measured
    partial: bool = False  # whether it was stopped early, on fewer tokens than others
    round: int = 0  # round of the proposal, from 0
    kept: float = 0.0  # share of the parameters in units that the plan keeps
    seconds: float = 0.0  # duration of the measurement
    origin: str = ""  # how the plan was proposed
    # Tokens so far and the loss increase on them, chunk by chunk; the last is `tokens` and `value`.
    trajectory: tuple[tuple[int, float], ...] = ()


class _Trial(BaseModel):
    """Values of a trial, as `Pair`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")

    tokens: int = Field(ge=1)
    round: int = Field(ge=0)
    kept: float = Field(0.0, ge=0, le=1)
    seconds: float = Field(0.0, ge=0)
    origin: str = ""
    value: float
    trajectory: dict[Annotated[int, Field(ge=1)], float] = Field(min_length=1)


class PairStudy:
    """Pairs of one model under one way of measuring, no plan twice: a context manager.

    One process at a time measures, or one group of them, within `locked`.  Others may read; they
    see the pairs of the last `refresh`.  Pairs that were read remain available after `close`.

    Attributes:
        study: the Optuna study.
        url: URL of the storage, as ``optuna-dashboard`` takes it, its password masked.
        opening: URL, shape, settings and name, with which another process opens it.
    """

    def __init__(
        self,
        storage: str | Path,
        shape: Shape,
        settings: Mapping[str, Setting],
        *,
        study: str = STUDY,
        create: bool = True,
        patient: bool = False,
    ) -> None:
        """Open or create a study.

        Args:
            storage: run folder, for ``ledger.db`` in it, URL of a database, or ``journal:FILE``.
            shape: units of the dense model.
            settings: all that a measured value depends on, such as digests of model and text.
            study: name of the study.
            create: whether a missing study is created; if not, nothing is written.
            patient: whether to wait for a storage that does not answer, as one that was opened
                before in the same run; what follows waits for it in any case.

        Raises:
            LmscoutError: the storage cannot be opened, or the study there was measured with
                other settings, is of something else, or was edited.
        """
        self._url = storage_url(storage)
        self.url = shown_url(self._url)
        self._name = study
        self.opening = (self._url, shape, dict(settings), study)
        self._units = shape.dense.as_dict()
        self._distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, units) for name, units in self._units.items()
        }
        self._pairs: dict[Plan, Pair] = {}
        self._read = 0  # trials
        self._lock: StudyLock | None = None
        self._storage = open_storage(self._url, create=create, patient=patient)
        try:
            groups, channels = (" ".join(map(str, one)) for one in (shape.groups, shape.channels))
            measured = {**settings, "groups": groups, "channels": channels}
            self.study = patiently(self._url, partial(self._open, measured, create))
            self.refresh()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def chunks(self) -> int | None:
        """Number of chunks of a complete pair; None without one."""
        complete = (one for one in self._pairs.values() if not one.partial)
        return next((len(one.trajectory) or None for one in complete), None)

    def __len__(self) -> int:
        return len(self._pairs)

    def pairs(self, *, before_round: float = math.inf) -> tuple[Pair, ...]:
        """Pairs of the rounds before one, in the order in which they were added."""
        return tuple(pair for pair in self._pairs.values() if pair.round < before_round)

    def find(self, plan: Plan) -> Pair | None:
        """The pair of a plan; None if it was not measured."""
        return self._pairs.get(plan)

    def add(self, pair: Pair) -> bool:
        """Write a pair; False if the study has one of this plan already and stays unchanged.

        Raises:
            LmscoutError: the value is not finite, or the storage cannot be written.
        """
        self.check(pair)
        return patiently(self._url, partial(self._add, pair))

    def _add(self, pair: Pair) -> bool:
        trial = optuna.create_trial(
            state=TrialState.PRUNED if pair.partial else TrialState.COMPLETE,
            value=pair.value,
            params=pair.plan.as_dict(),
            distributions=self._distributions,
            intermediate_values=dict(pair.trajectory) or {pair.tokens: pair.value},
            user_attrs={name: getattr(pair, name) for name in _ATTRIBUTES},
        )
        trial.datetime_complete = datetime.now()
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=pair.seconds)
        while True:
            self._refresh()  # another process may have measured it
            if pair.plan in self._pairs:
                return False
            if self._storage.add_trial(self.study._study_id, trial, self._read):
                self._read += 1
                self.remember(pair)
                return True

    def check(self, pair: Pair) -> None:
        """Raise LmscoutError if the value is not finite, or another process has taken the lock."""
        if self._lock is not None:
            self._lock.check()
        if not math.isfinite(pair.value):
            raise LmscoutError(
                f"the loss of a plan is not finite ({pair.value}): check the model's weights and "
                "the calibration text"
            )

    def remember(self, pair: Pair) -> None:
        """Include a pair that the storage has; of a plan twice the first counts."""
        self._pairs.setdefault(pair.plan, pair)

    def note(self, name: str, value: str | None = None) -> str | None:
        """A text that belongs to the run, such as measured latencies; None if there is none.

        A `value` is written if there is no such note.
        """
        key = f"lmscout.{name}"
        found = patiently(self._url, self._attributes).get(key)
        if found is None and value is not None:
            found = self._write_once(key, value)
        return None if found is None else str(found)

    @contextmanager
    def locked(
        self, waiting: Callable[[int], None] | None = None, *, group: str = ""
    ) -> Iterator[None]:
        """Measure as the only process within a ``with`` block, which may be nested.

        Pairs of other processes have been read when the block starts.  `waiting` is called with
        the number of pairs while another process measures.  With a `group` other processes of it
        may measure at the same time: each plan after `claim`.

        Raises:
            LmscoutError: the storage cannot be read or written.
        """
        if self._lock is not None:
            yield
            return

        def poll() -> None:
            if waiting:
                self.refresh()
                waiting(len(self))

        lock_of = partial(study_lock, self._storage, self._url, self._name)
        with lock_of(group=group, waiting=poll) as lock:
            self._lock = lock
            try:
                self.refresh()
                yield
                if group:
                    lock.drop_claims(self.study._study_id)
            finally:
                self._lock = None

    @property
    def others(self) -> int:
        """Number of other processes of the group of the lock."""
        return len(self._lock.others()) if self._lock and self._lock.group else 0

    def claim(self, plans: Sequence[Plan], most: int) -> list[Plan]:
        """The first plans, at most so many, that this process is to measure, and no other one."""
        if self._lock is None or not self._lock.group:
            return list(plans[:most])
        keys = {_digest(plan): plan for plan in plans}
        number = self.study._study_id
        claimed = self._lock.claim(number, list(keys), most)
        # A claim is dropped after its pair was written.
        trials = patiently(self._url, partial(self._storage.trial_numbers, number))
        if len(trials) != self._read:
            self.refresh()
        return [keys[key] for key in claimed if keys[key] not in self._pairs]

    def refresh(self) -> None:
        """Read the pairs that other processes have added; LmscoutError if one was edited."""
        patiently(self._url, self._refresh)

    def _refresh(self) -> None:
        trials = self._trials()
        if len(trials) == self._read:
            return
        pairs: dict[Plan, Pair] = {}
        expected: tuple[int, ...] | None = None
        for trial in trials:
            if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                continue  # of another tool
            pair = self._pair(trial, len(trials))
            pairs.setdefault(pair.plan, pair)
            if pair.partial:
                continue
            chunks = tuple(tokens for tokens, _ in pair.trajectory)
            expected = expected or chunks
            if chunks != expected:
                self._refuse(
                    trial, f"was measured after {chunks} tokens (expected {expected}, as others)"
                )
        self._pairs, self._read = pairs, len(trials)

    def close(self) -> None:
        """Close the storage."""
        self._storage.close()

    def _open(self, settings: Mapping[str, Setting], create: bool) -> optuna.Study:
        """The study, found or new, if its pairs were measured with these settings."""
        study = find_study(self._storage, self._url, self._name, required=not create)
        study = study or optuna.create_study(
            storage=self._storage, study_name=self._name, load_if_exists=True
        )
        self.study = study
        empty = not self._storage.trial_numbers(study._study_id)
        attributes = self._attributes()
        if create and empty and SETTINGS not in attributes:  # new, or its creator was killed
            attributes = {SETTINGS: self._write_once(SETTINGS, dict(settings))}
        found = settings_of(attributes, self._url, self._name)
        for key in sorted(found.keys() | settings.keys()):
            if found.get(key) != settings.get(key):
                raise LmscoutError(
                    f"study at {self.url}: its pairs were measured with {key} = "
                    f"{found.get(key)}, this run has {settings.get(key)}; use another folder or "
                    "study, or the same settings"
                )
        return study

    def _attributes(self) -> dict[str, Any]:
        return attributes_of(self.study, self._storage, self._url)

    def _write_once(self, key: str, value: object) -> Any:
        """The attribute of the study, which another process may have written first."""

        def write() -> Any:
            found = self._attributes().get(key)
            if found is None:
                self.study.set_user_attr(key, value)
            return value if found is None else found

        with study_lock(self._storage, self._url, f"{self._name}.notes"):
            return patiently(self._url, write)

    def _trials(self) -> list[FrozenTrial]:
        with reported(self._url):
            try:
                return self.study.get_trials(deepcopy=False)
            except _UNREADABLE as error:
                unreadable, cause = f"the trials of study {self._name!r}", error
            for number, identifier in self._storage.trial_numbers(self.study._study_id):
                try:
                    self._storage.get_trial(identifier)
                except _UNREADABLE as error:
                    unreadable, cause = f"trial {number} of study {self._name!r}", error
                    break
            refuse_edited(self._url, f"{unreadable} cannot be read ({first_line(cause)})")

    def _pair(self, trial: FrozenTrial, trials: int) -> Pair:
        """The pair of a trial; the number of all trials bounds the number of rounds."""
        attributes = trial.user_attrs
        if trial.values is None or not {"tokens", "round"} <= attributes.keys():
            raise LmscoutError(
                f"study at {self.url}: trial {trial.number} was not written by lmscout; use "
                "another study"
            )
        found = {**attributes, "value": trial.values[0], "trajectory": trial.intermediate_values}
        try:
            checked = _Trial.model_validate(found)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = " ".join(map(str, first["loc"][:2]))
            self._refuse(trial, f"has {place} = {brief(first['input'])} ({first['msg']})")
        trajectory = tuple(sorted(checked.trajectory.items()))
        if trajectory[-1][0] != checked.tokens:
            self._refuse(trial, f"has tokens = {checked.tokens} (expected {trajectory[-1][0]})")
        if checked.round > 2 * trials + 8:
            self._refuse(trial, f"has round = {checked.round} of {trials} pairs")
        return Pair(
            self._plan(trial),
            partial=trial.state == TrialState.PRUNED,
            trajectory=trajectory,
            **checked.model_dump(exclude={"trajectory"}),
        )

    def _plan(self, trial: FrozenTrial) -> Plan:
        """The plan of a trial, if it is one of this model."""
        for name in trial.params.keys() - self._units.keys():
            self._refuse(trial, f"has a parameter {name}, which plans of this model have not")
        for name in self._units.keys() - trial.params.keys():
            self._refuse(trial, f"lacks the parameter {name}")
        for name, most in self._units.items():
            units = trial.params[name]
            if type(units) is not int or not 0 <= units <= most:
                self._refuse(trial, f"has {name} = {brief(units)} (expected 0 to {most} units)")
        return Plan.from_dict(trial.params)

    def _refuse(self, trial: FrozenTrial, problem: str) -> NoReturn:
        refuse_edited(self._url, f"trial {trial.number} of study {self._name!r} {problem}")


class StudyWriter:
    """Adds pairs to an open study, one pair behind: a context manager."""

    def __init__(self, pair_study: PairStudy) -> None:
        self._pair_study = pair_study
        self._process: Any = None  # starts with the first pair
        self._pending: Pair | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            with suppress(*[LmscoutError] if error else []):  # the first error counts
                self.flush()
        finally:
            if self._process is not None:
                self._process.communicate()

    def add(self, pair: Pair) -> None:
        """Hand a pair to the process; LmscoutError if the one before could not be written."""
        self._pair_study.check(pair)
        self.flush()
        if self._process is None:
            self._process = _start()
            self._send(self._pair_study.opening)
        self._pending = pair
        self._send(pair)

    def flush(self) -> None:
        """Wait until every pair is written; LmscoutError if one could not be."""
        if self._pending is None:
            return
        pair, self._pending = self._pending, None
        try:
            problem = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            problem = _ENDED
        if problem:
            raise LmscoutError(f"study at {self._pair_study.url}: {problem}")
        self._pair_study.remember(pair)

    def _send(self, message: object) -> None:
        with suppress(BrokenPipeError):  # the process has ended; `flush` reports why
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()


def _start() -> subprocess.Popen[bytes]:
    """Start the process, which ends with its standard input, after the last pair."""
    here = os.getcwd()
    with signals_held():
        return subprocess.Popen(
            python_child(__name__, "serve", finishes=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(one or here for one in sys.path)},
        )


def serve() -> None:
    """Add pairs from standard input to a study, and answer each with "" or the problem."""

    def answer(problem: str) -> None:
        pickle.dump(problem, sys.stdout.buffer)
        sys.stdout.flush()

    storage, shape, settings, study = pickle.load(sys.stdin.buffer)
    try:
        opened = PairStudy(storage, shape, settings, study=study, patient=True)
        with opened as pair_study, suppress(EOFError):
            while True:
                pair_study.add(pickle.load(sys.stdin.buffer))
                answer("")
    except Exception as error:  # any error is a problem of the run
        problem = " ".join(masked(str(error), storage).split()) or type(error).__name__
        answer(problem.removeprefix(f"study at {shown_url(storage)}: "))


def find_study(
    storage: Storage, url: str, name: str, *, required: bool = False
) -> optuna.Study | None:
    """The Optuna study of a name, None if there is none; LmscoutError if it was edited."""
    with reported(url):
        try:
            return optuna.load_study(storage=storage, study_name=name)
        except KeyError:
            if not required:
                return None
        except _UNREADABLE as error:
            refuse_edited(url, f"study {name!r} cannot be read ({first_line(error)})")
    raise LmscoutError(
        f"study at {shown_url(url)}: there is no study {name!r}; name the folder of a prune run, "
        "or the URL of its storage"
    )


def attributes_of(study: optuna.Study, storage: Storage, url: str) -> dict[str, Any]:
    """The attributes of a study; LmscoutError if one is not JSON."""
    with reported(url):
        found = storage.attribute_rows(study._study_id)
    values = {}
    for key, value in found:
        try:
            values[key] = json.loads(value)
        except (TypeError, ValueError, RecursionError) as error:
            refuse_edited(
                url,
                f"attribute {key} of study {study.study_name!r} is not JSON ({first_line(error)})",
            )
    return values


def settings_of(attributes: Mapping[str, Any], url: str, name: str) -> dict[str, Any]:
    """The settings with which pairs were measured; LmscoutError if there are none."""
    found = attributes.get(SETTINGS)
    if found is None:
        raise LmscoutError(
            f"study at {shown_url(url)}: {name!r} is a study of something else, not a study of "
            "lmscout; name the folder of a prune run, or another study or storage"
        )
    if not isinstance(found, dict):
        refuse_edited(
            url,
            f"attribute {SETTINGS} of study {name!r} is no table of settings (got {brief(found)})",
        )
    return found


def refuse_edited(url: str, problem: str) -> NoReturn:
    """Report contents of a storage that lmscout does not write."""
    raise LmscoutError(f"study at {shown_url(url)}: {problem}; {_EDITED}")


def _digest(plan: Plan) -> str:
    return hashlib.sha256(repr((plan.attention, plan.mlp)).encode()).hexdigest()[:24]
