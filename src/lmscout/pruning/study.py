"""The ledger: the measured pairs of one run, an ordinary Optuna study.

One trial a pair, written in one transaction after it was measured, so that a run killed at
any moment has lost at most the pair that it was measuring.  Parameters are named by block
as `Plan.as_dict` names them; whatever reads Optuna studies reads a study.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import column, select, table

from lmscout.errors import LmscoutError
from lmscout.pruning.plan import Plan, Shape
from lmscout.pruning.storage import Storage, open_storage, reported, shown_url, storage_url
from lmscout.pruning.turns import StudyLock, study_lock

Setting = str | int | float | bool | None

STUDY = "lmscout"
SETTINGS = "lmscout.measured"  # the study's attribute that says how pairs were measured
_UNREADABLE = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)  # edited
_EDITED = "it was edited or is damaged; restore a copy, or use another folder or study"


@dataclass(frozen=True)
class Pair:
    """A plan with its measured quality.

    Attributes:
        plan: what was measured.
        value: rise of the negative log-likelihood over the dense model's on the same tokens,
            in nats a token; lower is better.
        tokens: on how many.
        partial: whether it was dropped early, having been measured on fewer tokens.
        round: in which it was proposed.
        kept: share of the parameters in units that the plan keeps.
        seconds: that measuring took.
        origin: how it was proposed.
        trajectory: tokens so far and the rise on them, chunk by chunk; the last is `tokens`
            and `value`.
    """

    plan: Plan
    value: float
    tokens: int
    partial: bool = False
    round: int = 0
    kept: float = 0.0
    seconds: float = 0.0
    origin: str = ""
    trajectory: tuple[tuple[int, float], ...] = ()


class PairStudy:
    """Pairs of one model under one way of measuring; no plan twice.

    One process at a time measures, within `alone`; others may read meanwhile, each seeing what was
    there when it opened the study, or at its last `refresh`.  The storage stays open until `close`,
    or to the end of a ``with`` block; the pairs that were read can still be asked for afterwards.

    Attributes:
        opening: the arguments with which another process opens it, as JSON has them.
    """

    def __init__(
        self,
        storage: str | Path,
        shape: Shape,
        settings: Mapping[str, Setting],
        *,
        study: str = STUDY,
        begin: bool = True,
    ) -> None:
        """Open a study, or begin one.

        Args:
            storage: a run folder, for ``ledger.db`` in it, or the URL of any Optuna storage.
            shape: of the dense model.
            settings: all on which a measured value depends: hashes of model and calibration
                text, tokens, compensation, seed, and so on.
            study: name of the study.
            begin: whether the study is made where there is none; else nothing is written.

        Raises:
            LmscoutError: the storage cannot be opened, or the study there was measured with
                other settings, is none of ours, or holds what lmscout does not write.
        """
        self._url = storage_url(storage)
        self._name = study
        self._shape = shape
        self.opening: Mapping[str, object] = {
            "storage": self._url,
            "shape": astuple(shape),
            "settings": dict(settings),
            "study": study,
        }
        self._distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, units) for name, units in shape.dense.as_dict().items()
        }
        self._pairs: list[Pair] = []
        self._by_plan: dict[Plan, Pair] = {}
        self._read = 0  # trials that were looked at
        self._lock: StudyLock | None = None
        self._storage = open_storage(self._url, begin=begin)
        try:
            self._study = self._begin(
                {
                    **settings,
                    "groups": " ".join(map(str, shape.groups)),
                    "channels": " ".join(map(str, shape.channels)),
                },
                begin,
            )
            self.refresh()
        except BaseException:  # nobody has this study, to close it
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def study(self) -> optuna.Study:
        """The study itself, for Optuna's own tools."""
        return self._study

    @property
    def url(self) -> str:
        """Of the storage, as ``optuna-dashboard`` takes it, but for its password: ``***``."""
        return shown_url(self._url)

    @property
    def chunks(self) -> int | None:
        """In how many chunks whole pairs were measured; None where there are none yet."""
        return next(
            (len(pair.trajectory) or None for pair in self._pairs if not pair.partial), None
        )

    def __len__(self) -> int:
        return len(self._pairs)

    def pairs(self, *, before_round: int | None = None) -> tuple[Pair, ...]:
        """Pairs in the order in which they were added.

        Args:
            before_round: of earlier rounds alone.
        """
        return tuple(
            pair for pair in self._pairs if before_round is None or pair.round < before_round
        )

    def find(self, plan: Plan) -> Pair | None:
        """The pair of a plan, if it was measured."""
        return self._by_plan.get(plan)

    def add(self, pair: Pair) -> bool:
        """Write a pair, at once and for good.

        Returns:
            False where the plan is there already; the study is then as it was.

        Raises:
            LmscoutError: the value is not finite, or the storage cannot be written.
        """
        self.check(pair)
        self.refresh()  # another process may have measured it meanwhile
        if pair.plan in self._by_plan:
            return False
        trial = optuna.create_trial(
            state=TrialState.PRUNED if pair.partial else TrialState.COMPLETE,
            value=pair.value,
            params=pair.plan.as_dict(),
            distributions=self._distributions,
            intermediate_values=dict(pair.trajectory) or {pair.tokens: pair.value},
            user_attrs={
                "tokens": pair.tokens,
                "round": pair.round,
                "kept": pair.kept,
                "seconds": pair.seconds,
                "origin": pair.origin,
            },
        )
        trial.datetime_complete = datetime.now()
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=pair.seconds)
        with reported(self._url):
            self._study.add_trial(trial)
        self._read += 1
        self.remember(pair)
        return True

    def check(self, pair: Pair) -> None:
        """Refuse what can be no measurement.

        Raises:
            LmscoutError: the value is not finite, or another process has taken over.
        """
        if self._lock is not None:
            self._lock.check()
        if not math.isfinite(pair.value):
            raise LmscoutError(
                f"the loss of a plan is not finite ({pair.value}): check the model's weights and "
                "the calibration text"
            )

    def remember(self, pair: Pair) -> None:
        """Take note of a pair that the storage holds; no plan twice."""
        if pair.plan not in self._by_plan:
            self._pairs.append(pair)
            self._by_plan[pair.plan] = pair

    def note(self, name: str, value: str | None = None) -> str | None:
        """A text that belongs to the run and is kept beside the pairs, such as measured costs.

        Args:
            name: of the note.
            value: to be kept, unless there is such a note already.

        Returns:
            The note, or None where there is none.
        """
        key = f"lmscout.{name}"
        found = self._attributes().get(key)
        if found is None and value is not None:
            with study_lock(self._storage, self._url, f"{self._name}.notes"):
                found = self._attributes().get(key)
                if found is None:
                    with reported(self._url):
                        self._study.set_user_attr(key, value)
                    found = value
        return None if found is None else str(found)

    @contextmanager
    def alone(self, waiting: Callable[[int], None] | None = None) -> Iterator[None]:
        """Measure within a ``with`` block as the one process that does; within another, as it is.

        What others have measured until then has been read.

        Args:
            waiting: called with the number of pairs there are, while another process measures.

        Raises:
            LmscoutError: the storage cannot be read or written.
        """
        if self._lock is not None:
            yield
            return

        def look() -> None:
            if waiting:
                self.refresh()
                waiting(len(self))

        with study_lock(self._storage, self._url, self._name, waiting=look) as held:
            self._lock = held
            try:
                self.refresh()
                yield
            finally:
                self._lock = None

    def refresh(self) -> None:
        """Read what other processes have added.

        Raises:
            LmscoutError: the storage cannot be read, or holds what lmscout does not write.
        """
        trials = self._trials()
        if len(trials) == self._read:
            return
        pairs = [self._pair(trial, len(trials)) for trial in trials]
        whole = [pair for pair in pairs if not pair.partial]
        for trial, pair in zip(trials, pairs, strict=True):
            if not pair.partial and marks_of(pair) != marks_of(whole[0]):
                self._refuse(
                    trial,
                    f"was measured after {marks_of(pair)} tokens (expected {marks_of(whole[0])}, "
                    "as others)",
                )
        self._pairs, self._by_plan, self._read = [], {}, len(trials)
        for pair in pairs:
            self.remember(pair)

    def close(self) -> None:
        """Let go of the storage; what was added stays."""
        self._storage.close()

    def _begin(self, wanted: Mapping[str, Setting], begin: bool) -> optuna.Study:
        """The study, new or found, whose pairs were measured as is wanted."""
        with reported(self._url):
            try:
                study = optuna.load_study(storage=self._storage, study_name=self._name)
            except KeyError:
                if not begin:
                    raise LmscoutError(
                        f"study at {self.url}: there is no study {self._name!r}; name the folder "
                        "of a prune run, or the URL of its storage"
                    ) from None
                study = optuna.create_study(
                    storage=self._storage,
                    study_name=self._name,
                    direction="minimize",
                    load_if_exists=True,
                )
            except _UNREADABLE as error:
                raise LmscoutError(
                    f"study at {self.url}: study {self._name!r} cannot be read "
                    f"({_first_line(error)}); {_EDITED}"
                ) from error
        found = attributes_of(study, self._storage, self._url).get(SETTINGS)
        with reported(self._url):
            new = begin and found is None and not _trial_numbers(study, self._storage)
        if new:  # or its maker was killed before it came to this line
            with study_lock(self._storage, self._url, f"{self._name}.notes"):
                found = attributes_of(study, self._storage, self._url).get(SETTINGS)
                if found is None:
                    with reported(self._url):
                        study.set_user_attr(SETTINGS, dict(wanted))
                    found = wanted
        if found is None:
            raise LmscoutError(
                f"study at {self.url}: {self._name!r} is a study of something else, not a study "
                "of lmscout; name another study or storage"
            )
        if not isinstance(found, Mapping):
            raise LmscoutError(
                f"study at {self.url}: attribute {SETTINGS} of study {self._name!r} is no table of "
                f"settings (got {shown_value(found)}); {_EDITED}"
            )
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                raise LmscoutError(
                    f"study at {self.url}: its pairs were measured with {key} = "
                    f"{found.get(key)}, this run has {wanted.get(key)}; use another folder or "
                    "study, or the same settings"
                )
        return study

    def _attributes(self) -> Mapping[str, Any]:
        return attributes_of(self._study, self._storage, self._url)

    def _trials(self) -> list[FrozenTrial]:
        """Trials that are pairs: those that were measured to their end, or dropped early."""
        finished = (TrialState.COMPLETE, TrialState.PRUNED)
        with reported(self._url):
            try:
                return self._study.get_trials(deepcopy=False, states=finished)
            except _UNREADABLE as error:
                self._refuse_unreadable(error)
        raise AssertionError  # it has been refused

    def _refuse_unreadable(self, error: Exception) -> None:
        """Name the trial that Optuna cannot read."""
        for number, place in _trial_numbers(self._study, self._storage):
            try:
                self._storage.get_trial(place)
            except _UNREADABLE as odd:
                raise LmscoutError(
                    f"study at {self.url}: trial {number} of study {self._name!r} cannot be read "
                    f"({_first_line(odd)}); {_EDITED}"
                ) from odd
        raise LmscoutError(
            f"study at {self.url}: the trials of study {self._name!r} cannot be read "
            f"({_first_line(error)}); {_EDITED}"
        ) from error

    def _pair(self, trial: FrozenTrial, trials: int) -> Pair:
        """The pair that a trial is, if lmscout wrote it.

        Args:
            trial: of the study.
            trials: how many there are; no more than so many steps were measured.
        """
        attributes = trial.user_attrs
        if trial.values is None or not {"tokens", "round"} <= attributes.keys():
            raise LmscoutError(
                f"study at {self.url}: trial {trial.number} was not written by lmscout; use "
                "another study"
            )
        most = 2 * trials + 8
        for name, least, highest, whole in (
            ("tokens", 1, math.inf, True),
            ("round", 0, most, True),
            ("kept", 0, 1, False),
            ("seconds", 0, math.inf, False),
        ):
            given = attributes.get(name, 0)
            if not is_number(given, whole) or not least <= given <= highest:
                upper = "more" if highest == math.inf else f"up to {highest}"
                kind = "a whole number" if whole else "a number"
                self._refuse(
                    trial,
                    f"has {name} = {shown_value(given)} (expected {kind}, {least} or {upper})",
                )
        if not isinstance(attributes.get("origin", ""), str):
            self._refuse(
                trial, f"has origin = {shown_value(attributes['origin'])} (expected a text)"
            )
        for tokens, value in (*trial.intermediate_values.items(), (1, trial.values[0])):
            if not is_number(tokens, whole=True) or tokens < 1 or not is_number(value):
                self._refuse(
                    trial,
                    f"has a value of {shown_value(value)} after {shown_value(tokens)} tokens "
                    "(expected a finite number after 1 or more)",
                )
        trajectory = tuple(sorted(trial.intermediate_values.items()))
        if not trajectory or trajectory[-1][0] != attributes["tokens"]:
            last = trajectory[-1][0] if trajectory else "an intermediate value"
            self._refuse(trial, f"has tokens = {attributes['tokens']} (expected {last})")
        return Pair(
            plan=self._plan(trial),
            value=trial.values[0],
            tokens=attributes["tokens"],
            partial=trial.state == TrialState.PRUNED,
            round=attributes["round"],
            kept=float(attributes.get("kept", 0.0)),
            seconds=float(attributes.get("seconds", 0.0)),
            origin=attributes.get("origin", ""),
            trajectory=trajectory,
        )

    def _plan(self, trial: FrozenTrial) -> Plan:
        """The plan of a trial, if it is one of this model."""
        for name, units in trial.params.items():
            most = self._distributions.get(name)
            if not isinstance(most, IntDistribution):
                self._refuse(trial, f"has a parameter {name}, which plans of this model have not")
            elif not is_number(units, whole=True) or not 0 <= units <= most.high:
                self._refuse(
                    trial, f"has {name} = {shown_value(units)} (expected 0 to {most.high} units)"
                )
        for name in self._distributions:
            if name not in trial.params:
                self._refuse(trial, f"lacks the parameter {name}")
        return Plan.from_dict(trial.params)

    def _refuse(self, trial: FrozenTrial, why: str) -> None:
        raise LmscoutError(
            f"study at {self.url}: trial {trial.number} of study {self._name!r} {why}; {_EDITED}"
        )


