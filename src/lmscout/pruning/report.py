"""Models of one size side by side, with the weights that would be saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmscout.errors import LmscoutError
from lmscout.evaluation import Perplexity, Text, checked_tokens, parameter_count, perplexity
from lmscout.progress import StageProgress
from lmscout.pruning.budgets import Budget
from lmscout.pruning.calibration import Calibrated, Weights
from lmscout.pruning.cutting import cut, round_weights
from lmscout.pruning.evaluator import LIKELIHOOD
from lmscout.pruning.plan import Plan, as_rows
from lmscout.pruning.ranges import Ranges, uniform
from lmscout.pruning.recovery.training import apart_from
from lmscout.pruning.reload_saved import check_logits
from lmscout.pruning.results import Reported
from lmscout.pruning.sampler import order_for_prefix_sharing

Variant = tuple[Plan, Weights]


@dataclass(frozen=True)
class ReportText:
    """The text of the reported perplexities."""

    tokenizer: PreTrainedTokenizerBase  # the model's
    text: Text | None  # the text; None to report none
    protocol: str  # of the perplexity
    dtype: torch.dtype  # of the saved weights
    limit_tokens: int | None = None  # use only the first tokens of the text; None for all

    def check(self, model: PreTrainedModel) -> None:
        """Raise LmscoutError, before any work, if the text has no perplexity by this protocol.

        The window is longer than the model reads, the text is shorter, or the tokenizer is another.
        """
        if self.text is not None:
            checked_tokens(model, self.tokenizer, self.text, self.protocol, self.limit_tokens)

    def perplexity(self, model: PreTrainedModel) -> Perplexity | None:
        """Perplexity of the weights as saved, which are rounded in place, in the model's dtype."""
        if self.text is None:
            return None
        computed = model.dtype
        round_weights(model, self.dtype)
        round_weights(model, computed)
        return perplexity(
            model, self.tokenizer, self.text, self.protocol, limit_tokens=self.limit_tokens
        )

    def dense_perplexity(self, calibrated: Calibrated) -> Perplexity | None:
        """Perplexity of the dense model with its current weights, if its parts compute the same."""
        if self.text is None:
            return None
        dense, in_host = calibrated.model, calibrated.in_host  # where two models do not fit
        whole = cut(dense, calibrated.shape.dense, device="cpu" if in_host else None)
        _check_same(dense, whole)
        return self.perplexity(dense if in_host and dense.dtype == self.dtype else whole)


def _check_same(model: PreTrainedModel, rebuilt: PreTrainedModel) -> None:
    """Refuse a model that differs from the one that its configuration and weights make.

    Every reported and saved model is made from these.
    """
    ours, theirs = check_logits(model), check_logits(rebuilt)
    most = max(1e-3, 16 * torch.finfo(model.dtype).eps) * max(1.0, ours.abs().max().item())
    difference = (ours - theirs).abs().max().item()
    if difference > most:
        raise LmscoutError(
            f"the model computes otherwise than its configuration describes (logits differ by "
            f"{difference:.3g}): save it again with the transformers that it was made with"
        )


def report(
    calibrated: Calibrated,
    budgets: Sequence[Budget],
    winners: Sequence[Plan],
    on: ReportText,
    weights: Weights,
    *,
    dense: Perplexity | None = None,
    progress: StageProgress | None = None,
) -> tuple[Reported, list[tuple[Reported, ...]]]:
    """Measure the dense model, and for every size the uniform models and the selected plan.

    Returns the dense model's row, and the rows of every size.  `weights` are those of the selected
    plans, `dense` is the perplexity of the dense model with its current weights, if measured
    before.
    """
    units = calibrated.shape
    calibrated = replace(calibrated, settings=replace(calibrated.settings, quality=LIKELIHOOD))
    whole: Variant = (units.dense, "cut")
    sizes = [_variants(calibrated, *one, weights) for one in zip(budgets, winners, strict=True)]
    variants = list(dict.fromkeys([whole, *(one for size in sizes for one in size.values())]))
    increases = _loss_increases(calibrated, variants)
    measured: dict[Variant, tuple[int, Perplexity | None]] = {}
    for number, one in enumerate(variants):
        if one == whole and dense is not None:
            measured[one] = parameter_count(calibrated.model), dense
            continue
        model = calibrated.subnetwork(*one)
        if one not in increases:
            increases[one] = _finite(calibrated.measured_held_out(model).loss_increase)
        measured[one] = parameter_count(model), on.perplexity(model)
        del model  # before the next one is made
        if progress:
            progress(number + 1, len(variants))

    def row(name: str, one: Variant, cost: float = 1.0) -> Reported:
        plan, (params, found) = one[0], measured[one]
        share, of_all = units.kept_share(plan), params / measured[whole][0]
        return Reported(name, plan, params, share, cost, found, of_all, increases[one])

    tables = []
    for size, budget in zip(sizes, budgets, strict=True):
        full, *costs = budget.cost(as_rows([units.dense, *(plan for plan, _ in size.values())]))
        rows = zip(size.items(), costs, strict=True)
        tables.append(tuple(row(*one, float(cost / full)) for one, cost in rows))
    return row("dense", whole), tables


def _variants(
    calibrated: Calibrated, budget: Budget, winner: Plan, weights: Weights
) -> dict[str, Variant]:
    """The models of one size by name."""
    units = calibrated.shape
    full = Ranges.above(units, 0.0)
    level, protected = uniform(units, full, budget), full.protected(units)
    variants: dict[str, Variant] = {"uniform": (level, "cut")}
    if calibrated.settings.compensate:
        variants["uniform_compensated"] = level, "compensated"
    if weights == "refit":
        variants["uniform_refit"] = level, "refit"
    if protected.can_meet(budget):
        variants["uniform_protected"] = uniform(units, protected, budget), "cut"
    variants["found"] = winner, weights
    if weights == "refit" and calibrated.settings.compensate:
        variants["found_compensated"] = winner, "compensated"
    elif weights != "cut":
        variants["found_plain"] = winner, "cut"
    return variants


def _loss_increases(calibrated: Calibrated, variants: Sequence[Variant]) -> dict[Variant, float]:
    """Loss increases on the windows of finalists, nats/token; infinite if not finite.

    Of subnetworks of the dense weights alone: refit ones are measured when they are cut.
    """
    plain = replace(
        calibrated,
        compensation=None,
        copies=tuple((model, None) for model, _ in calibrated.copies),
    )
    measuring: dict[Weights, Calibrated] = {"cut": plain, "compensated": calibrated}
    found = {}
    for weights, one in measuring.items():
        plans = order_for_prefix_sharing([plan for plan, own in variants if own == weights])
        if plans:
            values = one.evaluator(calibrated.final).measure(plans)
            for plan, measured in zip(plans, values, strict=True):
                found[plan, weights] = _finite(measured.loss_increase)
    return found


def _finite(increase: float) -> float:
    return increase if math.isfinite(increase) else math.inf


def held_out_increase(
    model: PreTrainedModel, calibrated: Calibrated, trained_on: torch.Tensor
) -> float | None:
    """Loss increase of a recovered model on the windows of finalists, nats/token.

    None if one of these windows was trained on.
    """
    if len(apart_from(calibrated.final, trained_on)) < len(calibrated.final):
        return None
    calibrated = replace(calibrated, settings=replace(calibrated.settings, quality=LIKELIHOOD))
    return _finite(calibrated.measured_held_out(model).loss_increase)
