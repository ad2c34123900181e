"""The three kinds of accuracy predictor: boosted trees, ridge, Gaussian process.

Each is fitted on a few hundred rows of `PlanFeatures` and a target on a scale that the
caller chose.  Results are the same at any number of threads: trees by LightGBM's own
deterministic mode, the other two because linear algebra runs on one thread here.
"""

from __future__ import annotations

from typing import Protocol

import lightgbm
import numpy as np

from lmscout.pruning.learning.gaussian_process import GaussianProcess
from lmscout.pruning.learning.linear_algebra import Standard, on_one_thread, ridge
from lmscout.pruning.learning.tree_tables import TreeTables
from lmscout.pruning.subnetworks.plan_arrays import Floats

KINDS = ("lightgbm", "ridge", "gaussian_process")

_PENALTIES = tuple(10.0**power for power in np.arange(-3, 4.5, 0.5))
_TREES = 400
_MANY = 8192  # rows that LightGBM predicts on two threads


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
            "force_col_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }

    def fit(self, features: Floats, target: Floats, weights: Floats) -> None:
        """Boost on squared errors, each weighted."""
        data = lightgbm.Dataset(features, target, weight=weights, params=self._settings)
        self._booster = lightgbm.Booster(self._settings, data)
        for _ in range(_TREES):
            self._booster.update()
        self._tables: TreeTables | None = None
        self._asked = False

    def predict(self, features: Floats) -> Floats:
        """Sum of the trees."""
        if self._asked and len(features) < _MANY:
            # Who asks twice asks often, as a search does; asked once, tables do not pay.
            if self._tables is None:
                self._tables = TreeTables(self._booster.model_to_string())
            return self._tables(features)
        self._asked = True
        threads = 1 if len(features) < _MANY else 2
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
        self._scale = Standard(expanded)
        with on_one_thread():
            self._slopes, self._height = ridge(
                self._scale(expanded), target, weights, penalties=_PENALTIES
            )

    def predict(self, features: Floats) -> Floats:
        """The linear combination."""
        with on_one_thread():
            scaled = self._scale(self._expanded(features))
            return np.asarray(scaled @ self._slopes + self._height)

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
