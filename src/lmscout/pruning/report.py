"""Models of one size side by side: cut as they would be saved, measured on the report text."""

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


@dataclass(frozen=True)
class ReportText:
    """On what perplexities are reported, and of which weights.

    Attributes:
        tokenizer: the model's.
        text: the text; None to report none.
        protocol: of the perplexity.
        dtype: that saved weights have.
        limit_tokens: use only so many tokens from the text's beginning; None for all.
    """

    tokenizer: PreTrainedTokenizerBase
    text: Text | None
    protocol: str
    dtype: torch.dtype
    limit_tokens: int | None = None

    def check(self, model: PreTrainedModel) -> None:
        """Refuse, before anything is measured, a text or protocol that has no perplexity.

        Raises:
            LmscoutError: the protocol's window is longer than the model reads, the text is
                shorter than one, or the tokenizer is not the model's.
        """
        if self.text is not None:
            checked_tokens(model, self.tokenizer, self.text, self.protocol, self.limit_tokens)

    def perplexity(self, model: PreTrainedModel) -> Perplexity | None:
        """Of weights as they are saved, products as the model in memory computes them.

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
        """Of the dense model, with the weights that are there now.

        Raises:
            LmscoutError: as `perplexity`, or the model does not compute what its configuration
                describes.
        """
        if self.text is None:
            return None
        whole = cut(calibrated.model, calibrated.shape.dense)
        _check_same(calibrated.model, whole)
        return self.perplexity(whole)


def _check_same(model: PreTrainedModel, whole: PreTrainedModel) -> None:
    """Refuse a model that computes otherwise than one made from its configuration and weights.

    Every reported and saved model is made in that way.
    """
    theirs, ours = check_logits(model), check_logits(whole)
    most = max(1e-3, 16 * torch.finfo(model.dtype).eps) * max(1.0, theirs.abs().max().item())
    difference = (theirs - ours).abs().max().item()
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
    """Measure the dense model, and for every size the uniform cuts and the winner.

    Args:
        calibrated: the dense model, its units in final order.
        budgets: the sizes.
        winners: the plan found for each.
        on: on what perplexities are reported; without a text, none are.
        dense: perplexity of the dense model with the weights that are there now, if measured.
        progress: called with models done and in all.

    Returns:
        The dense model's row, and for every size its rows.

    Raises:
        LmscoutError: the text is too short, or a loss is not finite.
    """
    units = calibrated.shape
    sizes = [_rows(calibrated, *one) for one in zip(budgets, winners, strict=True)]
    wanted = list(
        dict.fromkeys([(units.dense, False), *(row[1:] for rows in sizes for row in rows)])
    )
    increases = _loss_increases(calibrated, wanted)
    known: dict[tuple[Plan, bool], tuple[int, Perplexity | None]] = {}
    if dense is not None:
        known[units.dense, False] = parameter_count(calibrated.model), dense
    for plan, compensated in wanted:
        if (plan, compensated) in known:
            continue
        smaller = cut(calibrated.model, plan, calibrated.compensated(plan) if compensated else None)
        known[plan, compensated] = parameter_count(smaller), on.perplexity(smaller)
        if progress:
            progress(len(known), len(wanted))

    def row(name: str, plan: Plan, compensated: bool, budget: Budget | None = None) -> Reported:
        params, found = known[plan, compensated]
        cost = 1.0
        if budget is not None:
            kept, dense = budget.cost(as_rows([plan, units.dense]))
            cost = float(kept / dense)
        all_params, _ = known[units.dense, False]
        return Reported(
            name,
            plan,
            params,
            units.kept_share(plan),
            cost,
            found,
            kept_of_all=params / all_params,
            loss_increase=increases[plan, compensated],
        )

    return row("dense", units.dense, False), [
        tuple(row(*one, budget) for one in rows)
        for rows, budget in zip(sizes, budgets, strict=True)
    ]


def held_out_increase(
    model: PreTrainedModel, calibrated: Calibrated, trained_on: torch.Tensor
) -> float | None:
    """Loss increase of a model that was trained, on calibration windows kept for finalists.

    Args:
        model: a cut model after recovery.
        calibrated: the dense model and the text.
        trained_on: [windows, T] of the recovery.

    Returns:
        Nats/token over the dense model; None where the training has seen one of the windows.
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
    increase = total / held_out_tokens(calibrated) - dense_nll
    return increase if math.isfinite(increase) else math.inf


def held_out_tokens(calibrated: Calibrated) -> int:
    """Predicted tokens on which loss increases are reported."""
    return calibrated.final.numel() - len(calibrated.final)


def _loss_increases(
    calibrated: Calibrated, models: Sequence[tuple[Plan, bool]]
) -> dict[tuple[Plan, bool], float]:
    """Loss increases on the windows kept for finalists, nats/token; infinite where there is none.

    Args:
        calibrated: the dense model and the text.
        models: plans, and whether output projections are compensated.
    """
    whole = replace(calibrated, settings=replace(calibrated.settings, quality=LIKELIHOOD))
    plain = replace(
        whole, compensation=None, copies=tuple((model, None) for model, _ in whole.copies)
    )
    found = {}
    for compensated, one in ((False, plain), (True, whole)):
        plans = order_for_prefix_sharing([plan for plan, own in models if own == compensated])
        if plans:
            measured = one.evaluator(calibrated.final).measure(plans)
            for plan, each in zip(plans, measured, strict=True):
                found[plan, compensated] = (
                    each.loss_increase if math.isfinite(each.loss_increase) else math.inf
                )
    return found


def _rows(calibrated: Calibrated, budget: Budget, winner: Plan) -> list[tuple[str, Plan, bool]]:
    """Names, plans, and whether output projections are compensated."""
    units = calibrated.shape
    level = uniform(units, Ranges.above(units, 0.0), budget)
    compensate = calibrated.settings.compensate
    rows = [("uniform", level, False)]
    if compensate:
        rows.append(("uniform_compensated", level, True))
    protected = Ranges.above(units, 0.0).protected(units)
    if protected.can_meet(budget):
        rows.append(("uniform_guarded", uniform(units, protected, budget), False))
    rows.append(("found", winner, compensate))
    if compensate:
        rows.append(("found_plain", winner, False))
    return rows
