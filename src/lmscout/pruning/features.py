"""Features of a plan for the predictor, and the scale of its target.

What an accuracy predictor is told about a plan.

Three views of the same cut: the share of units removed from every block, the importance of
what was removed (the units that go first matter least, so the importance removed grows
slowly at first), and how much of the whole model is gone.

The scale on which a rise of the loss is learnt.

Rises span a decade within one size and two between sizes, and the small ones matter most;
on a logarithm or a square root an error counts for what it is relative to the rise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.errors import LmscoutError
from lmscout.pruning.plan import Floats, Rows, Shape, dense_row, kept_shares


@dataclass(frozen=True, eq=False)
class ImportanceMass:
    """Importance of what is cut, by how many units stay.

    Attributes:
        attention: for each block, [groups + 1]: entry k is the summed importance of the
            groups that are cut where k are kept; the last is 0.
        mlp: the same of channels, [channels + 1].
    """

    attention: tuple[Floats, ...]
    mlp: tuple[Floats, ...]

    @classmethod
    def of_scores(
        cls, attention: Sequence[npt.ArrayLike], mlp: Sequence[npt.ArrayLike]
    ) -> ImportanceMass:
        """From the scores of each block's units, in the order in which they are kept."""
        return cls(
            tuple(_cut_after(one) for one in attention), tuple(_cut_after(one) for one in mlp)
        )

    def check(self, shape: Shape) -> None:
        """Refuse masses of another model.

        Raises:
            LmscoutError: a block has another number of units, or a mass is not finite.
        """
        for kind, masses, units in (
            ("attention", self.attention, shape.groups),
            ("mlp", self.mlp, shape.channels),
        ):
            if len(masses) != shape.depth or any(
                mass.shape != (most + 1,) for mass, most in zip(masses, units, strict=True)
            ):
                raise LmscoutError(f"importance: {kind} does not fit the model's blocks and units")
            if not all(np.isfinite(mass).all() for mass in masses):
                raise LmscoutError(f"importance: {kind} holds a number that is not finite")


@dataclass(frozen=True)
class Column:
    """A feature that is told beside the usual ones.

    Attributes:
        name: of the column.
        values: of plans, [n, 2L] to [n], finite.
    """

    name: str
    values: Callable[[Rows], Floats]


class PlanFeatures:
    """Plans to feature vectors, many at once.

    Columns: share removed [2L], importance removed [2L], whether nothing is kept [2L], the
    share of parameters removed, the importance removed from attention and from MLPs.  All
    grow, or stay, as units are removed.  Importance is in shares of each kind's whole.  Columns
    that a caller brings come last, as they are.

    Attributes:
        depth: blocks of the model.
        names: of the columns.
    """

    def __init__(self, shape: Shape, mass: ImportanceMass, extra: Sequence[Column] = ()) -> None:
        mass.check(shape)
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
        columns = [
            f"block{block:02d}.{kind}"
            for kind in ("attention", "mlp")
            for block in range(self.depth)
        ]
        self.names = (
            *(f"{name}.removed" for name in columns),
            *(f"{name}.importance" for name in columns),
            *(f"{name}.empty" for name in columns),
            "parameters.removed",
            "attention.importance",
            "mlp.importance",
            *(column.name for column in extra),
        )

    def __call__(self, rows: Rows) -> Floats:
        """Features of plans, [n, 2L] to [n, 6L + 3], and the columns that were brought."""
        removed = 1.0 - rows / self._units
        importance = self._mass[rows + self._starts]
        return np.concatenate(
            [
                removed,
                importance,
                rows == 0,
                1.0 - kept_shares(self._shape, rows)[:, None],
                importance[:, : self.depth].sum(axis=1, keepdims=True),
                importance[:, self.depth :].sum(axis=1, keepdims=True),
                *(column.values(rows)[:, None] for column in self._extra),
            ],
            axis=1,
        )


def _cut_after(scores: npt.ArrayLike) -> Floats:
    kept_first = np.asarray(scores, np.float64)
    return np.append(np.cumsum(kept_first[::-1])[::-1], 0.0)


SCALES = ("log", "sqrt", "linear")
_TINY = 1e-9  # nats, for the logarithm of what fell below all that was measured
_BEYOND = 3.0  # how far past the measured values a prediction may go, in their span


@dataclass(frozen=True)
class TargetScale:
    """A rising map from nats to the numbers that a model learns, and back.

    Attributes:
        name: one of `SCALES`; the square root keeps the sign of its argument.
        shift: added before the logarithm, so that a rise of 0, or a small fall, has one.
        low: lowest number that a prediction is taken for.
        high: highest.
    """

    name: str
    shift: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, values: Floats) -> TargetScale:
        """For measured rises [n]."""
        if name not in SCALES:
            raise ValueError(f"no scale {name!r}: one of {', '.join(SCALES)}")
        small = max(0.02 * float(np.median(np.abs(values)) or np.ptp(values)), 1e-6)
        scale = cls(name, max(small, small - float(values.min())), -np.inf, np.inf)
        numbers = scale.forward(values)
        room = _BEYOND * max(float(np.ptp(numbers)), 1e-6)
        low, high = float(numbers.min()) - room, float(numbers.max()) + room
        return cls(name, scale.shift, low, high)

    def forward(self, values: Floats) -> Floats:
        """Nats to numbers."""
        if self.name == "log":
            return np.asarray(np.log(np.maximum(values + self.shift, _TINY)))
        if self.name == "sqrt":
            return np.asarray(np.sign(values) * np.sqrt(np.abs(values)))
        return np.asarray(values, np.float64)

    def backward(self, numbers: Floats) -> Floats:
        """Numbers to nats."""
        bounded = np.clip(numbers, self.low, self.high)
        if self.name == "log":
            return np.asarray(np.exp(bounded) - self.shift)
        if self.name == "sqrt":
            return np.asarray(np.sign(bounded) * bounded**2)
        return np.asarray(bounded)
