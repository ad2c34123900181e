"""Models of one size side by side: cut as they would be saved, measured on the report text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmscout.errors import LmscoutError
from lmscout.evaluation import Perplexity, Text, checked_tokens, parameter_count, perplexity
from lmscout.pruning.calibration import Calibrated
from lmscout.pruning.outcome import Reported
from lmscout.pruning.saving.cutting import cut, round_weights
from lmscout.pruning.saving.reload_saved import check_logits
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.ranges import Ranges, uniform
from lmscout.pruning.subnetworks.plan import Plan
from lmscout.pruning.subnetworks.plan_arrays import as_rows
from lmscout.stages import StageProgress


@dataclass(frozen=True)
class ReportText:
    """On what perplexities are reported, and of which weights.

    Attributes:
        tokenizer: the model's.
        text: the text; None to report none.
        protocol: of the perplexity.
        dtype: that saved weights have.
    """

    tokenizer: PreTrainedTokenizerBase
    text: Text | None
    protocol: str
    dtype: torch.dtype

    def check(self, model: PreTrainedModel) -> None:
        """Refuse, before anything is measured, a text or protocol that has no perplexity.

        Raises:
            LmscoutError: the protocol's window is longer than the model reads, the text is
                shorter than one, or the tokenizer is not the model's.
        """
        if self.text is not None:
            checked_tokens(model, self.tokenizer, self.text, self.protocol)

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
        return perplexity(model, self.tokenizer, self.text, self.protocol)

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
        on: on what perplexities are reported; without a text, parameters are counted alone.
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
    known: dict[tuple[Plan, bool], tuple[int, Perplexity | None]] = {}
    if dense is not None:
        known[units.dense, False] = parameter_count(calibrated.model), dense
    for plan, refit in wanted:
        if (plan, refit) in known:
            continue
        smaller = cut(calibrated.model, plan, calibrated.refitted(plan) if refit else None)
        known[plan, refit] = parameter_count(smaller), on.perplexity(smaller)
        if progress:
            progress(len(known), len(wanted))

    def row(name: str, plan: Plan, refit: bool, budget: Budget | None = None) -> Reported:
        params, found = known[plan, refit]
        cost = 1.0
        if budget is not None:
            kept, dense = budget.cost(as_rows([plan, units.dense]))
            cost = float(kept / dense)
        return Reported(name, plan, params, units.kept_share(plan), cost, found)

    return row("dense", units.dense, False), [
        tuple(row(*one, budget) for one in rows)
        for rows, budget in zip(sizes, budgets, strict=True)
    ]


def _rows(calibrated: Calibrated, budget: Budget, winner: Plan) -> list[tuple[str, Plan, bool]]:
    """Names, plans, and whether output projections are refitted."""
    units = calibrated.shape
    level = uniform(units, Ranges.above(units, 0.0), budget)
    compensate = calibrated.settings.compensate
    rows = [("uniform", level, False)]
    if compensate:
        rows.append(("uniform_compensated", level, True))
    guarded = Ranges.above(units, 0.0).guarded(units)
    if guarded.can_meet(budget):
        rows.append(("uniform_guarded", uniform(units, guarded, budget), False))
    rows.append(("found", winner, compensate))
    if compensate:
        rows.append(("found_plain", winner, False))
    return rows
