"""What pruning found, as data and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from lmscout.evaluation import Perplexity, load_model
from lmscout.pruning.narrowing import NarrowingStep
from lmscout.pruning.plan import Plan
from lmscout.pruning.predictor import PredictorReport
from lmscout.pruning.proxy_objective import ProxyReport
from lmscout.pruning.recovery.elastic import Elastic
from lmscout.pruning.recovery.training import Trained
from lmscout.results import Result

SHOWN = {
    "dense": "dense",
    "uniform": "uniform",
    "uniform_compensated": "uniform, compensated",
    "uniform_guarded": "uniform, protected",
    "found": "found",
    "found_plain": "found, uncompensated",
    "found_recovered": "found, recovered",
    "dense_elastic": "dense, recovered",
}
"""Names of the report's models as tables and sentences show them."""

_FOUND = ("found", "found_recovered")
_UNIFORM = ("uniform_compensated", "uniform", "uniform_guarded")
_NOISE = 1e-6  # relative: rounding, below which two values are the same


@dataclass(frozen=True)
class Reported:
    """One model of the report.

    Attributes:
        name: "dense", "uniform", "uniform_compensated", "uniform_guarded", "found",
            "found_plain", or after recovery "found_recovered" and "dense_elastic".
        plan: what it keeps.
        params: parameters of the whole model.
        kept: share of the parameters in attention and MLP.
        cost: share of what the dense model costs, by the measure of the budget.
        perplexity: on the report text, with its protocol; None without a report text.
        kept_of_all: share of all parameters of the dense model.
        loss_increase: over the dense model on held-out calibration windows, nats/token; infinite
            where the loss is not finite, None where recovery was trained on these windows.
    """

    name: str
    plan: Plan
    params: int
    kept: float
    cost: float
    perplexity: Perplexity | None
    kept_of_all: float = 1.0
    loss_increase: float | None = None

    def to_json(self) -> dict[str, object]:
        """The row of the report."""
        found = self.perplexity
        return {
            "params": self.params,
            "kept": self.kept,
            "kept_of_all": self.kept_of_all,
            "cost": self.cost,
            "loss_increase": finite_or_none(self.loss_increase),
            "perplexity": None if found is None else found.value,
            "protocol": None if found is None else found.to_json(),
        }


