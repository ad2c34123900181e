"""The three kinds of accuracy predictor: boosted trees, ridge, Gaussian process.

Each is fitted on a few hundred rows of `PlanFeatures` and a target on a scale that the
caller chose.  Results are the same at any number of threads: trees by LightGBM's own
deterministic mode, the other two because linear algebra runs on one thread here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import lightgbm
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    DotProduct,
    Kernel,
    WhiteKernel,
)
from sklearn.linear_model import RidgeCV
from threadpoolctl import ThreadpoolController

from lmscout.pruning.subnetworks.plan_arrays import Floats

KINDS = ("lightgbm", "ridge", "gaussian_process")

_PENALTIES = tuple(10.0**power for power in np.arange(-3, 4.5, 0.5))
_TREES = 400
_UNSURE = 0.01  # variance that a row of weight 1/2 has more than one of weight 1, in targets'
_CHUNK = 8192  # rows predicted at a time, so that a chunk's kernel matrix stays in cache


class Regressor(Protocol):
    """What `fit_predictor` asks of a model."""

    def fit(self, features: Floats, target: Floats, weights: Floats) -> None:
        """Learn from rows [n, d] with targets [n] and weights [n], 1 for a whole pair."""

    def predict(self, features: Floats) -> Floats:
        """Targets of rows [m, d], [m]."""


def regressor(kind: str, depth: int, seed: int, like: Regressor | None = None) -> Regressor:
    """A new model of one of `KINDS`.

    Args:
        kind: one of `KINDS`.
        depth: blocks, for the columns that features have.
        seed: of LightGBM's sampling; the others draw nothing.
        like: one of this kind, fitted on rows that are nearly the same: what is improved step
            by step starts where that one ended.
    """
    if kind == "lightgbm":
        return BoostedTrees(seed)
    if kind == "ridge":
        return QuadraticRidge(depth)
    if kind == "gaussian_process":
        return GaussianProcess(like.kernel if isinstance(like, GaussianProcess) else None)
    raise ValueError(f"no predictor {kind!r}: one of {', '.join(KINDS)}")


class BoostedTrees:
    """LightGBM with the settings of small data: small trees, many of them, slow learning.

    No monotone constraints, though removing more never helps a network as such: at one size
    what a block keeps another has to give, and that cutting a cheap block is good news is
    just what has to be learnt.
    """

    def __init__(self, seed: int) -> None:
        self._settings = {
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
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }

    def fit(self, features: Floats, target: Floats, weights: Floats) -> None:
        """Boost on squared errors, each weighted."""
        data = lightgbm.Dataset(features, target, weight=weights, params=self._settings)
        self._booster = lightgbm.train(self._settings, data, num_boost_round=_TREES)

    def predict(self, features: Floats) -> Floats:
        """Sum of the trees."""
        threads = 1 if len(features) < _CHUNK else 2
        return np.asarray(self._booster.predict(features, num_threads=threads), np.float64)

    def contributions(self, features: Floats) -> Floats:
        """Shapley values of every feature for rows, [m, d] to [m, d].

        Those of Lundberg et al. (2020), on the target's scale; with the mean they sum to
        the prediction.
        """
        values = np.asarray(self._booster.predict(features, pred_contrib=True), np.float64)
        return values[:, :-1]


class QuadraticRidge:
    """Ridge regression on the features, the squares of what is removed, and neighbours.

    Neighbours are products of what is removed from attention and MLP of one block, and of
    what is removed from adjacent blocks: what one cut loses, the block beside it can make
    up for.  The penalty is chosen by leave-one-out error.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def fit(self, features: Floats, target: Floats, weights: Floats) -> None:
        """Solve for the coefficients."""
        expanded = self._expanded(features)
        self._scale = _Standard(expanded)
        with while_fitting():
            self._model = RidgeCV(alphas=_PENALTIES)
            self._model.fit(self._scale(expanded), target, sample_weight=weights)

    def predict(self, features: Floats) -> Floats:
        """The linear combination."""
        with while_fitting():
            return np.asarray(self._model.predict(self._scale(self._expanded(features))))

    def _expanded(self, features: Floats) -> Floats:
        removed = features[:, : 2 * self._depth]
        attention, mlp = removed[:, : self._depth], removed[:, self._depth :]
        size = features[:, 6 * self._depth, None]
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
    """A Gaussian process: a linear trend, a smooth deviation from it, and noise.

    The kernel is s1 exp(-|x - x'|^2 / 2 l^2) + s2 x.x' + noise on standardised features;
    the four numbers maximise the likelihood.  One length for all features: with a length a
    feature the fit takes ten times as long and is no better on a few hundred rows.
    """

    def __init__(self, kernel: Kernel | None = None) -> None:
        """Start the search for the kernel's numbers at those of a kernel, if one is given."""
        self.kernel = kernel

    def fit(self, features: Floats, target: Floats, weights: Floats) -> None:
        """Choose the kernel's numbers and condition on the rows."""
        self._scale = _Standard(features)
        self._points = self._scale(features)
        self._mean, self._deviation = float(target.mean()), float(target.std()) or 1.0
        width = max(1, self._points.shape[1])
        kernel = self.kernel or (
            ConstantKernel(1.0, (1e-3, 1e3)) * RBF(width**0.5, (0.1 * width**0.5, 100 * width**0.5))
            + ConstantKernel(1.0 / width, (1e-6, 1e2)) * DotProduct(1.0, "fixed")
            + WhiteKernel(0.1, (1e-6, 1.0))
        )
        process = GaussianProcessRegressor(kernel, alpha=1e-8 + _UNSURE * (1 / weights - 1))
        with while_fitting():
            process.fit(self._points, (target - self._mean) / self._deviation)
            self.kernel = process.kernel_
            smooth, linear = process.kernel_.k1.k1, process.kernel_.k1.k2
            self._smooth, self._length = smooth.k1.constant_value, smooth.k2.length_scale
            # The linear part of the mean is a plane, and needs no kernel matrix.
            self._alpha = np.asarray(process.alpha_).reshape(-1)
            self._slope = linear.k1.constant_value * (self._points.T @ self._alpha)
            self._offset = linear.k1.constant_value * linear.k2.sigma_0**2 * self._alpha.sum()

    def predict(self, features: Floats) -> Floats:
        """The posterior mean."""
        centres = self._points / self._length
        squares = (centres**2).sum(axis=1)
        result = np.empty(len(features))
        with while_fitting():
            for start in range(0, len(features), _CHUNK):
                points = self._scale(features[start : start + _CHUNK])
                scaled = points / self._length
                distance = (scaled**2).sum(axis=1)[:, None] + squares - 2 * scaled @ centres.T
                kernel = np.exp(-0.5 * np.maximum(distance, 0.0))
                mean = self._smooth * (kernel @ self._alpha) + points @ self._slope + self._offset
                result[start : start + _CHUNK] = self._mean + self._deviation * mean
        return result


@cache
def _threads() -> ThreadpoolController:
    """Looks the loaded libraries up, which takes longer than a prediction: once."""
    return ThreadpoolController()


@contextmanager
def while_fitting() -> Iterator[None]:
    """Linear algebra on one thread, whose sums are the same wherever they are done.

    Both this and what is warned of are settings of the whole process: what fits several models
    at once has to enter first, or who is done first would undo them for the others.
    """
    with _threads().limit(limits=1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a number at its bound is fine
        yield


class _Standard:
    """Columns to mean 0 and variance 1; columns that never vary are left out."""

    def __init__(self, features: Floats) -> None:
        deviation = features.std(axis=0)
        self._varies = deviation > 1e-12
        self._mean = features[:, self._varies].mean(axis=0)
        self._deviation = deviation[self._varies]

    def __call__(self, features: Floats) -> Floats:
        scaled: Floats = (features[:, self._varies] - self._mean) / self._deviation
        return scaled
