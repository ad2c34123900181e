"""The three kinds of accuracy predictor: boosted trees, ridge, Gaussian process.

Linear algebra for predictors: on one thread, columns of one scale, ridge regression.

Boosted trees as tables: what LightGBM predicts, for a few hundred rows in a quarter of the time.

LightGBM follows one row after the other through one tree after the other.  Small trees can be
asked everything at once: each of their few splits is a bit, and the bits are a place in a table
of the leaves.

A Gaussian process on a few hundred rows: the kernel's four numbers, and what it predicts.

scikit-learn's does the same, but takes distances anew at every step of the search for those
numbers and holds a matrix for each of their derivatives: on four hundred rows that is six
times as long, and most of what it takes to learn from a study.

The three kinds of accuracy predictor: boosted trees, ridge, Gaussian process.

Each is fitted on a few hundred rows of `PlanFeatures` and a target on a scale that the
caller chose.  Results are the same at any number of threads: trees by LightGBM's own
deterministic mode, the other two because linear algebra runs on one thread here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache
from typing import Protocol

import lightgbm
import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, eigh
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from lmscout.pruning.plan import Floats


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Linear algebra on one thread, whose sums are the same wherever they are done.

    This is a setting of the whole process: what fits several models at once has to enter first,
    or who is done first would undo it for the others.
    """
    with _threads().limit(limits=1, user_api="blas"):
        yield


@cache
def _threads() -> ThreadpoolController:
    """Looks the loaded libraries up, which takes longer than a prediction: once."""
    return ThreadpoolController()


class Standard:
    """Columns to mean 0 and variance 1; columns that never vary are left out."""

    def __init__(self, features: Floats) -> None:
        deviation = features.std(axis=0)
        self._varies = deviation > 1e-12
        self._mean = features[:, self._varies].mean(axis=0)
        self._deviation = deviation[self._varies]

    def __call__(self, features: Floats) -> Floats:
        """The columns that vary, [n, d] to [n, fewer]."""
        scaled: Floats = (features[:, self._varies] - self._mean) / self._deviation
        return scaled


def ridge(
    points: Floats, target: Floats, weights: Floats, *, penalties: Sequence[float]
) -> tuple[Floats, float]:
    """Ridge regression whose penalty has the least leave-one-out error.

    What scikit-learn's `RidgeCV` finds, in a fifth of the time: one decomposition of
    the smaller of the two Gram matrices serves all penalties.

    Args:
        points: [n, d].
        target: [n].
        weights: [n] of squared errors, those of leaving one out as well.
        penalties: above 0; of equal ones in error the first is taken.

    Returns:
        Slopes [d] and the height, which is not penalised.
    """
    roots = np.sqrt(weights)
    middle = np.average(points, axis=0, weights=weights)
    mean = float(np.average(target, weights=weights))
    rows, wanted = roots[:, None] * (points - middle), roots * (target - mean)
    # The rows' coordinates along the eigenvectors, whose squares sum up to the eigenvalues.
    if rows.shape[0] < rows.shape[1]:
        values, vectors = eigh(rows @ rows.T, driver="evd", check_finite=False)
        values = np.maximum(values, 0.0)
        along = vectors * np.sqrt(values)
    else:
        values, vectors = eigh(rows.T @ rows, driver="evd", check_finite=False)
        values = np.maximum(values, 0.0)
        along = rows @ vectors
    shares = 1.0 / (values[:, None] + np.asarray(penalties))
    held = along**2 @ shares + (weights / weights.sum())[:, None]
    left = wanted[:, None] - along @ (shares * (along.T @ wanted)[:, None])
    errors = ((left / (1.0 - held)) ** 2).mean(axis=0)
    best = int(np.argmin(errors))
    # By the residuals: the slopes times the penalty are what the rows make of them.
    slopes = rows.T @ left[:, best] / penalties[best]
    return slopes, mean - float(middle @ slopes)


MOST_SPLITS = 4  # of a tree: its table has two to that power of entries
_CHUNK = 512  # rows at a time, so that what they answer stays in cache

Places = npt.NDArray[np.int64]


