"""Cross-validation of accuracy predictors: what each kind foretells of unseen pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.pruning.learning.regressors import Regressor, regressor
from lmscout.pruning.learning.targets import TargetScale
from lmscout.pruning.subnetworks.plan_arrays import Floats
from lmscout.ranking import kendall

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
    """How well one kind of model foretold pairs that it had not seen.

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
