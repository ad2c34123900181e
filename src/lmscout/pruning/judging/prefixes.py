"""Means of every prefix of a tensor's units, all at once.

What a plan keeps of a tensor is its first units.  A sum over elements is then a sum over units,
and one cumulative sum gives it for every plan; so with norms and deviations, which are sums of
squares, with extremes, which accumulate, and with the two softmaxes, of which the mean needs the
number of rows or the logarithm of a cumulative sum.  `proxies.primitives` has the definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmscout.proxies.primitives import UNARY_OPERATION

Floats = npt.NDArray[np.float64]

_MEANS = {"identity": "identity", "mean": "identity", "meansum": "identity", "l1": "abs"}
_EPS = 1e-9  # as in the published operations


@torch.no_grad()
def prefix_means(tensor: Tensor, axis: int, units: int, operations: Sequence[str]) -> Floats:
    """Mean of unary operations of the first units of a tensor, for every number of units.

    Args:
        tensor: finite; at least one element a unit.
        axis: along which it follows units, each an equal run of entries.
        units: how many.
        operations: names of unary operations.

    Returns:
        [operations, units + 1] float64; 0 where no unit is kept.
    """
    means = _Prefixes(tensor, axis, units)
    table = np.zeros((len(operations), units + 1))
    for row, name in enumerate(operations):
        table[row, 1:] = means.of(name)
    return table


class _Prefixes:
    """One tensor, and what its operations share; every result is [units]."""

    def __init__(self, tensor: Tensor, axis: int, units: int) -> None:
        self._tensor, self._axis, self._units = tensor, axis, units
        self._by_unit = tensor.movedim(axis, 0).reshape(units, -1)
        self._count = np.arange(1, units + 1) * self._by_unit.shape[1]
        rows = tensor.shape[0]
        self._rows = np.full(units, rows)
        if axis == 0:
            self._rows = np.arange(1, units + 1) * (rows // units)
        self._mean = self._sums(self._by_unit) / self._count

    def of(self, name: str) -> Floats:
        """Means of one operation."""
        own: dict[str, Callable[[], Floats]] = {
            "normalize": lambda: np.zeros(self._units),
            "softmax": lambda: 1.0 / self._rows,
            "logsoftmax": lambda: np.where(self._rows > 1, self._mean - self._log_sum_exp(), 0.0),
            "minmax": self._between_extremes,
            "frobenius": lambda: np.sqrt(self._sums(self._by_unit, power=2)),
            "std": self._deviation,
        }
        if name in own:
            return own[name]()
        formula = UNARY_OPERATION[_MEANS.get(name, name)].formula
        return self._sums(formula(self._by_unit)) / self._count

    def _between_extremes(self) -> Floats:
        low = np.minimum.accumulate(_numbers(self._by_unit.amin(1)))
        high = np.maximum.accumulate(_numbers(self._by_unit.amax(1)))
        return np.asarray((self._mean - low) / (high - low + _EPS))

    def _deviation(self) -> Floats:
        # About a centre near all of the means, so that little cancels.
        centre = self._mean[-1]
        squares = self._sums(self._by_unit, power=2, less=centre)
        squares -= self._count * (self._mean - centre) ** 2
        return np.sqrt(np.maximum(squares, 0.0) / np.maximum(self._count - 1, 1))

    def _log_sum_exp(self) -> Floats:
        """Mean over columns of the logarithm of the sum of exponentials over rows."""
        tensor = self._tensor
        if self._axis == 0:
            each = tensor.shape[0] // self._units
            last = tensor.flatten(1).double().logcumsumexp(0)[each - 1 :: each]
            return _numbers(last.mean(1))
        columns = tensor.logsumexp(0).movedim(self._axis - 1, 0).reshape(self._units, -1)
        return self._sums(columns) / (np.arange(1, self._units + 1) * columns.shape[1])

    def _sums(self, by_unit: Tensor, power: int = 1, less: float = 0.0) -> Floats:
        """Sums over the first units of [units, n]."""
        if power == 2:
            by_unit = (by_unit.double() - less).square()
        return np.cumsum(_numbers(by_unit.sum(1, dtype=torch.float64)))


def _numbers(tensor: Tensor) -> Floats:
    return np.asarray(tensor.double().cpu().numpy(), np.float64)
