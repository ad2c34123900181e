"""The accuracy predictor: chosen by cross-validation, fitted on measured pairs.

Three kinds of regression, each on the scale of the target that suits it best, compete by
cross-validation; the one that ranks held-out pairs best, by Kendall's τ, is fitted on all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed

from lmscout.errors import LmscoutError
from lmscout.metrics import kendall
from lmscout.pruning.features import SCALES, Column, ImportanceMass, PlanFeatures, TargetScale
from lmscout.pruning.plan import Floats, Rows, Shape, as_rows, kept_shares
from lmscout.pruning.regressors import KINDS, Regressor, new_regressor, on_one_thread
from lmscout.pruning.study import Pair

FOLDS = 5
FEWEST_PAIRS = 20
_SAME_SIZE = 0.005  # difference of kept shares below which plans are of one size
_NO_ORDER = 0.1  # Kendall's τ up to which predictions do not order held-out pairs
_NAMES = {"lightgbm": "LightGBM", "ridge": "ridge", "gaussian_process": "Gaussian process"}

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """How well one kind of regression predicts held-out pairs."""

    kind: str  # one of `KINDS`
    scale: str  # scale of its target, one of `SCALES`
    kendall: float  # Kendall's τ-b of predicted and measured loss increases over all pairs
    # The same over such two pairs alone as keep the same share of the parameters, which is what a
    # search at one size needs.
    kendall_same_size: float
    r2: float  # share of the variance of the loss increases that is explained
    rmse: float  # root mean square error, nats/token


@dataclass(frozen=True)
class PredictorReport:
    """How a predictor was chosen, and how good it is."""

    chosen: Agreement  # cross-validated agreement of the winner, mean over repeats
    others: tuple[Agreement, ...]  # those of the other kinds, best first
    pairs: int  # number of measured pairs that it was fitted on
    margin: float  # difference of τ between winner and runner-up, mean over folds
    margin_error: float  # standard error of the margin
    # Predicted and measured loss increase of every pair, nats/token, by a model that was fitted
    # without its fold; of partial pairs, extrapolated.
    held_out: tuple[tuple[float, float], ...] = ()

    @property
    def within_noise(self) -> bool:
        """Whether the winner is ahead of the runner-up by at most one standard error."""
        return bool(self.others) and not self.margin > self.margin_error

    @property
    def beats_mean(self) -> bool:
        """Whether held-out pairs are predicted better than by the mean of all pairs."""
        return self.chosen.r2 > 0 and self.chosen.kendall > _NO_ORDER

    @property
    def words(self) -> str:
        """One sentence."""
        best = self.chosen
        sentence = (
            f"{_NAMES[best.kind]} on the {best.scale} scale, cross-validated on {self.pairs} "
            f"pairs: τ {best.kendall:.3f}, R² {best.r2:.3f}, RMSE {best.rmse:.3f} nats"
        )
        if abs(best.kendall - best.kendall_same_size) > 1e-9:
            sentence += f"; among plans of one size τ {best.kendall_same_size:.3f}"
        if self.within_noise:
            sentence += f"; within the noise of {_NAMES[self.others[0].kind]}"
        if not self.beats_mean:
            sentence += "; no better than predicting the mean: measure more pairs"
        return sentence


def check_enough(pairs: int) -> None:
    """Raise LmscoutError if pairs are too few for a predictor."""
    if pairs < FEWEST_PAIRS:
        raise LmscoutError(
            f"{pairs} pairs are too few for a predictor: measure at least {FEWEST_PAIRS}"
        )


@dataclass(frozen=True, eq=False)
class _Examples:
    """Pairs as a regression takes them, in an order that does not depend on the study's."""

    features: Floats  # [n, d]
    values: Floats  # loss increases, nats/token, [n]
    weights: Floats  # 1 for a complete pair, else its share of the tokens, [n]
    sizes: Floats  # kept shares, [n]
    depth: int  # blocks

    @classmethod
    def of(cls, pairs: Sequence[Pair], shape: Shape, features: PlanFeatures) -> _Examples:
        ordered = sorted(pairs, key=lambda pair: (pair.plan.attention, pair.plan.mlp))
        rows = as_rows([pair.plan for pair in ordered])
        most = max(pair.tokens for pair in ordered)
        return cls(
            features(rows),
            _extrapolated(ordered),
            np.array([pair.tokens / most if pair.partial else 1.0 for pair in ordered]),
            kept_shares(shape, rows),
            shape.depth,
        )


