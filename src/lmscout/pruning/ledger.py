"""The ledger: the measured pairs of one run, an ordinary Optuna study.

One trial a pair, written in one transaction after it was measured, so that a run killed at
any moment has lost at most the pair that it was measuring.  Parameters are named by block
as `Plan.as_dict` names them; whatever reads Optuna studies reads a ledger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from lmscout.errors import LmscoutError
from lmscout.pruning.storage import ERRORS, open_storage, quiet, storage_url
from lmscout.pruning.subnetworks.plan import Plan, Shape

Setting = str | int | float | bool | None

STUDY = "lmscout"
SETTINGS = "lmscout.measured"  # the study's attribute that says how pairs were measured


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
        course: tokens so far and the rise on them, portion by portion; the last is `tokens`
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
    course: tuple[tuple[int, float], ...] = ()


class Ledger:
    """Pairs of one model under one way of measuring; no plan twice.

    One process writes; others may read meanwhile, each seeing what was there when it opened
    the ledger, or at its last `refresh`.  The storage stays open until `close`, or to the end of
    a ``with`` block; the pairs that were read can still be asked for afterwards.

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
    ) -> None:
        """Open a ledger, or begin one.

        Args:
            storage: a run folder, for ``ledger.db`` in it, or the URL of any Optuna storage.
            shape: of the dense model.
            settings: all on which a measured value depends: hashes of model and calibration
                text, tokens, compensation, seed, and so on.
            study: name of the study.

        Raises:
            LmscoutError: the storage cannot be opened, or the study there was measured with
                other settings, or is none of ours.
        """
        self._url = storage_url(storage)
        self._name = study
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
        with self._reported():
            self._storage = open_storage(self._url)
        try:
            self._study = self._begin(
                {
                    **settings,
                    "groups": " ".join(map(str, shape.groups)),
                    "channels": " ".join(map(str, shape.channels)),
                }
            )
            self.refresh()
        except BaseException:  # nobody has this ledger, to close it
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
        """Of the storage, as ``optuna-dashboard`` takes it."""
        return self._url

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
            False where the plan is there already; the ledger is then as it was.

        Raises:
            LmscoutError: the value is not finite, or the storage cannot be written.
        """
        self.check(pair)
        if pair.plan in self._by_plan:
            return False
        trial = optuna.create_trial(
            state=TrialState.PRUNED if pair.partial else TrialState.COMPLETE,
            value=pair.value,
            params=pair.plan.as_dict(),
            distributions=self._distributions,
            intermediate_values=dict(pair.course) or {pair.tokens: pair.value},
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
        with self._reported():
            self._study.add_trial(trial)
        self.remember(pair)
        return True

    def check(self, pair: Pair) -> None:
        """Refuse what can be no measurement.

        Raises:
            LmscoutError: the value is not finite.
        """
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
        with self._reported():
            found = self._study.user_attrs.get(key)
            if found is None and value is not None:
                self._study.set_user_attr(key, value)
                found = value
        return None if found is None else str(found)

    def refresh(self) -> None:
        """Read what other processes have added."""
        with self._reported():
            trials = self._study.get_trials(
                deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
            )
        self._pairs, self._by_plan = [], {}
        for trial in trials:
            self.remember(_pair(trial))

    def close(self) -> None:
        """Let go of the storage; what was added stays."""
        self._storage.close()

    def _begin(self, wanted: Mapping[str, Setting]) -> optuna.Study:
        """The study, new or found, whose pairs were measured as is wanted."""
        with self._reported():
            study = optuna.create_study(
                storage=self._storage,
                study_name=self._name,
                direction="minimize",
                load_if_exists=True,
            )
            found = study.user_attrs.get(SETTINGS)
            if found is None and not study.get_trials(deepcopy=False):
                # New, or its maker was killed before it came to this line.
                study.set_user_attr(SETTINGS, wanted)
                found = wanted
        if found is None:
            raise LmscoutError(
                f"study {self._name!r} at {self._url} is not a ledger of lmscout; name another "
                "study"
            )
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                raise LmscoutError(
                    f"ledger at {self._url}: its pairs were measured with {key} = "
                    f"{found.get(key)}, this run has {wanted.get(key)}; use another folder or "
                    "study, or the same settings"
                )
        return study

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Optuna quiet, and its storage errors in one line."""
        try:
            with quiet():
                yield
        except ERRORS as error:
            reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise LmscoutError(f"ledger at {self._url}: {reason[0]}") from error


def _pair(trial: FrozenTrial) -> Pair:
    attributes = trial.user_attrs
    value = trial.value
    if value is None or not {"tokens", "round"} <= attributes.keys():
        raise LmscoutError(
            f"ledger: trial {trial.number} was not written by lmscout; use another study"
        )
    return Pair(
        plan=Plan.from_dict(trial.params),
        value=value,
        tokens=int(attributes["tokens"]),
        partial=trial.state == TrialState.PRUNED,
        round=int(attributes["round"]),
        kept=float(attributes.get("kept", 0.0)),
        seconds=float(attributes.get("seconds", 0.0)),
        origin=str(attributes.get("origin", "")),
        course=tuple(sorted(trial.intermediate_values.items())),
    )
