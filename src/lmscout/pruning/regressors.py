"""The three kinds of regression that predict quality: boosted trees, ridge, Gaussian process.

Each is fitted on a few hundred rows of `PlanFeatures`.  Results do not depend on the number of
threads: LightGBM is in its deterministic mode, and linear algebra runs on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import lightgbm
import numpy as np
from scipy.linalg import cho_solve, eigh
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize
from sklearn.feature_selection import VarianceThreshold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController

from lmscout.pruning.plan import Floats

KINDS = ("lightgbm", "ridge", "gaussian_process")


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Run linear algebra on one thread, so that its sums are the same everywhere.

    This is a setting of the process: code that fits models in threads enters it first.
    """
    with _thread_pools().limit(limits=1, user_api="blas"):
        yield


_thread_pools = cache(ThreadpoolController)  # finding the libraries takes longer than a prediction


class BoostedTrees:
    """LightGBM for small data: small trees, many of them, a low learning rate.

    Without monotone constraints: at a fixed size, what one block keeps another has to give.
    """

    def __init__(self, seed: int) -> None:
        self._parameters = {
            "objective": "regression",
            "learning_rate": 0.06,
            "num_leaves": 4,
            "min_data_in_leaf": 4,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "feature_fraction": 0.4,
            "lambda_l2": 1.0,
            "max_bin": 63,
            "seed": seed % 2**31,
            "deterministic": True,
            "force_col_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }

    def fit(self, features: Floats, target: Floats, weights: Floats) -> None:
        """Boost on weighted squared errors."""
        data = lightgbm.Dataset(features, target, weight=weights, params=self._parameters)
        self._booster = lightgbm.train(self._parameters, data, num_boost_round=_TREES)
        self._tables: TreeTables | None = None
        self._predictions = 0

    def predict(self, features: Floats) -> Floats:
        """The sum of the trees."""
        self._predictions += 1
        many = len(features) >= _MANY_ROWS
        if many or self._predictions == 1:
            return np.asarray(self._booster.predict(features, num_threads=1 + many), np.float64)
        if self._tables is None:  # a search predicts often, which repays them
            self._tables = TreeTables(self._booster)
        return self._tables(features)


_TREES = 400
_MANY_ROWS = 8192  # from which LightGBM predicts on two threads
_CHUNK = 512  # rows that fit into the cache


class TreeTables:
    """Predictions of small trees by table lookup, four times as fast as LightGBM's.

    The outcomes of a tree's splits are the bits of an index into a table of its leaves.
    """

    def __init__(self, booster: lightgbm.Booster) -> None:
        """Convert trees of few numeric splits without missing values."""
        trees = booster.dump_model()["tree_info"]
        splits = max(1, *(int(tree["num_leaves"]) - 1 for tree in trees))
        tables = [_table(tree["tree_structure"], splits) for tree in trees]
        features, thresholds, leaves = (np.array(one) for one in zip(*tables, strict=True))
        self._features, self._thresholds = features.T, thresholds.T[:, :, None]
        self._leaves = leaves.ravel()
        self._starts = (np.arange(len(trees)) << splits)[:, None]

    def __call__(self, features: Floats) -> Floats:
        """Sums over trees in their order, [n, d] to [n]."""
        result = np.empty(len(features))
        for start in range(0, len(features), _CHUNK):
            part = features[start : start + _CHUNK]
            # NumPy would sum the trees of a single row in another order.
            columns = np.ascontiguousarray(np.resize(part, (max(2, len(part)), part.shape[1])).T)
            left = (columns[self._features] <= self._thresholds).view(np.uint8)
            outcomes = left[0].copy()
            for split in range(1, len(left)):
                outcomes |= left[split] << split
            values = self._leaves[self._starts + outcomes].sum(axis=0)
            result[start : start + _CHUNK] = values[: len(part)]
        return result


def _table(tree: dict[str, Any], splits: int) -> tuple[list[int], list[float], Floats]:
    """Features and thresholds of a tree's splits, and its leaf for every outcome of them."""
    features: list[int] = []
    thresholds: list[float] = []
    outcomes = np.arange(1 << splits)

    def leaves(node: dict[str, Any]) -> Floats:
        if "leaf_value" in node:
            return np.full(len(outcomes), node["leaf_value"], np.float64)
        split = len(features)
        features.append(node["split_feature"])
        thresholds.append(node["threshold"])
        left, right = leaves(node["left_child"]), leaves(node["right_child"])
        return np.where(outcomes >> split & 1, left, right)

    values = leaves(tree)
    absent = splits - len(features)
    return features + [0] * absent, thresholds + [np.inf] * absent, values


class QuadraticRidge:
    """Ridge regression on features, squares and products; its penalty by leave-one-out error.

    Products are of the shares removed from attention and MLP of one block, and from adjacent
    blocks, which can make up for each other.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def fit(self, features: Floats, target: Floats, weights: Floats) -> None:
        """Solve for the coefficients."""
        products = _with_products(features, self._depth)
        scaler = StandardScaler().fit(products)
        scaled = scaler.transform(products)
        with on_one_thread():
            coefficients, intercept = ridge(scaled, target, weights, penalties=_PENALTIES)
        self._coefficients = coefficients / scaler.scale_
        self._intercept = intercept - scaler.mean_ @ self._coefficients

    def predict(self, features: Floats) -> Floats:
        """The linear combination."""
        products = _with_products(features, self._depth)
        with on_one_thread():
            return np.asarray(products @ self._coefficients + self._intercept)


def ridge(
    points: Floats, target: Floats, weights: Floats, *, penalties: Floats
) -> tuple[Floats, float]:
    """Ridge regression whose penalty has the least leave-one-out error, the first of equal error.

    The result is that of scikit-learn's `RidgeCV`, in a ninth of its time: one decomposition of
    the smaller Gram matrix serves all penalties.  docs/architecture.md has the cost to a run.
    Points are [n, d]; target and weights, of squared errors, also of those left out, are [n].

    Returns:
        Coefficients [d], and the intercept, which has no penalty.
    """
    roots = np.sqrt(weights)
    centre = np.average(points, axis=0, weights=weights)
    mean = float(np.average(target, weights=weights))
    rows, wanted = roots[:, None] * (points - centre), roots * (target - mean)
    # Coordinates of the rows along the eigenvectors; their squares sum to the eigenvalues.
    wide = rows.shape[0] < rows.shape[1]
    values, vectors = eigh(
        rows @ rows.T if wide else rows.T @ rows, driver="evd", check_finite=False
    )
    values = np.maximum(values, 0.0)
    along = vectors * np.sqrt(values) if wide else rows @ vectors
    shares = 1.0 / (values[:, None] + penalties)
    leverage = along**2 @ shares + (weights / weights.sum())[:, None]
    residuals = wanted[:, None] - along @ (shares * (along.T @ wanted)[:, None])
    best = int(np.argmin(((residuals / (1.0 - leverage)) ** 2).mean(axis=0)))
    coefficients = rows.T @ residuals[:, best] / penalties[best]
    return coefficients, mean - float(centre @ coefficients)


_PENALTIES = 10.0 ** np.arange(-3, 4.5, 0.5)


def _with_products(features: Floats, depth: int) -> Floats:
    removed = features[:, : 2 * depth]
    attention, mlp = removed[:, :depth], removed[:, depth:]
    size = features[:, 6 * depth, None]
    return np.concatenate(
        [
            features,
            removed**2,
            size**2,
            attention * mlp,
            attention[:, 1:] * attention[:, :-1],
            mlp[:, 1:] * mlp[:, :-1],
        ],
        axis=1,
    )


class GaussianProcess:
    """A Gaussian process with a linear trend, a smooth deviation from it, and noise.

    The kernel is s1 exp(-|x - x'|^2 / 2 l^2) + s2 (x.x' + 1) + noise on standardized features;
    s1, l, s2 and the noise maximize the likelihood.  A length per feature would take ten times as
    long and be no better on a few hundred rows.

    scikit-learn's regressor gives the same; see docs/architecture.md for its time.

    Attributes:
        kernel: fitted (s1, l, s2, noise), [4]; None before.
    """

    def __init__(self, start: Floats | None = None) -> None:
        self._start = start  # of the kernel's fit
        self.kernel: Floats | None = None

    def fit(self, features: Floats, target: Floats, weights: Floats) -> None:
        """Fit the kernel and condition on the rows."""
        varies, scaler = make_pipeline(VarianceThreshold(), StandardScaler()).fit(features)
        self._columns = varies.get_support(indices=True)
        self._centre, self._spread = scaler.mean_, scaler.scale_
        points = self._standardized(features)
        self._mean, self._deviation = float(target.mean()), float(target.std()) or 1.0
        width = max(1, points.shape[1])
        root = width**0.5
        bounds = [(1e-3, 1e3), (0.1 * root, 100 * root), (1e-6, 1e2), (1e-6, 1.0)]
        start = (1.0, root, 1.0 / width, 0.1) if self._start is None else self._start
        with on_one_thread():
            likelihood = Likelihood(
                points,
                (target - self._mean) / self._deviation,
                _JITTER + _PARTIAL_VARIANCE * (1 / weights - 1),
            )

            def loss(logarithms: Floats) -> tuple[float, Floats]:
                value, slopes = likelihood(np.exp(logarithms))
                return -value, -slopes

            found = minimize(
                loss, np.log(start), method="L-BFGS-B", jac=True, bounds=np.log(bounds)
            )
            self.kernel = np.exp(found.x)
            self._dual = likelihood.solve(self.kernel)
            # The linear part of the mean needs no kernel matrix.
            self._slope = self.kernel[2] * (points.T @ self._dual)
            self._intercept = self.kernel[2] * self._dual.sum()
        self._centres = points / self.kernel[1]
        self._squares = (self._centres**2).sum(axis=1)

    def predict(self, features: Floats) -> Floats:
        """The posterior mean."""
        assert self.kernel is not None
        result = np.empty(len(features))
        with on_one_thread():
            for start in range(0, len(features), _MANY_ROWS):
                points = self._standardized(features[start : start + _MANY_ROWS])
                scaled = points / self.kernel[1]
                distances = (scaled**2).sum(axis=1)[:, None] + self._squares
                distances -= 2 * scaled @ self._centres.T
                smooth = np.exp(-0.5 * np.maximum(distances, 0.0)) @ self._dual
                mean = self.kernel[0] * smooth + points @ self._slope + self._intercept
                result[start : start + _MANY_ROWS] = self._mean + self._deviation * mean
        return result

    def _standardized(self, features: Floats) -> Floats:
        standardized: Floats = (features[:, self._columns] - self._centre) / self._spread
        return standardized


_PARTIAL_VARIANCE = 0.01  # additional variance of a row of weight 1/2, in those of the target
_JITTER = 1e-8  # variance of every row that keeps the matrix positive


class Likelihood:
    """The likelihood of targets by the kernel of `GaussianProcess`."""

    def __init__(self, points: Floats, target: Floats, variances: Floats) -> None:
        """Compute what does not depend on the kernel: points [n, d], target and variances [n]."""
        self._target, self._variances = target, variances
        products = points @ points.T
        squares = np.diagonal(products)
        self._distances = np.maximum(squares[:, None] + squares - 2 * products, 0.0)
        np.fill_diagonal(self._distances, 0.0)
        self._trend = products + 1.0

    def __call__(self, kernel: Floats) -> tuple[float, Floats]:
        """The log likelihood, and its derivatives by the logarithms of the kernel's numbers, [4].

        It is -inf, with derivatives of 0, if the kernel matrix is not positive.
        """
        exponential, factor, failed = self._factor(kernel)
        if failed:
            return -np.inf, np.zeros(4)
        solved = cho_solve((factor, True), self._target, check_finite=False)
        value = -0.5 * (
            self._target @ solved
            + 2 * np.log(np.diagonal(factor)).sum()
            + len(self._target) * np.log(2 * np.pi)
        )
        inverse, _ = dpotri(factor, lower=1, overwrite_c=1)  # lower half, zeros above

        def slope(derivative: Floats) -> float:
            """Return a' D a - trace(K^-1 D) of a symmetric D, by the lower half of the inverse."""
            diagonal = float(np.diagonal(derivative) @ np.diagonal(inverse))
            trace = 2 * float(np.vdot(derivative, inverse.T)) - diagonal
            return float(solved @ (derivative @ solved)) - trace

        smooth, length, linear, noise = kernel
        slopes = [
            smooth * slope(exponential),
            smooth / length**2 * slope(exponential * self._distances),
            linear * slope(self._trend),
            noise * (solved @ solved - np.trace(inverse)),
        ]
        return float(value), 0.5 * np.array(slopes)

    def solve(self, kernel: Floats) -> Floats:
        """The targets multiplied by the inverse of the kernel matrix, [n]; it must be positive."""
        _, factor, failed = self._factor(kernel)
        if failed:
            raise np.linalg.LinAlgError("the kernel matrix is not positive")
        return np.asarray(cho_solve((factor, True), self._target))

    def _factor(self, kernel: Floats) -> tuple[Floats, Floats, bool]:
        """The exponential part, the matrix's lower Cholesky factor, and whether that failed."""
        smooth, length, linear, noise = kernel
        exponential = np.exp(self._distances * (-0.5 / length**2))
        matrix = smooth * exponential + linear * self._trend
        matrix.flat[:: len(matrix) + 1] += noise + self._variances
        # LAPACK's order is by columns, and the matrix is symmetric.
        factor, failed = dpotrf(matrix.T, lower=1, clean=1, overwrite_a=1)
        return exponential, factor, failed != 0


Regressor = BoostedTrees | QuadraticRidge | GaussianProcess
"""Fits features [n, d] to targets and weights [n], 1 for a complete pair, and predicts targets."""


def new_regressor(kind: str, depth: int, seed: int, like: Regressor | None = None) -> Regressor:
    """An unfitted model of one of `KINDS`, for features of so many blocks.

    An iterative fit starts where that of `like`, on nearly the same rows, has ended.
    """
    if kind == "lightgbm":
        return BoostedTrees(seed)
    if kind == "ridge":
        return QuadraticRidge(depth)
    return GaussianProcess(like.kernel if isinstance(like, GaussianProcess) else None)