def attributes_of(study: optuna.Study, storage: Storage, url: str) -> Mapping[str, Any]:
    """The attributes of a study.

    Raises:
        LmscoutError: the storage cannot be read, or an attribute is no JSON.
    """
    rows = table("study_user_attributes", column("study_id"), column("key"), column("value_json"))
    asked = select(rows.c.key, rows.c.value_json).where(rows.c.study_id == study._study_id)
    with reported(url), storage.engine.connect() as connection:
        found = connection.execute(asked).all()
    values = {}
    for key, value in found:
        try:
            values[str(key)] = json.loads(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise LmscoutError(
                f"study at {shown_url(url)}: attribute {key} of study {study.study_name!r} is not "
                f"JSON ({_first_line(error)}); {_EDITED}"
            ) from error
    return values


def _trial_numbers(study: optuna.Study, storage: Storage) -> list[tuple[object, Any]]:
    """Numbers of a study's trials, and those under which the storage has them; as they are there.

    Optuna reads all of every trial to count them, which fails where one was edited.
    """
    rows = table("trials", column("study_id"), column("trial_id"), column("number"))
    asked = select(rows.c.number, rows.c.trial_id).where(rows.c.study_id == study._study_id)
    with storage.engine.connect() as connection:
        return [(number, place) for number, place in connection.execute(asked)]


def marks_of(pair: Pair) -> tuple[int, ...]:
    """Numbers of tokens after which a pair's value was noted."""
    return tuple(tokens for tokens, _ in pair.trajectory)


def is_number(value: object, whole: bool = False) -> bool:
    """Whether a value is a finite number, and a whole one where that is asked."""
    if isinstance(value, float):
        return not whole and math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def shown_value(value: object) -> str:
    """A value for a message: as Python writes it, cut short."""
    try:
        words = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        words = "a number of thousands of digits"
    return words if len(words) <= 60 else f"{words[:60]}…"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