def finite_or_none(value: float | None) -> float | None:
    """A number as JSON has it."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Comparison:
    """A found model beside a uniform cut of its size, by one measure of which less is better.

    Attributes:
        model: name of the found model.
        baseline: name of the uniform cut.
        measure: "loss_increase" on held-out calibration windows, or "perplexity" on the report
            text.
        value: of the found model.
        baseline_value: of the uniform cut.
    """

    model: str
    baseline: str
    measure: str
    value: float
    baseline_value: float

    @property
    def worse(self) -> bool:
        """Whether the found model is worse, by more than rounding."""
        return exceeds(self.value, self.baseline_value)

    @property
    def words(self) -> str:
        """Both values, and by how much they differ."""
        value, other = self.value, self.baseline_value
        if self.measure == "perplexity":
            return f"perplexity {value:.2f} against {other:.2f} ({value / other - 1:+.1%})"
        if math.isinf(value):
            return f"no finite loss, against a loss increase of {other:+.4f} nats/token"
        by = f" ({value - other:+.4f})" if math.isfinite(other) else ""
        return f"loss increase {value:+.4f} against {other:+.4f} nats/token{by}"

    def to_json(self) -> dict[str, object]:
        """Names, measure and values."""
        return {
            "model": self.model,
            "baseline": self.baseline,
            "measure": self.measure,
            "value": finite_or_none(self.value),
            "baseline_value": finite_or_none(self.baseline_value),
        }


def exceeds(value: float, other: float) -> bool:
    """Whether a value is above another by more than rounding."""
    return value > other and not math.isclose(value, other, rel_tol=_NOISE, abs_tol=_NOISE)


def below_dense(dense: Reported, rows: Sequence[Reported]) -> str | None:
    """What to say of pruned models that measure better than the dense one; None where none does.

    Args:
        dense: the dense model as it was given.
        rows: other models of the report.
    """

    def is_below(row: Reported) -> bool:
        values = row.perplexity, dense.perplexity
        return exceeds(0.0, row.loss_increase or 0.0) or (
            values[0] is not None
            and values[1] is not None
            and exceeds(values[1].value, values[0].value)
        )

    better = dict.fromkeys(row.name for row in rows if is_below(row))
    if not better:
        return None
    names = "; ".join(SHOWN[name] for name in better)
    return (
        f"below the dense model's loss: {names}. This is adaptation to the text used for "
        "calibration or recovery, not a better model"
    )


@dataclass(frozen=True)
class Finalist:
    """A plan that was measured on more text, beside what was predicted of it.

    Attributes:
        plan: the plan.
        predicted: rise of the negative log-likelihood over the dense model's, nats a token; None
            without a predictor.
        measured: on the text of all pairs; None where it is not among them.
        final: on the text kept for finalists; None for the plan of a judge, which is measured
            nowhere.
        chunks: on each chunk of that text.
    """

    plan: Plan
    predicted: float | None
    measured: float | None
    final: float | None
    chunks: tuple[float, ...]

    def to_json(self) -> dict[str, object]:
        """The three rises and the plan."""
        return {
            "predicted": self.predicted,
            "measured": self.measured,
            "final": self.final,
            "plan": self.plan.as_dict(),
        }


@dataclass(frozen=True)
class Size:
    """What was found at one size.

    Attributes:
        keep: the share asked for.
        reported: uniform and found models.
        finalists: best first.
        out: the saved model's folder.
        recovery: the training of the winner; None without.
    """

    keep: float
    reported: tuple[Reported, ...]
    finalists: tuple[Finalist, ...]
    out: Path
    recovery: Trained | None = None

    @property
    def plan(self) -> Plan:
        """The winner's."""
        return self.finalists[0].plan

    @property
    def words(self) -> str:
        """How far the winner is ahead of the runner-up, in one sentence."""
        if self.finalists[0].final is None:
            return f"keep {self.keep:g}: the plan of the best score; no measurement chose it"
        if len(self.finalists) < 2:
            return f"keep {self.keep:g}: there was one finalist"
        first, second = (np.array(one.chunks) for one in self.finalists[:2])
        ahead, error = standard_error(second - first)
        noise = ": within the noise" if ahead < 2 * error else ""
        return (
            f"keep {self.keep:g}: selected plan {self.finalists[0].final:+.3f} nats/token over the "
            f"dense model, the next of {len(self.finalists)} finalists {ahead:.3f} ± {error:.3f} "
            f"more{noise}"
        )

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Found models beside uniform cuts, by every measure that both have."""
        return tuple(self._comparisons())

    def _comparisons(self) -> Iterator[Comparison]:
        rows = {row.name: row for row in self.reported}
        for model in filter(rows.__contains__, _FOUND):
            for baseline in filter(rows.__contains__, _UNIFORM):
                own, other = rows[model], rows[baseline]
                if own.loss_increase is not None and other.loss_increase is not None:
                    values = own.loss_increase, other.loss_increase
                    yield Comparison(model, baseline, "loss_increase", *values)
                if own.perplexity is not None and other.perplexity is not None:
                    perplexities = own.perplexity.value, other.perplexity.value
                    yield Comparison(model, baseline, "perplexity", *perplexities)

    @property
    def verdict(self) -> tuple[str, ...]:
        """Whether found models are better than uniform cuts of the same size, in sentences."""
        sentences = []
        for model in dict.fromkeys(one.model for one in self.comparisons):
            own = [one for one in self.comparisons if one.model == model]
            worse = [one for one in own if one.worse]
            said = f"keep {self.keep:g}: {SHOWN[model]} is"
            for baseline in dict.fromkeys(one.baseline for one in worse):
                by = "; ".join(one.words for one in worse if one.baseline == baseline)
                sentences.append(f"{said} worse than {SHOWN[baseline]}: {by}")
            if not worse:
                closest = min(
                    (one for one in own if one.measure == own[0].measure),
                    key=lambda one: one.baseline_value,
                )
                ahead = exceeds(closest.baseline_value, closest.value)
                than = "better than every uniform cut, closest" if ahead else "as good as"
                sentences.append(f"{said} {than} {SHOWN[closest.baseline]}: {closest.words}")
        return tuple(sentences)

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return {
            "keep": self.keep,
            **{one.name: one.to_json() for one in self.reported},
            "plan": self.plan.as_dict(),
            "words": self.words,
            "verdict": list(self.verdict),
            "worse_than": [one.to_json() for one in self.comparisons if one.worse],
            "finalists": [one.to_json() for one in self.finalists],
            "out": str(self.out),
            "recovery": None if self.recovery is None else self.recovery.to_json(),
        }


def standard_error(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean of values and its standard error; the error of a single one is without end."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
    return float(values.mean()), float(error)


@dataclass(frozen=True, repr=False)
class Pruning(Result):
    """What pruning found.

    Attributes:
        of: what a share is kept of: "parameters", "multiply-adds", "memory" or "latency".
        dense: the model that was pruned.
        sizes: one for each share asked for.
        predictor: how good the predictor is on pairs that it has not seen; None where plans were
            so few that all were measured.
        narrowing_steps: every narrowing, in words and numbers.
        pairs: held by the study.
        pair_study: its URL.
        seconds: by stage.
        elastic: the training of all plans; None without.
        dense_elastic: the dense model with it; None without.
        objective: that searched in place of a predictor, without a pair.
        held_out_tokens: predicted tokens of calibration text on which loss increases are reported.
    """

    of: str
    dense: Reported
    sizes: tuple[Size, ...]
    predictor: PredictorReport | None
    narrowing_steps: tuple[NarrowingStep, ...]
    pairs: int
    pair_study: str
    seconds: Mapping[str, float]
    elastic: Elastic | None = None
    dense_elastic: Reported | None = None
    objective: ProxyReport | None = None
    held_out_tokens: int = 0

    @property
    def plan(self) -> Plan:
        """The selected plan; of several sizes, that of the first."""
        return self.sizes[0].plan

    @property
    def model(self) -> PreTrainedModel:
        """The saved model, loaded again; of several sizes, the first."""
        return load_model(str(self.sizes[0].out)).model

    @property
    def below_dense(self) -> str | None:
        """What to say of models that measure better than the dense one; None where none does."""
        rows = [row for size in self.sizes for row in size.reported]
        if self.dense_elastic is not None:
            rows.insert(0, self.dense_elastic)
        return below_dense(self.dense, rows)

    def rows(self) -> list[dict[str, Any]]:
        """One row per model: dense, uniform and found, with sizes and measurements."""
        models = [("", self.dense)]
        if self.dense_elastic is not None:
            models.append(("", self.dense_elastic))
        models += [(f"{size.keep:g}", one) for size in self.sizes for one in size.reported]
        return [
            {
                "keep": float(keep) if keep else 1.0,
                "model": one.name,
                "params": one.params,
                "kept_of_all": one.kept_of_all,
                "kept": one.kept,
                "loss_increase": one.loss_increase,
                "perplexity": None if one.perplexity is None else one.perplexity.value,
            }
            for keep, one in models
        ]

    def to_json(self) -> dict[str, object]:
        """As the command line prints it: of one size flat, of several as a list, `sizes`."""
        sizes = [size.to_json() for size in self.sizes]
        predictor = None
        if self.predictor is not None:
            chosen = self.predictor.chosen
            predictor = {
                "kind": chosen.kind,
                "kendall": chosen.kendall,
                "r2": chosen.r2,
                "rmse": chosen.rmse,
                "beats_mean": self.predictor.beats_mean,
                "pairs": self.pairs,
                "words": self.predictor.words,
            }
        return {
            "of": self.of,
            "held_out_tokens": self.held_out_tokens,
            "dense": self.dense.to_json(),
            **(sizes[0] if len(sizes) == 1 else {"sizes": sizes}),
            "predictor": predictor,
            **({} if self.objective is None else {"objective": self.objective.to_json()}),
            "narrowing": [narrowing_step.words for narrowing_step in self.narrowing_steps],
            "elastic": self._elastic_json(),
            "study": self.pair_study,
            "seconds": dict(self.seconds),
        }

    def _elastic_json(self) -> dict[str, object] | None:
        if self.elastic is None or self.dense_elastic is None:
            return None
        return {**self.elastic.to_json(), "dense": self.dense_elastic.to_json()}