@dataclass(frozen=True, eq=False)
class _Validation:
    """One kind on one scale, cross-validated once."""

    scale: TargetScale
    models: tuple[Regressor, ...]  # one for each fold, fitted without it
    targets: Floats  # held-out predictions on the scale, [n]
    agreement: Agreement
    by_fold: tuple[float, ...]  # `kendall_same_size` within each fold


@dataclass(frozen=True, eq=False)
class Predictor:
    """Predicts loss increases of plans; made by `fit_predictor`."""

    report: PredictorReport  # how it was chosen
    features: PlanFeatures  # features of plans
    models: tuple[tuple[TargetScale, Regressor], ...]  # of all kinds, the winner first
    folds: tuple[Regressor, ...]  # models of the winner, each fitted without one fold
    residual: float  # median absolute error of held-out predictions, on the winner's scale

    def predict(self, rows: Rows) -> Floats:
        """Predicted loss increases in nats/token, plans [n, 2L] to [n]."""
        return np.asarray(self._each(rows, self.models[:1])[0])

    def cautious(self, rows: Rows) -> Floats:
        """The highest loss increase that any kind predicts, plans [n, 2L] to [n].

        For searches.  Linear models extrapolate without bound, which a search exploits; trees do
        not.  A plan that all kinds predict to be good is more often found to be good.
        """
        return np.asarray(self._each(rows, self.models).max(axis=0))

    def spread(self, rows: Rows) -> Floats:
        """Standard deviation in nats/token over the models of the folds, [n]."""
        scale = self.models[0][0]
        return np.asarray(self._each(rows, [(scale, model) for model in self.folds]).std(axis=0))

    def error_near(self, loss_increase: float) -> float:
        """Median error of held-out predictions near a loss increase, nats/token."""
        scale = self.models[0][0]
        centre = float(scale.forward(np.array([loss_increase]))[0])
        low, high = scale.backward(np.array([centre - self.residual, centre + self.residual]))
        return float(high - low) / 2

    def _each(self, rows: Rows, models: Sequence[tuple[TargetScale, Regressor]]) -> Floats:
        features = self.features(rows)
        return np.array([scale.backward(model.predict(features)) for scale, model in models])


def fit_predictor(
    pairs: Sequence[Pair],
    shape: Shape,
    mass: ImportanceMass,
    *,
    seed: int,
    repeats: int = 3,
    kinds: Sequence[str] = KINDS,
    extra: Sequence[Column] = (),
) -> Predictor:
    """Choose a predictor by repeated five-fold cross-validation and fit it on all pairs.

    For each kind the scale of the target is chosen by the first repeat; the kinds are compared
    over all repeats.  A partial pair counts by its share of the tokens, its loss increase
    extrapolated to the whole text.  The result depends neither on the order of the pairs nor on
    the number of threads; `seed` is that of the folds and of LightGBM.

    Raises:
        LmscoutError: there are too few pairs, or all have the same loss increase.
    """
    check_enough(len(pairs))
    features = PlanFeatures(shape, mass, extra)
    examples = _Examples.of(pairs, shape, features)
    if np.ptp(examples.values) == 0:
        raise LmscoutError(
            f"all {len(pairs)} measured pairs have the same quality, so there is nothing to learn"
        )
    scales = [TargetScale.of(name, examples.values) for name in SCALES]
    partitions = [folds(len(pairs), seed, repeat) for repeat in range(repeats)]
    # Most of the time is spent outside of Python, so threads are enough.
    with on_one_thread(), Parallel(n_jobs=-1, prefer="threads") as parallel:
        validate = delayed(partial(_validate, examples, seed))
        first = parallel(validate(*one, partitions[0]) for one in product(kinds, scales))
        best: dict[str, _Validation] = {}
        for one in first:  # of equal scales the first
            known = best.setdefault(one.agreement.kind, one)
            if one.agreement.kendall_same_size > known.agreement.kendall_same_size:
                best[one.agreement.kind] = one
        others = parallel(
            validate(kind, best[kind].scale, partition)
            for kind, partition in product(kinds, partitions[1:])
        )
        validations = {
            kind: [best[kind], *(one for one in others if one.agreement.kind == kind)]
            for kind in kinds
        }
        agreements = {kind: _mean_agreement(validations[kind]) for kind in kinds}
        ranked = sorted(kinds, key=lambda kind: -agreements[kind].kendall_same_size)
        models = parallel(delayed(_fit_on_all)(best[kind], examples, seed) for kind in ranked)
    winner = best[ranked[0]]
    predicted = winner.scale.backward(winner.targets)
    taus = [[tau for one in validations[kind] for tau in one.by_fold] for kind in ranked[:2]]
    report = PredictorReport(
        agreements[ranked[0]],
        tuple(agreements[kind] for kind in ranked[1:]),
        len(pairs),
        *(margin(*taus) if len(taus) > 1 else (0.0, 0.0)),
        tuple(zip(predicted.tolist(), examples.values.tolist(), strict=True)),
    )
    residual = np.median(np.abs(winner.scale.forward(examples.values) - winner.targets))
    return Predictor(report, features, tuple(models), winner.models, float(residual))


