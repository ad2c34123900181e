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
    """The text of the reported perplexities.

    Attributes:
        tokenizer: the model's.
        text: the text; None to report none.
        protocol: of the perplexity.
        dtype: of the saved weights.
        limit_tokens: use only the first tokens of the text; None for all.
    """

    tokenizer: PreTrainedTokenizerBase
    text: Text | None
    protocol: str
    dtype: torch.dtype
    limit_tokens: int | None = None

    def check(self, model: PreTrainedModel) -> None:
        """Refuse, before anything is measured, a text or protocol without a perplexity.

        Raises:
            LmscoutError: the protocol's window is longer than the model reads, the text is
                shorter than one, or the tokenizer is not the model's.
        """
        if self.text is not None:
            checked_tokens(model, self.tokenizer, self.text, self.protocol, self.limit_tokens)

    def perplexity(self, model: PreTrainedModel) -> Perplexity | None:
        """Perplexity of the weights as saved, computed in the dtype of the model in memory.

        Args:
            model: its weights are rounded in place.

        Raises:
            LmscoutError: the text is too short, or the loss is not finite.
        """
        if self.text is None:
            return None
        computed = model.dtype
        round_weights(model, self.dtype)
        round_weights(model, computed)
        return perplexity(
            model, self.tokenizer, self.text, self.protocol, limit_tokens=self.limit_tokens
        )

    def dense_perplexity(self, calibrated: Calibrated) -> Perplexity | None:
        """Perplexity of the dense model with its current weights.

        Raises:
            LmscoutError: as `perplexity`, or the model does not compute what its configuration
                describes.
        """
        if self.text is None:
            return None
        whole = cut(calibrated.model, calibrated.shape.dense)
        _check_same(calibrated.model, whole)
        return self.perplexity(whole)


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

    Args:
        calibrated: the dense model, its units in final order.
        budgets: the sizes.
        winners: the selected plan of each.
        on: the text of the perplexities.
        weights: of the selected plans.
        dense: perplexity of the dense model with its current weights, if measured before.
        progress: called with models done and in all.

    Returns:
        The dense model's row, and the rows of every size.

    Raises:
        LmscoutError: the text is too short, or a loss is not finite.
    """
    units = calibrated.shape
    calibrated = replace(calibrated, settings=replace(calibrated.settings, quality=LIKELIHOOD))
    whole: Variant = (units.dense, "cut")
    sizes = [_variants(calibrated, *one, weights) for one in zip(budgets, winners, strict=True)]
    variants = list(dict.fromkeys([whole, *(one for size in sizes for one in size.values())]))
    increases = _loss_increases(calibrated, variants)
    params: dict[Variant, int] = {}
    perplexities: dict[Variant, Perplexity | None] = {}
    for number, one in enumerate(variants):
        if one == whole and dense is not None:
            params[one], perplexities[one] = parameter_count(calibrated.model), dense
            continue
        model = calibrated.subnetwork(*one)
        if one not in increases:
            increases[one] = _finite(calibrated.measured_held_out(model).loss_increase)
        params[one], perplexities[one] = parameter_count(model), on.perplexity(model)
        if progress:
            progress(number + 1, len(variants))

    def row(name: str, one: Variant, budget: Budget | None = None) -> Reported:
        plan, cost = one[0], 1.0
        if budget is not None:
            kept, full = budget.cost(as_rows([plan, units.dense]))
            cost = float(kept / full)
        return Reported(
            name,
            plan,
            params[one],
            units.kept_share(plan),
            cost,
            perplexities[one],
            kept_of_all=params[one] / params[whole],
            loss_increase=increases[one],
        )

    return row("dense", whole), [
        tuple(row(*one, budget) for one in size.items())
        for size, budget in zip(sizes, budgets, strict=True)
    ]


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
    """Loss increase of a trained model on the calibration windows of finalists.

    Args:
        model: a cut model after recovery.
        calibrated: the dense model and the text.
        trained_on: [windows, T] of the recovery.

    Returns:
        Nats/token over the dense model; None if one of the windows was trained on.
    """
    if len(apart_from(calibrated.final, trained_on)) < len(calibrated.final):
        return None
    calibrated = replace(calibrated, settings=replace(calibrated.settings, quality=LIKELIHOOD))
    return _finite(calibrated.measured_held_out(model).loss_increase)


def held_out_tokens(calibrated: Calibrated) -> int:
    """Predicted tokens on which loss increases are reported."""
    return calibrated.final.numel() - len(calibrated.final)
