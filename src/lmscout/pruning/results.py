"""The result of a pruning run: models of every size, compared by loss increase and perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from lmscout.evaluation import Perplexity, load_model
from lmscout.pruning.evaluator import DIVERGENCE, LIKELIHOOD
from lmscout.pruning.plan import Plan
from lmscout.pruning.predictor import PredictorReport
from lmscout.pruning.proposer import NarrowingStep
from lmscout.pruning.proxy_objective import ProxyReport
from lmscout.pruning.recovery.elastic import Elastic
from lmscout.pruning.recovery.training import Trained
from lmscout.results import Result

LABELS = {
    "dense": "dense",
    "uniform": "uniform",
    "uniform_compensated": "uniform, compensated",
    "uniform_refit": "uniform, refit",
    "uniform_protected": "uniform, protected",
    "found": "found",
    "found_compensated": "found, not refit",
    "found_plain": "found, uncompensated",
    "found_recovered": "found, recovered",
    "dense_elastic": "dense, recovered",
}
"""Names of the reported models -> labels in tables and sentences."""

_FOUND = ("found", "found_recovered")
_BASELINES = ("uniform_refit", "uniform_compensated", "uniform", "uniform_protected")
_ROUNDING = 1e-6  # relative and absolute: closer values are equal


@dataclass(frozen=True)
class Reported:
    """One model of the report."""

    name: str  # a key of `LABELS`
    plan: Plan  # units kept
    params: int  # parameters of the whole model
    kept: float  # share of the parameters in attention and MLP
    cost: float  # share of the dense model's cost, in the measure of the budget
    # On the report text, with its protocol; None without a report text.
    perplexity: Perplexity | None
    kept_of_all: float = 1.0  # share of all parameters of the dense model
    # Over the dense model on held-out calibration windows, nats/token; infinite if the loss is not
    # finite, None if recovery was trained on these windows.
    loss_increase: float | None = None

    @property
    def measures(self) -> dict[str, float]:
        """The measures that the model has; lower is better."""
        perplexity = None if self.perplexity is None else self.perplexity.value
        values = {"loss_increase": self.loss_increase, "perplexity": perplexity}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Comparison:
    """A found model against a uniform one of its size."""

    model: str  # name of the found model
    baseline: str  # name of the uniform model
    # "loss_increase" on held-out calibration windows, or "perplexity" on the report text.
    measure: str
    value: float  # of the found model
    baseline_value: float  # of the uniform model

    @property
    def worse(self) -> bool:
        """Whether the found model is worse, by more than rounding."""
        return _exceeds(self.value, self.baseline_value)

    @property
    def words(self) -> str:
        """Both values and their difference."""
        value, other = self.value, self.baseline_value
        if self.measure == "perplexity":
            return f"perplexity {value:.2f} against {other:.2f} ({value / other - 1:+.1%})"
        if math.isinf(value):
            return f"no finite loss, against a loss increase of {other:+.4f} nats/token"
        by = f" ({value - other:+.4f})" if math.isfinite(other) else ""
        return f"loss increase {value:+.4f} against {other:+.4f} nats/token{by}"


def _exceeds(value: float, other: float) -> bool:
    return value > other and not math.isclose(value, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING)


def _finite(value: float | str) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Finalist:
    """A plan measured on held-out calibration text.

    Values are divergences from the dense model's predictions, or loss increases over it (see
    `CalibrationConfig.quality`), nats/token.
    """

    plan: Plan
    predicted: float | None  # None without a predictor
    measured: float | None  # on the text of all pairs; None if the plan is not a pair
    held_out: float | None  # on the text of finalists; None for a plan chosen by a proxy alone
    chunks: tuple[float, ...]  # on each chunk of that text, with refit weights if `refit` is given
    # On that text with refit weights; None for a plan that was not refit.
    refit: float | None = None

    @property
    def loss_increase(self) -> float | None:
        """By which finalists of one size are compared."""
        return self.held_out if self.refit is None else self.refit


@dataclass(frozen=True)
class Size:
    """The models of one size."""

    keep: float  # the share to keep
    models: tuple[Reported, ...]  # uniform and found models
    finalists: tuple[Finalist, ...]  # best first
    folder: Path  # of the saved model
    recovery: Trained | None = None  # the training of the selected plan; None without
    quality: str = LIKELIHOOD  # what finalists were measured by, see `CalibrationConfig`

    @property
    def plan(self) -> Plan:
        """The selected plan."""
        return self.finalists[0].plan

    @property
    def found(self) -> Reported:
        """The saved model: the selected plan, recovered if it was."""
        rows = {one.name: one for one in self.models}
        return next((rows[one] for one in reversed(_FOUND) if one in rows), self.models[-1])

    @property
    def words(self) -> str:
        """The margin of the selected plan over the second finalist, in one sentence."""
        selected = self.finalists[0]
        if selected.loss_increase is None:
            return f"keep {self.keep:g}: the plan of the best score; no measurement chose it"
        if len(self.finalists) < 2:
            return f"keep {self.keep:g}: there was one finalist"
        measured, value = "loss increase", f"{selected.loss_increase:+.4f}"
        if self.quality == DIVERGENCE:  # which has no sign
            measured, value = "divergence from the dense model", f"{selected.loss_increase:.4f}"
        start = f"keep {self.keep:g}: selected plan, {measured} on held-out text {value} nats/token"
        refit = selected.refit is not None
        alike = [one for one in self.finalists if (one.refit is not None) == refit]
        if len(alike) < 2:
            return f"{start}; no other finalist was refit"
        difference = np.array(alike[1].chunks) - np.array(selected.chunks)
        count = len(difference)
        margin = difference.mean()
        error = difference.std(ddof=1) / np.sqrt(count) if count > 1 else np.inf
        noise = ": within the noise" if margin < 2 * error else ""
        kind = "refit finalists" if refit else "finalists"
        return f"{start}, the next of {len(alike)} {kind} {margin:.4f} ± {error:.4f} more{noise}"

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Found models against uniform ones, by every measure that both have."""
        rows = {row.name: row.measures for row in self.models}
        return tuple(
            Comparison(model, baseline, measure, value, rows[baseline][measure])
            for model in _FOUND
            for baseline in _BASELINES
            for measure, value in rows.get(model, {}).items()
            if measure in rows.get(baseline, {})
        )

    @property
    def verdict(self) -> tuple[str, ...]:
        """Whether found models are better than uniform ones of the same size, in sentences."""
        sentences = []
        for model in dict.fromkeys(one.model for one in self.comparisons):
            own = [one for one in self.comparisons if one.model == model]
            worse = [one for one in own if one.worse]
            start = f"keep {self.keep:g}: {LABELS[model]} is"
            for baseline in dict.fromkeys(one.baseline for one in worse):
                by = "; ".join(one.words for one in worse if one.baseline == baseline)
                sentences.append(f"{start} worse than {LABELS[baseline]}: {by}")
            if not worse:
                same = [one for one in own if one.measure == own[0].measure]
                closest = min(same, key=lambda one: one.baseline_value)
                ahead = _exceeds(closest.baseline_value, closest.value)
                than = "better than every uniform cut, closest" if ahead else "as good as"
                sentences.append(f"{start} {than} {LABELS[closest.baseline]}: {closest.words}")
        return tuple(sentences)


