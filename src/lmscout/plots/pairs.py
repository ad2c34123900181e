"""The measured pairs of a run, and what figures show of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState

from lmscout.errors import LmscoutError
from lmscout.pruning.features import TargetScale
from lmscout.pruning.plan import Floats, Plan, Rows, as_rows
from lmscout.pruning.results import Pruning
from lmscout.pruning.storage import existing_storage_url, storage_file
from lmscout.pruning.study import Pair
from lmscout.pruning.study_record import RecordedPairs, read_pairs

Source = Pruning | RecordedPairs | optuna.Study | Path | str

_SAMPLES = 200  # of the bootstrap
_RIDGE = 1e-2  # of the variance of a column


def pairs_of(source: Source) -> RecordedPairs:
    """The measured pairs of a run.

    Args:
        source: a result, whose study is read if it is a file (no server that a result
            names is asked); a run folder or the URL of a storage, also of a running run; or an
            Optuna study.

    Raises:
        LmscoutError: there is no study of lmscout, or it was edited.
    """
    if isinstance(source, RecordedPairs):
        return source
    if isinstance(source, optuna.Study):
        return _of_optuna(source)
    if isinstance(source, Pruning):
        file = storage_file(existing_storage_url(source.study))
        if file is None or not file.is_file():
            raise LmscoutError(f"the pairs at {source.study} are in no file here: give their URL")
        source = source.study
    return read_pairs(source)


def _of_optuna(study: optuna.Study) -> RecordedPairs:
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = study.get_trials(deepcopy=False, states=states)
    if not trials or any(not {"tokens", "round"} <= one.user_attrs.keys() for one in trials):
        raise LmscoutError(f"study {study.study_name!r} holds no pairs of lmscout")
    dense = Plan.from_dict({name: one.high for name, one in trials[0].distributions.items()})  # type: ignore[attr-defined]
    return RecordedPairs(
        dense,
        tuple(
            Pair(
                Plan.from_dict(one.params),
                float(one.value or 0.0),
                int(one.user_attrs["tokens"]),
                one.state == TrialState.PRUNED,
                int(one.user_attrs["round"]),
                float(one.user_attrs.get("kept", 0.0)),
                float(one.user_attrs.get("seconds", 0.0)),
                str(one.user_attrs.get("origin", "")),
            )
            for one in trials
        ),
    )


def pareto(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that are better than all smaller ones, from small to large."""
    front: list[Pair] = []
    for one in sorted(pairs, key=lambda pair: (pair.kept, pair.value)):
        if not front or one.value < front[-1].value:
            front.append(one)
    return front


@dataclass(frozen=True)
class Effect:
    """The effect of removing a tenth of a block's units of one kind on the loss increase.

    Factors less 1: 0.2 is a loss increase that is 20 % larger.
    """

    kind: str  # "attention" or "mlp"
    block: int  # number of the block
    value: float  # of a ridge regression on all pairs
    low: float  # of a 95 % bootstrap interval over pairs
    high: float  # likewise


def effects(source: Source) -> list[Effect]:
    """The effect of every block, from a linear model of log loss increases on removed shares.

    Raises:
        LmscoutError: there are fewer complete pairs than twice the blocks.
    """
    recorded = pairs_of(source)
    some = [one for one in recorded.pairs if not one.partial]
    units = np.array(recorded.dense.attention + recorded.dense.mlp, float)
    if len(some) < max(20, 2 * recorded.dense.depth):
        raise LmscoutError(
            f"{len(some)} complete pairs are too few for the sensitivity of "
            f"{recorded.dense.depth} blocks"
        )
    removed = 1 - as_rows([one.plan for one in some]) / np.maximum(units, 1)
    values = np.array([one.value for one in some])
    target = TargetScale.of("log", values).forward(values)
    rng = np.random.default_rng(0)

    def slopes(rows: Rows) -> Floats:
        x, y = removed[rows], target[rows]
        x, y = x - x.mean(axis=0), y - y.mean()
        penalty = _RIDGE * len(rows) * np.diag(x.var(axis=0) + 1e-6)
        return np.asarray(np.linalg.solve(x.T @ x + penalty, x.T @ y))

    own = slopes(np.arange(len(some)))
    drawn = np.array([slopes(rng.integers(0, len(some), len(some))) for _ in range(_SAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    depth = recorded.dense.depth
    return [
        Effect(
            "attention" if column < depth else "mlp",
            column % depth,
            *(float(np.expm1(0.1 * one[column])) for one in (own, low, high)),
        )
        for column in range(2 * depth)
    ]
