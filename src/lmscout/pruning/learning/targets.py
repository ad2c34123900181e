"""The scale on which a rise of the loss is learnt.

Rises span a decade within one size and two between sizes, and the small ones matter most;
on a logarithm or a square root an error counts for what it is relative to the rise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmscout.pruning.subnetworks.plan_arrays import Floats

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
