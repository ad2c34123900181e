"""Elastic recovery: one low-rank adapter for all plans of a dense model.

An adapter adds B A to a matrix.  The first rows of the sum follow from the first rows of B, its
first columns from those of A, so the adapter of a plan's prefix is a prefix of the adapter.  Every
step draws a plan and trains the adapter's prefix for it, as LoNAS does (Muñoz, Yuan, Zheng and
Jain, LREC-COLING 2024).  Merged into the dense weights, the adapter has recovered every plan:
plans are then measured as they will be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation import Perplexity
from lmscout.evaluation.text import without_codes
from lmscout.metrics import kendall
from lmscout.progress import StageProgress
from lmscout.pruning.budgets import Budget
from lmscout.pruning.calibration import Calibrated, text_digest
from lmscout.pruning.evaluator import Evaluator
from lmscout.pruning.families import Affine, Family, Place
from lmscout.pruning.plan import Plan
from lmscout.pruning.ranges import Target
from lmscout.pruning.recovery import training
from lmscout.pruning.recovery.training import DISTILL, RecoverySettings
from lmscout.pruning.sampler import order_for_prefix_sharing, propose
from lmscout.pruning.space import PlanSpace
from lmscout.statistics.single_pass import train_only

SETTING = "elastic"  # of a study whose pairs were measured after elastic recovery
_TRAINED_PLANS = 256  # trained in turn
_DENSE_EVERY = 8  # steps, one of which trains the dense plan
_COMPARED_PLANS = 24  # of a size, whose order before and after is compared
_TRAINING_DRAW, _COMPARISON_DRAW = 101, 102  # with the run's seed; rounds have lower numbers


@dataclass(frozen=True, kw_only=True)
class LowRank(Affine):
    """A linear map with its adapter."""

    down: Tensor  # [rank, in], A
    up: Tensor  # [out, rank], B

    def rows(self, count: int) -> LowRank:
        """The first outputs only."""
        return replace(super().rows(count), up=self.up[:count])

    def columns(self, count: int) -> LowRank:
        """The first inputs only."""
        return replace(super().columns(count), down=self.down[:, :count])

    def linear(self, x: Tensor) -> Tensor:
        """The map and the adapter."""
        narrow = functional.linear(x.to(self.down.dtype), self.down)
        return super().linear(x) + functional.linear(narrow, self.up).to(x.dtype)


class ElasticAdapter:
    """Adapters, `weights` by name, of every matrix whose rows or columns follow units."""

    def __init__(self, model: PreTrainedModel, family: Family, rank: int, seed: int) -> None:
        """Make adapters of a dense model, with A drawn by the seed and B = 0."""
        self._model, self._family = model, family
        self.vocabulary: int = model.config.vocab_size
        self._sublayers = family.all_sublayers(model)
        self._places = [place for place, one in self._sublayers.items() if one.units]
        self.weights: dict[str, nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed)
        for block, kind in self._places:
            for number, one in enumerate(self._sublayers[block, kind].maps):
                out, entries = one.weight.shape
                wide = torch.promote_types(one.weight.dtype, torch.float32)
                down = torch.randn(rank, entries, generator=generator) / entries**0.5
                for name, value in (("down", down), ("up", torch.zeros(out, rank))):
                    parameter = nn.Parameter(value.to(one.weight.device, wide))
                    self.weights[f"{block}.{kind}.{number}.{name}"] = parameter

    def hidden(self, plan: Plan, tokens: Tensor, *, adapted: bool = True) -> Tensor:
        """The last hidden state of a plan, with adapters and their gradient: [B, T, width]."""
        hidden = self._family.embed(self._model, tokens)
        context = self._family.context(self._model, hidden)
        for (place, sublayer), units in zip(self._sublayers.items(), plan.steps, strict=True):
            if units:
                used = sublayer.with_maps(self._adapted_maps(place)) if adapted else sublayer
                hidden = used.first(units).step(hidden, context)
        return hidden

    @torch.no_grad()
    def dense_hidden(self, tokens: Tensor) -> Tensor:
        """The last hidden state of the dense model without adapters."""
        units = [one.units for one in self._sublayers.values()]
        return self.hidden(Plan(tuple(units[::2]), tuple(units[1::2])), tokens, adapted=False)

    def head(self, hidden: Tensor) -> Tensor:
        """Last hidden states to logits."""
        return self._family.logits(self._model, hidden)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapters to the dense weights, in place, one matrix at a time."""
        for place in self._places:
            for one in self._adapted_maps(place):
                one.weight.copy_(one.weight.to(one.down.dtype) + one.up @ one.down)

    def _adapted_maps(self, place: Place) -> Iterator[LowRank]:
        for number, one in enumerate(self._sublayers[place].maps):
            name = f"{place[0]}.{place[1]}.{number}"
            down, up = self.weights[f"{name}.down"], self.weights[f"{name}.up"]
            yield LowRank(one.weight, one.bias, one.norm, down=down, up=up)