def folds(count: int, seed: int, repeat: int) -> tuple[Indices, ...]:
    """A random partition of rows into five folds whose sizes differ by one at most."""
    order = np.random.default_rng([seed, repeat]).permutation(count)
    return tuple(np.sort(part) for part in np.array_split(order, FOLDS))


def same_size_kendall(predicted: Floats, measured: Floats, sizes: Floats) -> float:
    """Kendall's τ-b (Kendall 1945) over pairs of plans of one size, 0 without any.

    Arrays are [n]; plans whose sizes, kept shares, are within 0.005 are of one size.
    """
    first, second = np.triu_indices(len(sizes), 1)
    near = np.abs(sizes[first] - sizes[second]) < _SAME_SIZE
    first, second = first[near], second[near]
    ahead = np.sign(predicted[first] - predicted[second])
    better = np.sign(measured[first] - measured[second])
    untied = float(np.count_nonzero(ahead)) * float(np.count_nonzero(better))
    return float(ahead @ better) / untied**0.5 if untied else 0.0


def margin(winner: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Mean difference over folds, and its standard error.

    Folds of repeated cross-validation share most of their training rows, so the plain standard
    error is too small; this is that of Nadeau and Bengio (2003).
    """
    difference = np.subtract(winner, other)
    variance = float(difference.var(ddof=1)) * (1 / len(difference) + 1 / (FOLDS - 1))
    return float(difference.mean()), variance**0.5


def _validate(
    examples: _Examples, seed: int, kind: str, scale: TargetScale, partition: Sequence[Indices]
) -> _Validation:
    """Fit without each fold in turn, and predict it."""
    target = scale.forward(examples.values)
    targets = np.empty(len(target))
    models: list[Regressor] = []
    for fold in partition:
        rest = np.ones(len(target), bool)
        rest[fold] = False
        model = new_regressor(kind, examples.depth, seed, like=models[-1] if models else None)
        model.fit(examples.features[rest], target[rest], examples.weights[rest])
        targets[fold] = model.predict(examples.features[fold])
        models.append(model)
    predicted, measured = scale.backward(targets), examples.values
    error, variance = float(np.mean((predicted - measured) ** 2)), float(measured.var())
    agreement = Agreement(
        kind,
        scale.name,
        float(np.nan_to_num(kendall(predicted, measured))),
        same_size_kendall(predicted, measured, examples.sizes),
        1 - error / variance if variance > 0 else 0.0,
        error**0.5,
    )
    by_fold = (
        same_size_kendall(predicted[fold], measured[fold], examples.sizes[fold])
        for fold in partition
    )
    return _Validation(scale, tuple(models), targets, agreement, tuple(by_fold))


def _mean_agreement(validations: Sequence[_Validation]) -> Agreement:
    each = [one.agreement for one in validations]
    means = np.mean(
        [(one.kendall, one.kendall_same_size, one.r2, one.rmse) for one in each], axis=0
    )
    return Agreement(each[0].kind, each[0].scale, *means.tolist())


def _fit_on_all(
    validation: _Validation, examples: _Examples, seed: int
) -> tuple[TargetScale, Regressor]:
    kind = validation.agreement.kind
    model = new_regressor(kind, examples.depth, seed, like=validation.models[-1])
    target = validation.scale.forward(examples.values)
    model.fit(examples.features, target, examples.weights)
    return validation.scale, model


def _extrapolated(pairs: Sequence[Pair]) -> Floats:
    """Loss increases, those of partial pairs extrapolated to the whole text, [n].

    Chunks of a text differ in difficulty.  The factor is the median ratio, over complete pairs,
    of the loss increase on the whole text to that on the tokens of the partial pair.
    """
    complete = [(dict(pair.trajectory), pair.value) for pair in pairs if not pair.partial]

    def factor(tokens: int) -> float:
        ratios = [
            value / trajectory[tokens]
            for trajectory, value in complete
            if trajectory.get(tokens, 0.0) > 0
        ]
        return float(np.median(ratios)) if ratios else 1.0

    factors = {tokens: factor(tokens) for tokens in {one.tokens for one in pairs if one.partial}}
    return np.array(
        [pair.value * factors[pair.tokens] if pair.partial else pair.value for pair in pairs]
    )
