"""Elastic recovery: one adapter for all plans.

One low-rank adapter for all plans of a dense model.

What an adapter adds to a matrix is B A.  Its first rows are those of B, its first columns those
of A; so the adapter of a plan's prefix is a prefix of the adapter, and adding B A to the dense
weights gives weights of which every prefix is adapted.

Elastic recovery: one adapter for all plans, so that plans are ranked as they will be used.

At every step a plan is drawn and the adapter's prefix for it is trained, as LoNAS does (Muñoz,
Yuan, Zheng and Jain, LREC-COLING 2024).  Merged into the dense weights, the adapter has recovered
every plan at once; what is measured of plans after that is what a user gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation import Perplexity
from lmscout.metrics.correlation import kendall
from lmscout.progress import StageProgress
from lmscout.pruning.budgets import Budget
from lmscout.pruning.calibration import Calibrated, calibrate_again, text_digest
from lmscout.pruning.evaluator import Evaluator
from lmscout.pruning.families import Affine, AttentionParts, Family, MlpParts, unit_maps
from lmscout.pruning.moments import half_step
from lmscout.pruning.plan import Plan
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.recovery.config import DISTILL, RecoverySettings
from lmscout.pruning.recovery.training import (
    Trained,
    apart_from,
    divergence_loss,
    likelihood_loss,
    read_adapter,
    train,
    weights_digest,
)
from lmscout.pruning.sampler import order_for_prefix_sharing, propose
from lmscout.pruning.space import PlanSpace
from lmscout.statistics.single_pass import train_only


@dataclass(frozen=True)
class LowRank(Affine):
    """A linear map with its adapter.

    Attributes:
        down: [rank, in], A.
        up: [out, rank], B.
    """

    down: Tensor
    up: Tensor

    def rows(self, count: int) -> LowRank:
        """The first outputs alone."""
        first = super().rows(count)
        return LowRank(first.weight, first.bias, self.down, self.up[:count])

    def columns(self, count: int) -> LowRank:
        """The first inputs alone."""
        return LowRank(self.weight[:, :count], self.bias, self.down[:, :count], self.up)

    def apply(self, x: Tensor) -> Tensor:
        """The map and what the adapter adds."""
        narrow = functional.linear(x.to(self.down.dtype), self.down)
        return super().apply(x) + functional.linear(narrow, self.up).to(x.dtype)


class ElasticAdapter:
    """Adapters of every matrix whose sides follow units.

    Attributes:
        weights: what learns, by name; float32 or wider.
        vocabulary: how many logits a token has.
    """

    def __init__(self, model: PreTrainedModel, family: Family, rank: int, seed: int) -> None:
        """Adapters that add nothing yet.

        Args:
            model: the dense model, its units in final order; its own weights do not learn.
            family: its family.
            rank: of the adapters.
            seed: of the first half, A; B starts at 0.
        """
        self._model, self._family = model, family
        self.vocabulary: int = model.config.vocab_size
        self._blocks = list(family.blocks(model))
        self._sublayers = family.all_sublayers(model)
        self.weights: dict[str, nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed)
        for (index, kind), part in self._sublayers.items():
            for number, one in enumerate(unit_maps(part)):
                out, entries = one.weight.shape
                wide = torch.promote_types(one.weight.dtype, torch.float32)
                down = torch.randn(rank, entries, generator=generator) / entries**0.5
                up = torch.zeros(out, rank)
                name = f"{index}.{kind}.{number}"
                self.weights[f"{name}.down"] = nn.Parameter(down.to(one.weight.device, wide))
                self.weights[f"{name}.up"] = nn.Parameter(up.to(one.weight.device, wide))

    def hidden(self, plan: Plan, tokens: Tensor) -> Tensor:
        """The last hidden state of an adapted plan, with its gradient: [B, T, width]."""
        return self._walk(plan.steps, tokens, adapted=True)

    @torch.no_grad()
    def dense_hidden(self, tokens: Tensor) -> Tensor:
        """That of the dense model as it is."""
        return self._walk([part.units for part in self._sublayers.values()], tokens, adapted=False)

    def head(self, hidden: Tensor) -> Tensor:
        """Last hidden states to logits."""
        return self._family.logits(self._model, hidden)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapters to the dense weights, in place, one matrix at a time."""
        for (index, kind), part in self._sublayers.items():
            for number, one in enumerate(unit_maps(part)):
                down, up = self._pair(index, kind, number)
                one.weight.copy_(one.weight.to(down.dtype) + up @ down)

    def _walk(self, steps: Sequence[int], tokens: Tensor, *, adapted: bool) -> Tensor:
        hidden = self._family.embed(self._model, tokens)
        context = self._family.context(self._model, hidden)
        for ((index, kind), whole), units in zip(self._sublayers.items(), steps, strict=True):
            if units:
                part = self._adapted(index, kind, whole) if adapted else whole
                block = self._blocks[index]
                hidden = half_step(self._family, block, part.first(units), hidden, context)
        return hidden

    def _adapted(
        self, index: int, kind: str, part: AttentionParts | MlpParts
    ) -> AttentionParts | MlpParts:
        """The matrices of attention or MLP, each with its adapter."""
        return part.with_maps(
            LowRank(one.weight, one.bias, *self._pair(index, kind, number))
            for number, one in enumerate(unit_maps(part))
        )

    def _pair(self, index: int, kind: str, number: int) -> tuple[Tensor, Tensor]:
        name = f"{index}.{kind}.{number}"
        return self.weights[f"{name}.down"], self.weights[f"{name}.up"]