@dataclass(frozen=True)
class OrderChange:
    """How elastic recovery changed the order of the plans of one size."""

    keep: float  # the size
    kendall: float  # τ-b between the loss increases of the same plans before and after
    before: tuple[float, ...]  # loss increases over the dense model, in nats/token
    after: tuple[float, ...]  # loss increases over the dense model as it was before

    @property
    def words(self) -> str:
        """The change in one sentence."""
        return (
            f"keep {self.keep:g}: the order of {len(self.before)} plans before and after elastic "
            f"recovery has a Kendall τ of {self.kendall:.2f}; their mean loss increase went from "
            f"{np.mean(self.before):.3f} to {np.mean(self.after):.3f} nats/token"
        )


@dataclass(frozen=True)
class Elastic:
    """Summary of an elastic recovery."""

    trained: training.Trained
    orders: tuple[OrderChange, ...]  # for every size, how the order of plans changed
    as_given: Perplexity | None = None  # of the dense model before it; None without a text


def recover_all_plans(
    calibrated: Calibrated,
    windows: Tensor,
    space: PlanSpace,
    sizes: Mapping[float, Budget],
    settings: RecoverySettings,
    checkpoint: Path,
    *,
    progress: StageProgress | None = None,
) -> tuple[Calibrated, Elastic]:
    """Train one adapter for all plans and merge it into the dense weights.

    Windows on which plans are measured are not trained on.  `sizes` are the budgets of the trained
    plans, by the share that is kept; other arguments are those of `train`.

    Returns:
        The recovered model with new moments, whose loss increases are over the dense model as it
        was; and a summary.

    Raises:
        LmscoutError: all of the text is measured on, the checkpoint does not fit, or the loss is
            not finite.
    """
    _unmeasured(windows, calibrated)
    drawn = [
        drawn_plans(calibrated, space, [one], _COMPARED_PLANS, _COMPARISON_DRAW)
        for one in sizes.values()
    ]
    compared = [order_for_prefix_sharing(plans) for plans in drawn]
    evaluator = calibrated.evaluator(calibrated.measured)
    references = {
        text_digest(calibrated.measured): evaluator.references,
        text_digest(calibrated.final): calibrated.evaluator(calibrated.final).references,
    }
    before = [_loss_increases(evaluator, plans) for plans in compared]
    adapter, trained = train_all_plans(
        calibrated, windows, space, sizes, settings, checkpoint, progress=progress
    )
    adapter.merge()
    words = f"{settings.words(windows.shape[1])}, {training.weights_digest(adapter.weights)}"
    recovered = calibrated.recalibrated(references, {SETTING: words})
    evaluator = recovered.evaluator(recovered.measured)
    after = [_loss_increases(evaluator, plans) for plans in compared]
    orders = tuple(
        OrderChange(keep, kendall(new, old), old, new)
        for keep, old, new in zip(sizes, before, after, strict=True)
    )
    return recovered, Elastic(trained, orders)


