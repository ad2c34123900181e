"""The accuracy predictor: chosen by cross-validation, fitted on measured pairs.

Cross-validation of accuracy predictors: what each kind predicts of unseen pairs.

The accuracy predictor: fitted on measured pairs, asked about any number of plans.

Three kinds of model, each on the scale of the target that suits it best, compete by
cross-validation; the one that ranks unseen plans best, by Kendall's τ, is fitted on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed

from lmscout.errors import LmscoutError
from lmscout.metrics import kendall
from lmscout.pruning.features import SCALES, Column, ImportanceMass, PlanFeatures, TargetScale
from lmscout.pruning.plan import Floats, Rows, Shape, as_rows, kept_shares
from lmscout.pruning.regressors import KINDS, BoostedTrees, Regressor, on_one_thread, regressor
from lmscout.pruning.study import Pair

FOLDS = 5
_SAME_SIZE = 0.005  # kept shares nearer than this are of one size

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Examples:
    """Measured pairs as a predictor sees them.

    Attributes:
        features: [n, d].
        values: [n] rises in nats a token.
        weights: [n], 1 for a pair measured on all tokens.
        sizes: [n] kept shares.
        depth: blocks of the model.
    """

    features: Floats
    values: Floats
    weights: Floats
    sizes: Floats
    depth: int


@dataclass(frozen=True)
class Agreement:
    """How well one kind of model predicted pairs that it had not seen.

    Attributes:
        kind: one of `KINDS`.
        scale: on which it learnt, one of `SCALES`.
        kendall: Kendall's τ-b of predicted and measured over all pairs.
        kendall_same_size: the same over such two pairs alone as keep the same share of the
            parameters, which is what a search at one size needs.  Where all pairs are of
            one size, it is τ-b itself.
        r2: share of the variance of the rises that is explained.
        rmse: root mean square error, nats a token.
    """

    kind: str
    scale: str
    kendall: float
    kendall_same_size: float
    r2: float
    rmse: float


@dataclass(frozen=True, eq=False)
class HeldOut:
    """One kind on one scale, over the folds of one repeat.

    Attributes:
        models: one a fold, fitted without it.
        rows: the rows of each fold.
        numbers: [n] predictions on the scale learnt, each by the model that had not seen it.
        agreement: over all rows.
        by_fold: `kendall_same_size` within each fold.
    """

    models: tuple[Regressor, ...]
    rows: tuple[Indices, ...]
    numbers: Floats
    agreement: Agreement
    by_fold: tuple[float, ...]


def folds(count: int, seed: int, repeat: int) -> tuple[Indices, ...]:
    """Rows dealt into folds at random: disjoint, all rows, sizes that differ by one at most."""
    order = np.random.default_rng([seed, repeat]).permutation(count)
    return tuple(np.sort(part) for part in np.array_split(order, FOLDS))


def held_out(
    kind: str, scale: TargetScale, examples: Examples, parts: Sequence[Indices], seed: int
) -> HeldOut:
    """Fit without each fold in turn, and predict it."""
    target = scale.forward(examples.values)
    numbers = np.empty(len(target))
    models: list[Regressor] = []
    for part in parts:
        rest = np.ones(len(target), bool)
        rest[part] = False
        model = regressor(kind, examples.depth, seed, like=models[-1] if models else None)
        model.fit(examples.features[rest], target[rest], examples.weights[rest])
        numbers[part] = model.predict(examples.features[part])
        models.append(model)
    predicted = scale.backward(numbers)
    return HeldOut(
        tuple(models),
        tuple(parts),
        numbers,
        _agreement(kind, scale.name, predicted, examples),
        tuple(
            same_size_kendall(predicted[part], examples.values[part], examples.sizes[part])
            for part in parts
        ),
    )


def same_size_kendall(predicted: Floats, measured: Floats, sizes: Floats) -> float:
    """Kendall's τ-b over such two plans alone as are of one size.

    The concordant less the discordant, by the root of the product of the numbers of those
    not tied in either (Kendall 1945).

    Args:
        predicted: [n].
        measured: [n].
        sizes: [n] kept shares; plans within 0.005 are of one size.

    Returns:
        From -1 to 1; 0 where there is nothing to compare.
    """
    first, second = np.triu_indices(len(sizes), 1)
    near = np.abs(sizes[first] - sizes[second]) < _SAME_SIZE
    first, second = first[near], second[near]
    ahead = np.sign(predicted[first] - predicted[second])
    better = np.sign(measured[first] - measured[second])
    untied = float(np.count_nonzero(ahead)) * float(np.count_nonzero(better))
    return float(ahead @ better) / untied**0.5 if untied else 0.0


def margin(ahead: Sequence[float], behind: Sequence[float]) -> tuple[float, float]:
    """Mean difference over folds, and its standard error.

    Folds of repeated cross-validation share most of their training rows, so the plain
    standard error is too small; this is that of Nadeau and Bengio (2003).
    """
    difference = np.subtract(ahead, behind)
    variance = float(difference.var(ddof=1)) * (1 / len(difference) + 1 / (FOLDS - 1))
    return float(difference.mean()), variance**0.5


def mean_agreement(agreements: Sequence[Agreement]) -> Agreement:
    """Over repeats, of one kind on one scale."""
    return Agreement(
        agreements[0].kind,
        agreements[0].scale,
        float(np.mean([one.kendall for one in agreements])),
        float(np.mean([one.kendall_same_size for one in agreements])),
        float(np.mean([one.r2 for one in agreements])),
        float(np.mean([one.rmse for one in agreements])),
    )


def _agreement(kind: str, scale: str, predicted: Floats, examples: Examples) -> Agreement:
    error = float(np.mean((predicted - examples.values) ** 2))
    variance = float(examples.values.var())
    return Agreement(
        kind,
        scale,
        float(np.nan_to_num(kendall(predicted, examples.values))),
        same_size_kendall(predicted, examples.values, examples.sizes),
        1 - error / variance if variance > 0 else 0.0,
        error**0.5,
    )


FEWEST_PAIRS = 20
_NO_ORDER = 0.1  # Kendall's τ up to which predictions do not order unseen pairs


def check_enough(pairs: int) -> None:
    """Refuse to learn from too few pairs.

    Raises:
        LmscoutError: they are.
    """
    if pairs < FEWEST_PAIRS:
        raise LmscoutError(
            f"{pairs} pairs are too few for a predictor: measure at least {FEWEST_PAIRS}"
        )


@dataclass(frozen=True)
class PredictorReport:
    """How a predictor was chosen, and how good it is.

    Attributes:
        chosen: the winner's cross-validated agreement, mean over repeats.
        others: the other kinds', best first.
        pairs: measured pairs that it was fitted on.
        margin: by how much the winner's τ is above the runner-up's, mean over folds.
        margin_error: standard error of the margin.
    """

    chosen: Agreement
    others: tuple[Agreement, ...]
    pairs: int
    margin: float
    margin_error: float

    @property
    def within_noise(self) -> bool:
        """Whether the winner is not ahead of the runner-up by more than a standard error."""
        return bool(self.others) and not self.margin > self.margin_error

    @property
    def beats_mean(self) -> bool:
        """Whether unseen pairs are predicted better than by the mean of all: R² and τ say so."""
        return self.chosen.r2 > 0 and self.chosen.kendall > _NO_ORDER

    @property
    def words(self) -> str:
        """One sentence."""
        best = self.chosen
        sentence = (
            f"{_spoken(best.kind)} on the {best.scale} scale, cross-validated on {self.pairs} "
            f"pairs: τ {best.kendall:.3f}, R² {best.r2:.3f}, RMSE {best.rmse:.3f} nats"
        )
        if abs(best.kendall - best.kendall_same_size) > 1e-9:
            sentence += f"; among plans of one size τ {best.kendall_same_size:.3f}"
        if self.within_noise:
            sentence += f"; within the noise of {_spoken(self.others[0].kind)}"
        if not self.beats_mean:
            sentence += "; no better than predicting the mean: measure more pairs"
        return sentence


class Predictor:
    """Predicted rises of plans; made by `fit_predictor`."""

    def __init__(
        self,
        report: PredictorReport,
        features: PlanFeatures,
        models: Sequence[tuple[TargetScale, Regressor]],
        unseen: HeldOut,
        examples: Examples,
    ) -> None:
        """Put together what was fitted.

        Args:
            report: how the winner was chosen.
            features: of plans.
            models: all kinds, fitted on all pairs, each with its scale; the winner first.
            unseen: the winner's folds.
            examples: all pairs.
        """
        self.report = report
        self._features = features
        self._models = tuple(models)
        scale, self._model = models[0]
        self._scale = scale
        self._unseen = unseen
        self._examples = examples
        self._residuals = np.abs(scale.forward(examples.values) - unseen.numbers)

    def predict(self, rows: Rows) -> Floats:
        """Predicted rises in nats a token, plans [n, 2L] to [n]."""
        return self._scale.backward(self._model.predict(self._features(rows)))

    def cautious(self, rows: Rows) -> Floats:
        """The highest rise that any of the kinds predicts, plans [n, 2L] to [n].

        For searching.  Lines and planes go on falling where nothing was measured, and a
        search goes just there; trees stay level.  Where all kinds agree that a plan is good
        it has been found to be so.
        """
        features = self._features(rows)
        each = [scale.backward(model.predict(features)) for scale, model in self._models]
        return np.asarray(np.max(each, axis=0))

    def spread(self, rows: Rows) -> Floats:
        """How far the models of the folds disagree, standard deviation in nats, [n]."""
        features = self._features(rows)
        each = [self._scale.backward(model.predict(features)) for model in self._unseen.models]
        return np.asarray(np.std(each, axis=0))

    def interval(self, rows: Rows, level: float = 0.9) -> tuple[Floats, Floats]:
        """Conformal intervals of rises, CV+ of Barber et al. (2021).

        They hold for plans drawn as the measured ones were.  A plan that was picked because
        its prediction is low is no such draw, and lies above its interval more often.

        Args:
            rows: [n, 2L].
            level: share of plans that the intervals are to cover.

        Returns:
            Lower and upper ends in nats, [n] each; without end where there are too few pairs
            for the level.
        """
        features = self._features(rows)
        lows, highs = [], []
        for model, part in zip(self._unseen.models, self._unseen.rows, strict=True):
            whole = part[
                self._examples.weights[part] >= 1
            ]  # partial pairs carry noise of their own
            centre = model.predict(features)[:, None]
            lows.append(centre - self._residuals[whole])
            highs.append(centre + self._residuals[whole])
        below, above = np.concatenate(lows, axis=1), np.concatenate(highs, axis=1)
        outside = int(np.floor((1 - level) * (below.shape[1] + 1)))
        if outside < 1:
            return np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
        low = np.partition(below, outside - 1, axis=1)[:, outside - 1]
        high = -np.partition(-above, outside - 1, axis=1)[:, outside - 1]
        return self._scale.backward(low), self._scale.backward(high)

    def error_near(self, loss_increase: float) -> float:
        """Median error on unseen plans, in nats, about a given rise.

        On the logarithm or the root an error grows with the rise, so it is said where.
        """
        residual = float(np.median(self._residuals))
        centre = self._scale.forward(np.array([loss_increase]))
        ends = self._scale.backward(np.concatenate([centre - residual, centre + residual]))
        return float(ends[1] - ends[0]) / 2

    @property
    def cross_validated(self) -> tuple[Floats, Floats]:
        """Measured rises of the pairs, and what was predicted of each by models without it, [n]."""
        return self._examples.values, self._scale.backward(self._unseen.numbers)

    def contributions(self, rows: Rows) -> Floats | None:
        """Mean size of what each block and kind adds to predictions.

        Shapley values on the scale learnt, summed over the features of a block and kind.

        Args:
            rows: [n, 2L] plans over which to average.

        Returns:
            [2L], or None where the winner is not boosted trees.
        """
        if not isinstance(self._model, BoostedTrees):
            return None
        values = self._model.contributions(self._features(rows))
        each = values[:, : 3 * rows.shape[1]].reshape(len(rows), 3, -1).sum(axis=1)
        return np.asarray(np.abs(each).mean(axis=0))


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
    """Choose a predictor by cross-validation and fit it on all pairs.

    For each kind the scale of the target is chosen on the first repeat's folds; the kinds
    are then compared over all repeats.  A partial pair counts by its share of the tokens, at
    the level of the whole text.
    The result depends on neither the order of the pairs nor the number of threads.

    Args:
        pairs: measured pairs; of several sizes, if the study serves several.
        shape: of the dense model.
        mass: importance of what a plan cuts.
        seed: of the folds and of LightGBM.
        repeats: of five-fold cross-validation.
        kinds: that compete.
        extra: columns that features have beside their own.

    Raises:
        LmscoutError: there are too few pairs, or they do not differ.
    """
    check_enough(len(pairs))
    features = PlanFeatures(shape, mass, extra)
    examples = _examples(pairs, shape, features)
    if np.ptp(examples.values) == 0:
        raise LmscoutError(
            f"all {len(pairs)} measured pairs have the same quality, so there is nothing to learn"
        )
    parts = [folds(len(pairs), seed, repeat) for repeat in range(repeats)]
    contests = _contests(kinds, examples, parts, seed)
    agreements = {
        kind: mean_agreement([one.agreement for one in unseen])
        for kind, (_, unseen) in contests.items()
    }
    ranked = sorted(kinds, key=lambda kind: -agreements[kind].kendall_same_size)
    by_fold = {
        kind: [tau for one in unseen for tau in one.by_fold]
        for kind, (_, unseen) in contests.items()
    }
    ahead, error = margin(by_fold[ranked[0]], by_fold[ranked[1]]) if len(ranked) > 1 else (0.0, 0.0)
    with on_one_thread(), Parallel(n_jobs=-1, prefer="threads") as parallel:
        models = parallel(
            delayed(_fitted)(kind, *contests[kind], examples, seed) for kind in ranked
        )
    report = PredictorReport(
        agreements[ranked[0]],
        tuple(agreements[kind] for kind in ranked[1:]),
        len(pairs),
        ahead,
        error,
    )
    return Predictor(report, features, models, contests[ranked[0]][1][0], examples)


def _fitted(
    kind: str, scale: TargetScale, unseen: Sequence[HeldOut], examples: Examples, seed: int
) -> tuple[TargetScale, Regressor]:
    """One kind on its best scale, fitted on all pairs."""
    model = regressor(kind, examples.depth, seed, like=unseen[0].models[-1])
    model.fit(examples.features, scale.forward(examples.values), examples.weights)
    return scale, model


def _contests(
    kinds: Sequence[str], examples: Examples, parts: Sequence[tuple[Indices, ...]], seed: int
) -> dict[str, tuple[TargetScale, list[HeldOut]]]:
    """For each kind its best scale on the first repeat, and what it predicts on every repeat."""
    scales = [TargetScale.of(name, examples.values) for name in SCALES]
    # Most of the time is spent outside of Python, so threads are enough.
    with on_one_thread(), Parallel(n_jobs=-1, prefer="threads") as parallel:
        trials = iter(
            parallel(
                delayed(held_out)(kind, scale, examples, parts[0], seed)
                for kind in kinds
                for scale in scales
            )
        )
        firsts = {kind: list(islice(trials, len(scales))) for kind in kinds}
        best = {
            kind: max(range(len(scales)), key=lambda one: each[one].agreement.kendall_same_size)
            for kind, each in firsts.items()
        }
        others = iter(
            parallel(
                delayed(held_out)(kind, scales[best[kind]], examples, part, seed)
                for kind in kinds
                for part in parts[1:]
            )
        )
        return {
            kind: (
                scales[best[kind]],
                [firsts[kind][best[kind]], *islice(others, len(parts) - 1)],
            )
            for kind in kinds
        }


def _examples(pairs: Sequence[Pair], shape: Shape, features: PlanFeatures) -> Examples:
    """In an order of their own, so that the order of measuring changes nothing."""
    ordered = sorted(pairs, key=lambda pair: (pair.plan.attention, pair.plan.mlp))
    rows = as_rows([pair.plan for pair in ordered])
    whole = max(pair.tokens for pair in ordered)
    return Examples(
        features(rows),
        _levelled(ordered),
        np.array([pair.tokens / whole if pair.partial else 1.0 for pair in ordered]),
        kept_shares(shape, rows),
        shape.depth,
    )


def _levelled(pairs: Sequence[Pair]) -> Floats:
    """Rises, those of partial pairs brought to the level of the whole text, [n].

    Chunks of a text differ in difficulty.  The whole pairs say by how much: what they rose
    in all, by what they rose on the tokens that a partial pair has seen.
    """
    whole = [(dict(pair.trajectory), pair.value) for pair in pairs if not pair.partial]

    def level(tokens: int) -> float:
        ratios = [
            value / trajectory[tokens]
            for trajectory, value in whole
            if trajectory.get(tokens, 0.0) > 0
        ]
        return float(np.median(ratios)) if ratios else 1.0

    levels = {tokens: level(tokens) for tokens in {pair.tokens for pair in pairs if pair.partial}}
    return np.array(
        [
            pair.value * levels.get(pair.tokens, 1.0) if pair.partial else pair.value
            for pair in pairs
        ]
    )


def _spoken(kind: str) -> str:
    return {"lightgbm": "LightGBM", "ridge": "ridge", "gaussian_process": "Gaussian process"}[kind]