@dataclass(frozen=True)
class TestedSize:
    """A size whose best plan was measured on held-out windows, with the weights to be saved."""

    keep: float  # the share to keep
    loss_increase: float  # nats/token
    upper: float  # upper limit of the loss increase on further text, nats/token
    meets: bool  # whether that is within the bound


@dataclass(frozen=True)
class QualityBound:
    """A bound of the loss increase, and the sizes tested for it."""

    limit: float  # the bound, nats/token
    # Probability that the mean loss increase on as much further text of the same distribution is
    # below an upper limit.
    confidence: float
    keep: float  # the smallest size that meets the bound
    tested: tuple[TestedSize, ...]  # sizes, largest first

    @property
    def words(self) -> str:
        """The size and its neighbour that fails, in one sentence."""
        (own,) = (one for one in self.tested if one.keep == self.keep)
        below = [one for one in self.tested if one.keep < self.keep]
        smaller = "no smaller size can be had"
        if below:
            next_ = below[0]
            smaller = (
                f"keep {next_.keep:g} has {next_.loss_increase:+.4f}, at most {next_.upper:.4f}"
            )
        return (
            f"keep {self.keep:g} is the smallest size whose loss increase is at most "
            f"{self.limit:.4g} nats/token (perplexity {math.expm1(self.limit):+.2%}) with "
            f"{self.confidence:.0%} confidence: {own.loss_increase:+.4f}, at most {own.upper:.4f}; "
            f"{smaller}"
        )


