"""What pruning found, as data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmscout.evaluation import Perplexity
from lmscout.pruning.judging.judge import JudgeReport
from lmscout.pruning.learning.narrowing import Shrink
from lmscout.pruning.learning.predictor import PredictorReport
from lmscout.pruning.recovery.elastic import Elastic
from lmscout.pruning.recovery.training import Trained
from lmscout.pruning.subnetworks.plan import Plan
from lmscout.results import Result


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
    """

    name: str
    plan: Plan
    params: int
    kept: float
    cost: float
    perplexity: Perplexity | None

    def to_json(self) -> dict[str, object]:
        """The row of the report."""
        found = self.perplexity
        return {
            "params": self.params,
            "kept": self.kept,
            "cost": self.cost,
            "perplexity": None if found is None else found.value,
            "protocol": None if found is None else found.to_json(),
        }


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
        portions: on each portion of that text.
    """

    plan: Plan
    predicted: float | None
    measured: float | None
    final: float | None
    portions: tuple[float, ...]

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
            return f"keep {self.keep:g}: the judge's best plan, measured nowhere"
        if len(self.finalists) < 2:
            return "there was one finalist"
        first, second = (np.array(one.portions) for one in self.finalists[:2])
        ahead, error = standard_error(second - first)
        noise = ": within the noise" if ahead < 2 * error else ""
        return (
            f"keep {self.keep:g}: of {len(self.finalists)} finalists the winner rises "
            f"{self.finalists[0].final:.3f} nats a token over the dense model on calibration text, "
            f"the runner-up {ahead:.3f} ± {error:.3f} more{noise}"
        )

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return {
            "keep": self.keep,
            **{one.name: one.to_json() for one in self.reported},
            "plan": self.plan.as_dict(),
            "words": self.words,
            "finalists": [one.to_json() for one in self.finalists],
            "out": str(self.out),
            "recovery": None if self.recovery is None else self.recovery.to_json(),
        }


def standard_error(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean of values and its standard error; the error of a single one is without end."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
    return float(values.mean()), float(error)


@dataclass(frozen=True)
class Pruning(Result):
    """What pruning found.

    Attributes:
        of: what a share is kept of: "parameters", "multiply-adds", "memory" or "latency".
        dense: the model that was pruned.
        sizes: one for each share asked for.
        predictor: how good the predictor is on pairs that it has not seen; None where plans were
            so few that all were measured.
        shrinks: every narrowing, in words and numbers.
        pairs: held by the ledger.
        ledger: its URL.
        seconds: by stage.
        elastic: the training of all plans; None without.
        dense_elastic: the dense model with it; None without.
        judge: that searched in place of a predictor, without a pair.
    """

    of: str
    dense: Reported
    sizes: tuple[Size, ...]
    predictor: PredictorReport | None
    shrinks: tuple[Shrink, ...]
    pairs: int
    ledger: str
    seconds: Mapping[str, float]
    elastic: Elastic | None = None
    dense_elastic: Reported | None = None
    judge: JudgeReport | None = None

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
                "pairs": self.pairs,
                "words": self.predictor.words,
            }
        return {
            "of": self.of,
            "dense": self.dense.to_json(),
            **(sizes[0] if len(sizes) == 1 else {"sizes": sizes}),
            "predictor": predictor,
            **({} if self.judge is None else {"judge": self.judge.to_json()}),
            "narrowing": [shrink.words for shrink in self.shrinks],
            "elastic": self._elastic_json(),
            "ledger": self.ledger,
            "seconds": dict(self.seconds),
        }

    def _elastic_json(self) -> dict[str, object] | None:
        if self.elastic is None or self.dense_elastic is None:
            return None
        return {**self.elastic.to_json(), "dense": self.dense_elastic.to_json()}
