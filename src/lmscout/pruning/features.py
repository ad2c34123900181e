"""Features of plans for the accuracy predictor, and the scale of its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from lmscout.pruning.plan import Floats, Rows, Shape, dense_row, kept_shares

_TINY = 1e-9  # nats, the least argument of a logarithm


@dataclass(frozen=True, eq=False)
class ImportanceMass:
    """Summed importance of removed units, by the number of kept units."""

    # For each block, [groups + 1]: entry k is the sum over the groups that are removed if k are
    # kept; the last is 0.
    attention: tuple[Floats, ...]
    mlp: tuple[Floats, ...]  # the same for channels, [channels + 1]
    # Whether a mass is an estimate of the loss increase, in nats/token, so that those of all blocks
    # and kinds add up.
    in_nats: bool = False

    @classmethod
    def of_scores(
        cls,
        attention: Sequence[npt.ArrayLike],
        mlp: Sequence[npt.ArrayLike],
        *,
        in_nats: bool = False,
    ) -> ImportanceMass:
        """From the scores of each block's units, in the order in which they are kept."""
        return cls(tuple(map(_removed_mass, attention)), tuple(map(_removed_mass, mlp)), in_nats)

    @property
    def columns(self) -> tuple[Floats, ...]:
        """The masses in the order of a row's columns, [units + 1] each."""
        return self.attention + self.mlp

    def estimate(self, rows: Rows) -> Floats:
        """Summed masses of plans, [n, 2L] to [n]; their loss increase, if it is in nats."""
        table, starts = self._flat
        return np.asarray(table[rows.T + starts[:, None]].sum(axis=0))

    @cached_property
    def _flat(self) -> tuple[Floats, Rows]:
        """All masses in one array, and where each of them starts."""
        lengths = [len(one) for one in self.columns]
        return np.concatenate(self.columns), np.cumsum([0, *lengths[:-1]])

    def scaled(self, factors: Floats) -> ImportanceMass:
        """The same with the mass of each column of a row multiplied by a factor, [2L]."""
        columns = [one * factor for one, factor in zip(self.columns, factors, strict=True)]
        depth = len(self.attention)
        return ImportanceMass(tuple(columns[:depth]), tuple(columns[depth:]), self.in_nats)


@dataclass(frozen=True)
class Column:
    """An additional feature."""

    name: str
    values: Callable[[Rows], Floats]  # of plans, [n, 2L] to [n], finite


class PlanFeatures:
    """Feature vectors of plans.

    Columns: share removed [2L], importance removed [2L], whether nothing is kept [2L], share of
    parameters removed, importance removed from attention and from MLPs, the logarithm of the
    estimated loss increase if importance is one, and additional columns.  The former do not
    decrease as units are removed.  Importance is a share of the whole of each kind.

    Attributes:
        depth: number of blocks.
        names: names of the columns.
    """

    def __init__(self, shape: Shape, mass: ImportanceMass, extra: Sequence[Column] = ()) -> None:
        if mass.in_nats:
            extra = (Column("estimate", partial(_log_estimate, mass)), *extra)
        self._extra = tuple(extra)
        self.depth = shape.depth
        self._shape = shape
        self._units = dense_row(shape)
        self._starts = np.cumsum([0, *(self._units[:-1] + 1)])
        tables = []
        for masses in (mass.attention, mass.mlp):
            whole = sum(float(one[0]) for one in masses)
            tables += [one / whole if whole > 0 else one * 0.0 for one in masses]
        self._mass = np.concatenate(tables)
        sublayers = [
            f"block{block:02d}.{kind}"
            for kind in ("attention", "mlp")
            for block in range(self.depth)
        ]
        self.names = (
            *(f"{one}.{kind}" for kind in ("removed", "importance", "empty") for one in sublayers),
            "parameters.removed",
            "attention.importance",
            "mlp.importance",
            *(column.name for column in extra),
        )

    def __call__(self, rows: Rows) -> Floats:
        """Features of plans, [n, 2L] to [n, 6L + 3 + additional columns]."""
        importance = self._mass[rows + self._starts]
        return np.concatenate(
            [
                1.0 - rows / np.maximum(self._units, 1),
                importance,
                rows == 0,
                1.0 - kept_shares(self._shape, rows)[:, None],
                importance[:, : self.depth].sum(axis=1, keepdims=True),
                importance[:, self.depth :].sum(axis=1, keepdims=True),
                *(column.values(rows)[:, None] for column in self._extra),
            ],
            axis=1,
        )


def _log_estimate(mass: ImportanceMass, rows: Rows) -> Floats:
    return np.asarray(np.log(np.maximum(mass.estimate(rows), _TINY)))


def _removed_mass(scores: npt.ArrayLike) -> Floats:
    kept_first = np.asarray(scores, np.float64)
    return np.append(np.cumsum(kept_first[::-1])[::-1], 0.0)


SCALES = ("log", "sqrt", "linear")
_ROOM = 3.0  # spans of the measured values by which predictions may lie outside of them


@dataclass(frozen=True)
class TargetScale:
    """An increasing map from loss increases to the target of a regression, and back.

    Loss increases span a decade within one size and two between sizes, and the small ones matter
    most; on a logarithm or a square root an error is relative to the loss increase.
    """

    name: str  # one of `SCALES`; the square root keeps the sign
    shift: float  # added before the logarithm, so that 0 and small negative values have one
    low: float  # bounds of predictions
    high: float

    @classmethod
    def of(cls, name: str, values: Floats) -> TargetScale:
        """For measured loss increases [n]."""
        small = max(0.02 * float(np.median(np.abs(values)) or np.ptp(values)), 1e-6)
        scale = cls(name, max(small, small - float(values.min())), -np.inf, np.inf)
        target = scale.forward(values)
        room = _ROOM * max(float(np.ptp(target)), 1e-6)
        return cls(name, scale.shift, float(target.min()) - room, float(target.max()) + room)

    def forward(self, values: Floats) -> Floats:
        """Nats to targets."""
        if self.name == "log":
            return np.asarray(np.log(np.maximum(values + self.shift, _TINY)))
        if self.name == "sqrt":
            return np.asarray(np.sign(values) * np.sqrt(np.abs(values)))
        return np.asarray(values, np.float64)

    def backward(self, targets: Floats) -> Floats:
        """Targets to nats, within the bounds."""
        bounded = np.clip(targets, self.low, self.high)
        if self.name == "log":
            return np.asarray(np.exp(bounded) - self.shift)
        if self.name == "sqrt":
            return np.asarray(np.sign(bounded) * bounded**2)
        return np.asarray(bounded)
