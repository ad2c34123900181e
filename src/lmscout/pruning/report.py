"""Models of one size side by side, with the weights that would be saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmscout.errors import LmscoutError
from lmscout.evaluation import Perplexity, Text, checked_tokens, parameter_count, perplexity
from lmscout.progress import StageProgress
from lmscout.pruning.budgets import Budget
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.cutting import cut, round_weights
from lmscout.pruning.evaluator import LIKELIHOOD
from lmscout.pruning.moments import BATCH_TOKENS
from lmscout.pruning.plan import Plan, as_rows
from lmscout.pruning.ranges import Ranges, uniform
from lmscout.pruning.recovery.training import apart_from
from lmscout.pruning.reload_saved import check_logits
from lmscout.pruning.results import Reported
from lmscout.pruning.sampler import order_for_prefix_sharing

Variant = tuple[Plan, bool]  # a plan, and whether its output projections are compensated


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
        dense: perplexity of the dense model with its current weights, if measured before.
        progress: called with models done and in all.

    Returns:
        The dense model's row, and the rows of every size.

    Raises:
        LmscoutError: the text is too short, or a loss is not finite.
    """
    units = calibrated.shape
    whole = (units.dense, False)
    sizes = [_variants(calibrated, *one) for one in zip(budgets, winners, strict=True)]
    variants = list(dict.fromkeys([whole, *(one for size in sizes for one in size.values())]))
    increases = _loss_increases(calibrated, variants)
    params: dict[Variant, int] = {}
    perplexities: dict[Variant, Perplexity | None] = {}
    for number, (plan, compensated) in enumerate(variants):
        one = (plan, compensated)
        if one == whole and dense is not None:
            params[one], perplexities[one] = parameter_count(calibrated.model), dense
            continue
        model = cut(calibrated.model, plan, calibrated.compensated(plan) if compensated else None)
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


def _variants(calibrated: Calibrated, budget: Budget, winner: Plan) -> dict[str, Variant]:
    """The models of one size by name."""
    units = calibrated.shape
    compensate = calibrated.settings.compensate
    full = Ranges.above(units, 0.0)
    level, protected = uniform(units, full, budget), full.protected(units)
    variants = {"uniform": (level, False)}
    if compensate:
        variants["uniform_compensated"] = level, True
    if protected.can_meet(budget):
        variants["uniform_protected"] = uniform(units, protected, budget), False
    variants["found"] = winner, compensate
    if compensate:
        variants["found_plain"] = winner, False
    return variants


def _loss_increases(calibrated: Calibrated, variants: Sequence[Variant]) -> dict[Variant, float]:
    """Loss increases on the windows of finalists, nats/token; infinite if not finite."""
    settings = replace(calibrated.settings, quality=LIKELIHOOD)
    compensated = replace(calibrated, settings=settings)
    plain = replace(
        compensated,
        compensation=None,
        copies=tuple((model, None) for model, _ in calibrated.copies),
    )
    found = {}
    for flag, measuring in ((False, plain), (True, compensated)):
        plans = order_for_prefix_sharing([plan for plan, own in variants if own == flag])
        if plans:
            values = measuring.evaluator(calibrated.final).measure(plans)
            for plan, measured in zip(plans, values, strict=True):
                found[plan, flag] = _finite(measured.loss_increase)
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
    windows = calibrated.final
    if len(apart_from(windows, trained_on)) < len(windows):
        return None
    dense_nll = calibrated.evaluator(windows).dense_nll
    rows, total = max(1, BATCH_TOKENS // windows.shape[1]), 0.0
    with torch.inference_mode():
        for some in torch.split(windows.to(model.device), rows):
            logits = model(input_ids=some, use_cache=False).logits[:, :-1].flatten(0, 1)
            total += cross_entropy(logits.float(), some[:, 1:].flatten(), reduction="sum").item()
    return _finite(total / held_out_tokens(calibrated) - dense_nll)


def held_out_tokens(calibrated: Calibrated) -> int:
    """Predicted tokens on which loss increases are reported."""
    return calibrated.final.numel() - len(calibrated.final)