@dataclass(frozen=True)
class FrontPoint:
    """The best plan of a size, with the weights that would be saved."""

    keep: float  # the share to keep
    plan: Plan
    kept: float  # share of the parameters in attention and MLP
    cost: float  # share of the dense model's cost, in the measure of the budget
    loss_increase: float  # on held-out windows, nats/token
    upper: float  # upper limit of the loss increase on further text, nats/token

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity over that of the dense model, on the same windows."""
        return math.exp(self.loss_increase)

    def row(self) -> dict[str, float]:
        """The numbers by name."""
        values = {"keep": self.keep, "kept": self.kept, "cost": self.cost}
        measured = {"loss_increase": self.loss_increase, "upper": self.upper}
        return {**values, **measured, "perplexity_ratio": self.perplexity_ratio}


@dataclass(frozen=True, repr=False)
class Pruning(Result):
    """The result of a pruning run.

    Attributes:
        of: the measure of the budget: "parameters", "multiply-adds", "memory" or "latency".
        dense: the model that was pruned.
        sizes: one for each share to keep.
        predictor: its cross-validated quality; None if all plans were measured, or none.
        narrowing_steps: every narrowing of the ranges.
        pairs: number of architecture-accuracy pairs in the study.
        study: URL of the study.
        seconds: by stage.
        elastic: the recovery of all plans; None without.
        dense_elastic: the dense model after it; None without.
        objective: the proxy that replaced the predictor; None without.
        held_out_tokens: predicted tokens of calibration text on which loss increases are reported.
        bound: the loss increase that was asked for in place of a size; None without.
        front: the best plan of every size, largest first; empty if it was not asked for.
    """

    of: str
    dense: Reported
    sizes: tuple[Size, ...]
    predictor: PredictorReport | None
    narrowing_steps: tuple[NarrowingStep, ...]
    pairs: int
    study: str
    seconds: Mapping[str, float]
    elastic: Elastic | None = None
    dense_elastic: Reported | None = None
    objective: ProxyReport | None = None
    held_out_tokens: int = 0
    bound: QualityBound | None = None
    front: tuple[FrontPoint, ...] = ()

    def __repr__(self) -> str:
        shown = (
            f"keep {size.keep:g}: "
            + ", ".join(f"{name} {value:.4g}" for name, value in size.found.measures.items())
            for size in self.sizes[:3]
        )
        more = "; ..." if len(self.sizes) > 3 else ""
        return f"Pruning(of {self.of}, {self.pairs} pairs; {'; '.join(shown)}{more})"

    @property
    def plan(self) -> Plan:
        """The selected plan; of several sizes, that of the first."""
        return self.sizes[0].plan

    @property
    def model(self) -> PreTrainedModel:
        """The saved model, loaded again; of several sizes, the first."""
        return load_model(str(self.sizes[0].folder)).model

    @property
    def reported(self) -> list[tuple[float, Reported]]:
        """Every reported model with its share to keep."""
        models = [(1.0, one) for one in (self.dense, self.dense_elastic) if one is not None]
        return models + [(size.keep, one) for size in self.sizes for one in size.models]

    @property
    def below_dense(self) -> str | None:
        """Sentence on models that measure better than the dense one; None if there is none."""
        dense = {**self.dense.measures, "loss_increase": 0.0}
        better = dict.fromkeys(
            LABELS[row.name]
            for _, row in self.reported[1:]
            if any(_exceeds(dense.get(name, 0.0), value) for name, value in row.measures.items())
        )
        if not better:
            return None
        return (
            f"below the dense model's loss: {'; '.join(better)}. This is adaptation to the text "
            "used for calibration or recovery, not a better model"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row per model: dense, uniform and found, with sizes and measurements."""
        return [
            {
                "model": one.name,
                "keep": keep,
                "params": one.params,
                "kept_of_all": one.kept_of_all,
                "kept": one.kept,
                "loss_increase": one.loss_increase,
                "perplexity": one.measures.get("perplexity"),
            }
            for keep, one in self.reported
        ]

    def to_json(self) -> dict[str, object]:
        """`to_dict`, with the comparisons and sentences that follow from it.

        The perplexity of a model is a number there, its protocol is under ``measurement``.
        """
        values = self.to_dict()
        models = [one for size in values["sizes"] for one in size["models"]]
        for row in (values["dense"], *filter(None, [values["dense_elastic"]]), *models):
            measured = row["measurement"] = row["perplexity"]
            row["perplexity"] = None if measured is None else measured["value"]
        for size, plain in zip(self.sizes, values["sizes"], strict=True):
            plain["plan"] = plain["finalists"][0]["plan"]
            plain["comparisons"] = [
                {name: _finite(value) for name, value in asdict(one).items()} | {"worse": one.worse}
                for one in size.comparisons
            ]
            plain["summary"], plain["verdict"] = size.words, list(size.verdict)
        if self.predictor is not None:
            values["predictor"]["beats_mean"] = self.predictor.beats_mean
        values["below_dense"] = self.below_dense
        return values