class TreeTables:
    """Trees of numeric splits, with no missing values."""

    def __init__(self, model: str) -> None:
        """Read trees.

        Args:
            model: as `lightgbm.Booster.model_to_string` writes it.

        Raises:
            ValueError: a tree has more than `MOST_SPLITS` splits, or one that is no comparison.
        """
        trees = [_fields(part) for part in model.split("\nTree=")[1:]]
        splits = max(1, *(int(tree["num_leaves"]) - 1 for tree in trees))
        if splits > MOST_SPLITS:
            raise ValueError(f"trees of {splits} splits are too large for tables")
        # A tree with fewer splits has some that are never asked, and one leaf none at all.
        features = np.zeros((len(trees), splits), np.int64)
        thresholds = np.full((len(trees), splits), np.inf)
        children = np.full((2, len(trees), splits), -1, np.int64)
        leaves = np.zeros((len(trees), splits + 1))
        for place, tree in enumerate(trees):
            values = tree["leaf_value"].split()
            leaves[place, : len(values)] = [float(value) for value in values]
            count = len(values) - 1
            if not count:
                continue
            if any(int(kind) & 1 for kind in tree["decision_type"].split()):
                raise ValueError("a split by category is no comparison")
            features[place, :count] = [int(one) for one in tree["split_feature"].split()]
            thresholds[place, :count] = [float(one) for one in tree["threshold"].split()]
            for side, name in enumerate(("left_child", "right_child")):
                children[side, place, :count] = [int(one) for one in tree[name].split()]
        self._features, self._thresholds = features.T.ravel(), thresholds.T.reshape(-1, 1)
        self._splits, self._starts = splits, (np.arange(len(trees)) << splits)[:, None]
        self._values = _answers(children, leaves, splits)

    def __call__(self, features: Floats) -> Floats:
        """Sums over trees, [n, d] to [n], in their order, as LightGBM sums."""
        result = np.empty(len(features))
        for start in range(0, len(features), _CHUNK):
            part = features[start : start + _CHUNK]
            # Of one row alone numpy would sum the trees in another order.
            columns = np.ascontiguousarray(np.resize(part, (max(2, len(part)), part.shape[1])).T)
            left = (columns[self._features] <= self._thresholds).view(np.uint8)
            each = left.reshape(self._splits, -1, columns.shape[1])
            answers = each[0].copy()
            for split in range(1, self._splits):
                answers |= each[split] << split
            values = self._values[self._starts + answers].sum(axis=0)
            result[start : start + _CHUNK] = values[: len(part)]
        return result


def _fields(tree: str) -> dict[str, str]:
    """The lines ``name=value`` of a tree."""
    return dict(line.split("=", 1) for line in tree.splitlines() if "=" in line)


def _answers(children: Places, leaves: Floats, splits: int) -> Floats:
    """The leaf of every tree for every set of answers, [trees * 2^splits].

    Args:
        children: [2, trees, splits] where a split's left and right go: another split, or a leaf
            as its place's complement.
        leaves: [trees, splits + 1] values.
        splits: the most of a tree.
    """
    trees = np.arange(children.shape[1])[:, None]
    answers = np.arange(1 << splits) + 0 * trees
    node = np.zeros_like(answers)
    for _ in range(splits):
        inner = np.maximum(node, 0)
        left = (answers >> inner) & 1 == 1
        after = np.where(left, children[0, trees, inner], children[1, trees, inner])
        node = np.where(node < 0, node, after)
    return np.asarray(leaves[trees, ~node].ravel())


_UNSURE = 0.01  # variance that a row of weight 1/2 has more than one of weight 1, in targets'
_JITTER = 1e-8  # of every row's variance, which keeps the matrix positive
_ROWS_AT_ONCE = 8192  # rows predicted at a time, so that a chunk's kernel matrix stays in cache


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
        corrected = smooth * self._distances
        derivatives = np.array(
            [
                kernel.smooth * self._slope(smooth, inverse, solved),
                kernel.smooth / kernel.length**2 * self._slope(corrected, inverse, solved),
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
        sublayer = float(np.vdot(changes, inverse.T))
        whole = 2 * sublayer - float(np.diagonal(changes) @ np.diagonal(inverse))
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
            for start in range(0, len(features), _ROWS_AT_ONCE):
                points = self._scale(features[start : start + _ROWS_AT_ONCE])
                scaled = points / self.kernel.length
                distance = (scaled**2).sum(axis=1)[:, None] + self._squares
                distance -= 2 * scaled @ self._centres.T
                smooth = np.exp(-0.5 * np.maximum(distance, 0.0)) @ self._alpha
                mean = self.kernel.smooth * smooth + points @ self._slope + self._height
                result[start : start + _ROWS_AT_ONCE] = self._mean + self._deviation * mean
        return result


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
