"""A Gaussian process on a few hundred rows: the kernel's four numbers, and what it predicts.

scikit-learn's does the same, but takes distances anew at every step of the search for those
numbers and holds a matrix for each of their derivatives: on four hundred rows that is six
times as long, and most of what it takes to learn from a ledger.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

from lmscout.pruning.learning.linear_algebra import Standard, on_one_thread
from lmscout.pruning.subnetworks.plan_arrays import Floats

_UNSURE = 0.01  # variance that a row of weight 1/2 has more than one of weight 1, in targets'
_JITTER = 1e-8  # of every row's variance, which keeps the matrix positive
_CHUNK = 8192  # rows predicted at a time, so that a chunk's kernel matrix stays in cache


@dataclass(frozen=True)
class Kernel:
    """s1 exp(-|x - x'|^2 / 2 l^2) + s2 (x.x' + 1) + noise.

    Attributes:
        smooth: s1, variance of the deviation from the trend.
        length: l, on which it varies.
        linear: s2, variance of the trend's slopes, and of its height.
        noise: variance of a measured target.
    """

    smooth: float
    length: float
    linear: float
    noise: float


def beginning(columns: int) -> tuple[Kernel, Kernel, Kernel]:
    """Where the search for a kernel begins, with its lower and its upper bounds."""
    width = max(1, columns)
    root = width**0.5
    return (
        Kernel(1.0, root, 1.0 / width, 0.1),
        Kernel(1e-3, 0.1 * root, 1e-6, 1e-6),
        Kernel(1e3, 100 * root, 1e2, 1.0),
    )


class Likelihood:
    """How likely targets are under a kernel; what does not depend on it is computed once."""

    def __init__(self, points: Floats, target: Floats, variances: Floats) -> None:
        """Take the rows.

        Args:
            points: [n, d].
            target: [n].
            variances: [n] that rows have beside the kernel's noise.
        """
        self._target, self._variances = target, variances
        products = points @ points.T
        squares = np.diagonal(products)
        self._distances = np.maximum(squares[:, None] + squares - 2 * products, 0.0)
        np.fill_diagonal(self._distances, 0.0)
        self._trend = products + 1.0

    def __call__(self, kernel: Kernel) -> tuple[float, Floats]:
        """The logarithm of the likelihood, and its derivatives by those of the four numbers.

        Where the matrix is not positive to rounding, the likelihood is 0 and level.
        """
        smooth, factor, failed = self._factored(kernel)
        if failed:
            return -np.inf, np.zeros(4)
        solved = cho_solve((factor, True), self._target, check_finite=False)
        value = -0.5 * (
            self._target @ solved
            + 2 * np.log(np.diagonal(factor)).sum()
            + len(self._target) * np.log(2 * np.pi)
        )
        inverse, _ = dpotri(factor, lower=1, overwrite_c=1)  # its lower half, zeros above
        bent = smooth * self._distances
        derivatives = np.array(
            [
                kernel.smooth * self._slope(smooth, inverse, solved),
                kernel.smooth / kernel.length**2 * self._slope(bent, inverse, solved),
                kernel.linear * self._slope(self._trend, inverse, solved),
                kernel.noise * (solved @ solved - np.trace(inverse)),
            ]
        )
        return float(value), 0.5 * derivatives

    def solved(self, kernel: Kernel) -> Floats:
        """The targets by the inverse of the kernel matrix, [n].

        Raises:
            LinAlgError: the matrix is not positive to rounding.
        """
        _, factor, failed = self._factored(kernel)
        if failed:
            raise np.linalg.LinAlgError("the kernel matrix is not positive")
        return np.asarray(cho_solve((factor, True), self._target))

    def most_likely(self, begin: Kernel, least: Kernel, most: Kernel) -> Kernel:
        """The kernel under which targets are the most likely, from a beginning within bounds."""

        def loss(logarithms: Floats) -> tuple[float, Floats]:
            value, slopes = self(Kernel(*np.exp(logarithms).tolist()))
            return -value, -slopes

        bounds = np.log([astuple(least), astuple(most)]).T
        found = minimize(loss, np.log(astuple(begin)), method="L-BFGS-B", jac=True, bounds=bounds)
        return Kernel(*np.exp(found.x).tolist())

    def _factored(self, kernel: Kernel) -> tuple[Floats, Floats, bool]:
        """exp(-|x - x'|^2 / 2 l^2), the whole matrix's lower Cholesky factor, whether it failed."""
        smooth = np.exp(self._distances * (-0.5 / kernel.length**2))
        matrix = kernel.smooth * smooth + kernel.linear * self._trend
        matrix.flat[:: len(matrix) + 1] += kernel.noise + self._variances
        # It is symmetric, so its transpose is itself in the order that LAPACK works in.
        factor, failed = dpotrf(matrix.T, lower=1, clean=1, overwrite_a=1)
        return smooth, factor, failed != 0

    @staticmethod
    def _slope(changes: Floats, inverse: Floats, solved: Floats) -> float:
        """Of a symmetric D: a' D a - trace(K^-1 D), by the inverse's lower half alone."""
        # The inverse is in columns, so its transpose, of the upper half, lies as D does.
        half = float(np.vdot(changes, inverse.T))
        whole = 2 * half - float(np.diagonal(changes) @ np.diagonal(inverse))
        return float(solved @ (changes @ solved)) - whole


class GaussianProcess:
    """A Gaussian process: a linear trend, a smooth deviation from it, and noise.

    Features are standardised.  The kernel's four numbers maximise the likelihood.  One length
    for all features: with a length a feature the fit takes ten times as long and is no better
    on a few hundred rows.
    """

    def __init__(self, begin: Kernel | None = None) -> None:
        """Begin the search for the kernel's numbers at those of a kernel, if one is given."""
        self._begin = begin
        self.kernel: Kernel | None = None

    def fit(self, features: Floats, target: Floats, weights: Floats) -> None:
        """Choose the kernel's numbers and condition on the rows."""
        self._scale = Standard(features)
        points = self._scale(features)
        self._mean, self._deviation = float(target.mean()), float(target.std()) or 1.0
        begin, least, most = beginning(points.shape[1])
        with on_one_thread():
            likelihood = Likelihood(
                points,
                (target - self._mean) / self._deviation,
                _JITTER + _UNSURE * (1 / weights - 1),
            )
            self.kernel = likelihood.most_likely(self._begin or begin, least, most)
            self._alpha = likelihood.solved(self.kernel)
            # The linear part of the mean is a plane, and needs no kernel matrix.
            self._slope = self.kernel.linear * (points.T @ self._alpha)
            self._height = self.kernel.linear * self._alpha.sum()
        self._centres = points / self.kernel.length
        self._squares = (self._centres**2).sum(axis=1)

    def predict(self, features: Floats) -> Floats:
        """The posterior mean."""
        assert self.kernel is not None
        result = np.empty(len(features))
        with on_one_thread():
            for start in range(0, len(features), _CHUNK):
                points = self._scale(features[start : start + _CHUNK])
                scaled = points / self.kernel.length
                distance = (scaled**2).sum(axis=1)[:, None] + self._squares
                distance -= 2 * scaled @ self._centres.T
                smooth = np.exp(-0.5 * np.maximum(distance, 0.0)) @ self._alpha
                mean = self.kernel.smooth * smooth + points @ self._slope + self._height
                result[start : start + _CHUNK] = self._mean + self._deviation * mean
        return result