SETTING = "elastic"  # of a study whose pairs were measured afterwards
_DRAWN = 256  # plans that are trained in turn
_DENSE_EVERY = 8  # steps, of which one trains the whole
_JUDGED = 24  # plans of a size, by which its order before and after is compared
_FOR_TRAINING, _FOR_JUDGING = 101, 102  # with the run's seed, so that no round draws the same


@dataclass(frozen=True)
class OrderChange:
    """How elastic recovery changed the order of the plans of one size.

    Attributes:
        keep: the size.
        kendall: τ-b between the rises of the same plans before and after.
        before: rises over the dense model, nats a token.
        after: rises over the dense model as it was before.
    """

    keep: float
    kendall: float
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def words(self) -> str:
        """In one sentence."""
        return (
            f"keep {self.keep:g}: the order of {len(self.before)} plans before and after elastic "
            f"recovery has a Kendall τ of {self.kendall:.2f}; their mean rise went from "
            f"{np.mean(self.before):.3f} to {np.mean(self.after):.3f} nats a token"
        )

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return {
            "keep": self.keep,
            "kendall": None if np.isnan(self.kendall) else self.kendall,
            "before": list(self.before),
            "after": list(self.after),
        }


@dataclass(frozen=True)
class Elastic:
    """What an elastic recovery did.

    Attributes:
        trained: the training.
        orders: for every size, how the order of plans changed.
        as_given: perplexity of the dense model before it; None without a report text.
    """

    trained: Trained
    orders: tuple[OrderChange, ...]
    as_given: Perplexity | None = None

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return {**self.trained.to_json(), "orders": [one.to_json() for one in self.orders]}


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

    Windows on which plans are measured are not trained on.

    Args:
        calibrated: the dense model, which is changed in place.
        windows: [windows, T] int64, the text.
        space: draws plans.
        sizes: budgets that plans are drawn for, by the share that is kept.
        settings: how, and for how long.
        checkpoint: file from which a training goes on.
        progress: called with steps made and allowed.

    Returns:
        The recovered model, calibrated anew; rises stay those over the dense model as it was.
        And what was done.

    Raises:
        LmscoutError: the text is that on which plans are measured and no more, the checkpoint
            does not fit, or the loss is not finite.
    """
    windows = _unmeasured(windows, calibrated)
    judged = [
        order_for_prefix_sharing(drawn_plans(calibrated, space, [one], _JUDGED, _FOR_JUDGING))
        for one in sizes.values()
    ]
    evaluator = calibrated.evaluator(calibrated.measured)
    references = {
        text_digest(calibrated.measured): evaluator.references,
        text_digest(calibrated.final): calibrated.evaluator(calibrated.final).references,
    }
    before = [_loss_increases(evaluator, plans) for plans in judged]
    adapter, trained = train_all_plans(
        calibrated, windows, space, sizes, settings, checkpoint, progress=progress
    )
    adapter.merge()
    words = f"{settings.words(windows.shape[1])}, {_adapter_words(adapter.weights)}"
    recovered = calibrate_again(calibrated, references, {SETTING: words})
    evaluator = recovered.evaluator(recovered.measured)
    after = [_loss_increases(evaluator, plans) for plans in judged]
    orders = tuple(
        OrderChange(keep, kendall(two, one), tuple(one), tuple(two))
        for keep, one, two in zip(sizes, before, after, strict=True)
    )
    return recovered, Elastic(trained, orders)


def merge_trained(calibrated: Calibrated, checkpoint: Path, words: str) -> None:
    """Merge what a run has trained for all plans into the dense model, in place.

    Args:
        calibrated: the dense model as it was before, calibrated as it was then.
        checkpoint: the run's file.
        words: what the settings of its study say of the adapter.

    Raises:
        LmscoutError: the file is not there, or damaged, or holds another adapter.
    """
    identity, weights = read_adapter(checkpoint)
    if not words.endswith(_adapter_words(weights)):
        raise LmscoutError(
            f"recovery {checkpoint}: is not the adapter with which the study's pairs were "
            "measured; put that one in its place"
        )
    rank, seed = (int(identity[name] or 0) for name in ("rank", "seed"))
    adapter = ElasticAdapter(calibrated.model, calibrated.family, rank, seed)
    for name, one in adapter.weights.items():
        one.data.copy_(weights[name])
    adapter.merge()


def drawn_plans(
    calibrated: Calibrated, space: PlanSpace, budgets: Sequence[Budget], count: int, number: int
) -> list[Plan]:
    """Distinct plans that cover what a search of some sizes may look at.

    Args:
        calibrated: the dense model.
        space: draws them.
        budgets: the sizes, each with an equal part of the plans.
        count: how many; fewer where there are no more.
        number: with the seed of `calibrated` this says which.
    """
    proposals = propose(
        space,
        [Target(budget, Ranges.above(calibrated.shape)) for budget in budgets],
        count=count,
        seed=calibrated.seed + (number << 32),
        round_=0,
        pairs=(),
        predictor=None,
    )
    return [one.plan for one in proposals]


def train_all_plans(
    calibrated: Calibrated,
    windows: Tensor,
    space: PlanSpace,
    sizes: Mapping[float, Budget],
    settings: RecoverySettings,
    checkpoint: Path,
    *,
    progress: StageProgress | None = None,
) -> tuple[ElasticAdapter, Trained]:
    """The training alone: nothing is merged, and no plan is measured.

    Args:
        calibrated: as for `recover_all_plans`, and so are the others.
        windows: [windows, T] int64, the text.
        space: draws plans.
        sizes: budgets that plans are drawn for.
        settings: how, and for how long.
        checkpoint: file from which a training goes on.
        progress: called with steps made and allowed.

    Raises:
        LmscoutError: as `recover_all_plans`.
    """
    windows = _unmeasured(windows, calibrated)
    model = calibrated.model
    drawn = drawn_plans(calibrated, space, list(sizes.values()), _DRAWN, _FOR_TRAINING)
    turns = np.random.default_rng([settings.seed, _FOR_TRAINING]).permutation(len(drawn))
    plans = [drawn[turn] for turn in turns]
    adapter = ElasticAdapter(model, calibrated.family, settings.rank, settings.seed)

    def loss_of(step: int, tokens: Tensor) -> Tensor:
        whole = step % _DENSE_EVERY == _DENSE_EVERY - 1
        plan = calibrated.shape.dense if whole else plans[step % len(plans)]
        return plan_loss(adapter, plan, tokens, settings.method)

    identity = {
        **calibrated.study_settings,
        **settings.identity(),
        "text": text_digest(windows),
        "sizes": ", ".join(repr(float(keep)) for keep in sizes),
        "plans": f"{space.name}, {len(plans)} drawn",
    }
    with train_only(model, ()):
        trained = train(
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
    """What a step on a plan minimises.

    Args:
        adapter: of all plans.
        plan: whose prefix of it learns.
        tokens: [B, T] int64.
        method: as in `RecoverySettings`.
    """
    hidden = adapter.hidden(plan, tokens)
    if method != DISTILL:
        return likelihood_loss(adapter.head, hidden, tokens, adapter.vocabulary)
    theirs = adapter.dense_hidden(tokens)
    return divergence_loss(adapter.head, hidden, adapter.head, theirs, adapter.vocabulary)


def _unmeasured(windows: Tensor, calibrated: Calibrated) -> Tensor:
    """Windows on which no plan is measured."""
    left = apart_from(windows, calibrated.measured, calibrated.final)
    if not len(left):
        raise LmscoutError(
            "elastic recovery: the text holds nothing but what plans are measured on; give a "
            "longer one with --recover-text"
        )
    return left


def _adapter_words(weights: Mapping[str, Tensor]) -> str:
    return f"adapter {weights_digest(weights)}"


def _loss_increases(evaluator: Evaluator, plans: Sequence[Plan]) -> list[float]:
    return [one.loss_increase for one in evaluator.measure(plans)]