def merge_trained(calibrated: Calibrated, checkpoint: Path, words: str) -> None:
    """Merge the adapter in an earlier run's checkpoint into the dense model, in place.

    `words` is what the settings of the run's study say of it; LmscoutError for another adapter.
    """
    state = training.read_state(checkpoint)
    if not words.endswith(training.weights_digest(state.weights)):
        raise LmscoutError(
            f"recovery {checkpoint}: is not the adapter with which the study's pairs were "
            "measured; put that one in its place"
        )
    rank, seed = (int(state.identity[name] or 0) for name in ("rank", "seed"))
    adapter = ElasticAdapter(calibrated.model, calibrated.family, rank, seed)
    for name, one in adapter.weights.items():
        one.data.copy_(state.weights[name])
    adapter.merge()


def drawn_plans(
    calibrated: Calibrated, space: PlanSpace, budgets: Sequence[Budget], count: int, number: int
) -> list[Plan]:
    """Distinct plans of some sizes, in equal parts, fewer if there are no more."""
    targets = [Target(budget, space.ranges) for budget in budgets]
    seed = calibrated.seed + (number << 32)
    return [one.plan for one in propose(space, targets, count=count, seed=seed, round_=0)]


def train_all_plans(
    calibrated: Calibrated,
    windows: Tensor,
    space: PlanSpace,
    sizes: Mapping[float, Budget],
    settings: RecoverySettings,
    checkpoint: Path,
    *,
    progress: StageProgress | None = None,
) -> tuple[ElasticAdapter, training.Trained]:
    """The training of `recover_all_plans` alone: nothing is merged, and no plan is measured."""
    windows = _unmeasured(windows, calibrated)
    model = calibrated.model
    drawn = drawn_plans(calibrated, space, list(sizes.values()), _TRAINED_PLANS, _TRAINING_DRAW)
    order = np.random.default_rng([settings.seed, _TRAINING_DRAW]).permutation(len(drawn))
    plans = [drawn[number] for number in order]
    adapter = ElasticAdapter(model, calibrated.family, settings.rank, settings.seed)

    def loss_of(step: int, tokens: Tensor) -> Tensor:
        dense = step % _DENSE_EVERY == _DENSE_EVERY - 1
        plan = calibrated.shape.dense if dense else plans[step % len(plans)]
        return plan_loss(adapter, plan, tokens, settings.method)

    identity = {
        **calibrated.study_settings,
        **settings.identity(),
        "text": text_digest(windows),
        "sizes": ", ".join(repr(float(keep)) for keep in sizes),
        "plans": f"{space.name}, {len(plans)} drawn",
    }
    with train_only(model, ()):
        trained = training.train(
            adapter.weights,
            loss_of,
            windows,
            settings,
            checkpoint,
            identity,
            device=model.device,
            dtype=model.dtype,
            progress=progress,
        )
    return adapter, trained


def plan_loss(adapter: ElasticAdapter, plan: Plan, tokens: Tensor, method: str) -> Tensor:
    """The loss of a plan on tokens [B, T], by the method of `RecoverySettings`."""
    plain, head, vocabulary = without_codes(tokens), adapter.head, adapter.vocabulary
    hidden = adapter.hidden(plan, plain)
    if method != DISTILL:
        return training.likelihood_loss(head, hidden, tokens, vocabulary)
    target = adapter.dense_hidden(plain)
    return training.divergence_loss(head, hidden, head, target, vocabulary, tokens)


def _unmeasured(windows: Tensor, calibrated: Calibrated) -> Tensor:
    """Windows on which no plan is measured."""
    left = training.apart_from(windows, calibrated.measured, calibrated.final)
    if not len(left):
        raise LmscoutError(
            "elastic recovery: the text holds nothing but what plans are measured on; give a "
            "longer recover text"
        )
    return left


def _loss_increases(evaluator: Evaluator, plans: Sequence[Plan]) -> tuple[float, ...]:
    return tuple(one.loss_increase for one in evaluator.measure(plans))
