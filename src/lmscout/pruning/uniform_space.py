"""The space of uniform plans, and the choice of a space for a model.

Uniform plans: proposed for measuring, and searched, for models that are saved as plain ones.

What `proposals` and `search` do for blocks of any size.  There are few of these plans: where
they can be listed, all are predicted; else many are drawn, and the best of them are improved
step by step.

In which set of plans a model is searched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedConfig, PreTrainedModel

from lmscout.pruning.budgets import Budget
from lmscout.pruning.plan import Floats, Plan, Rows, Shape, as_plans, as_rows, unseen
from lmscout.pruning.ranges import best_of
from lmscout.pruning.sampler import (
    ELITE,
    NEAR,
    PARENTS,
    PROMISING,
    UNSURE,
    Calls,
    Chosen,
    PredictsLoss,
    Proposal,
    Target,
    sharing_order,
)
from lmscout.pruning.search import Candidate, Predict
from lmscout.pruning.space import AlignedSpace, AnySpace, PlanSpace
from lmscout.pruning.study import Pair
from lmscout.pruning.uniform_plans import UniformChoices, UniformPlans, UniformSize

T = TypeVar("T")

_LISTED = 20_000  # plans that are predicted one and all; of more, so many are drawn
_CLIMBS = 20  # most steps from the best of those drawn
_CLIMBERS = 10  # best predicted plans from which a step goes


class UniformSpace:
    """The uniform plans of one model; a `PlanSpace` in which ranges mean nothing."""

    narrows: ClassVar[bool] = False

    def __init__(self, shape: Shape, config: PreTrainedConfig) -> None:
        """Find out which widths the family has plain models of.

        Args:
            shape: of the dense model.
            config: the dense model's.

        Raises:
            LmscoutError: the model has no plain form.
        """
        self._choices = UniformChoices.of(shape, config)

    def sizes(self, budget: Budget) -> tuple[UniformSize, ...]:
        """All sizes that use a budget up.

        Raises:
            LmscoutError: there is none; it names the nearest budget that can be met.
        """
        return self._choices.sizes(budget)

    def require(self, budget: Budget) -> None:
        """Refuse a budget that no uniform plan meets.

        Raises:
            LmscoutError: it names the nearest that can be met.
        """
        self._choices.sizes(budget)

    def meets(self, rows: Rows, budget: Budget) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] are uniform and use a budget up, [n].

        `ranges.meets` is stricter in small models, where a channel in every block is more
        than a budget's slack.
        """
        return self._plans(budget).holds(rows)

    def best_pairs(self, pairs: Sequence[Pair], budget: Budget, count: int) -> list[Pair]:
        """The best whole pairs whose plans are of this space and meet a budget, best first."""
        return best_of(pairs, self._plans(budget).holds, count)

    def propose(
        self,
        targets: Sequence[Target],
        *,
        count: int,
        seed: int,
        round_: int,
        pairs: Sequence[Pair] = (),
        predictor: PredictsLoss | None = None,
        waiting: Collection[Plan] = (),
        beside: Calls | None = None,
    ) -> list[Proposal]:
        """Plans for one round, in the order in which to measure them.

        Round 0 goes through all sizes in turn, dropping runs of blocks ("tied") and blocks
        here and there ("free").  Later rounds measure the best predicted, plans a step away
        from the best measured, and hopeful ones about which the predictor is unsure.

        Args:
            targets: sizes that the study is to serve; each gets an equal part of the round.
                Their ranges are not looked at.
            count: of proposals; fewer come back where there are no more plans.
            seed: of the run.
            round_: from 0.
            pairs: the study's; those of this round and later ones are not looked at.
            predictor: fitted on the pairs of earlier rounds.
            waiting: plans that are being measured, and not proposed again.
            beside: not asked; so few plans are quickly searched.

        Returns:
            Distinct plans, none of an earlier round's; those that begin alike are neighbours.

        Raises:
            LmscoutError: no uniform plan meets a target's budget.
        """
        every = [self._plans(target.budget) for target in targets]
        earlier = [pair for pair in pairs if pair.round < round_]
        known = {*waiting, *(pair.plan for pair in earlier)}
        proposals: list[Proposal] = []
        for index, plans in enumerate(every):
            part = count // len(every) + (index < count % len(every))
            rng = np.random.default_rng([seed, round_, index])
            if round_ == 0 or predictor is None:
                found = _covering(plans, part, known, rng)
            else:
                best = best_of(earlier, plans.holds, ELITE)
                elsewhere = [
                    pair.plan
                    for other in every
                    if other is not plans
                    for pair in best_of(earlier, other.holds, PARENTS)
                ]
                begin = [*(pair.plan for pair in best), *elsewhere]
                found = _promising(plans, part, known, rng, predictor, begin)
            proposals += found
            known |= {one.plan for one in found}
        order = sharing_order(as_rows([one.plan for one in proposals]))
        return [proposals[place] for place in order]

    def search(
        self,
        predict: Predict,
        target: Target,
        *,
        seed: int,
        count: int = 10,
        begin: Sequence[Plan] = (),
    ) -> list[Candidate]:
        """The best plans of one size, by prediction.

        Args:
            predict: rises of plans, [n, 2L] to [n], such as `Predictor.cautious`.
            target: whose budget plans meet; its ranges are not looked at.
            seed: of draws, where there are too many plans to predict all.
            count: of candidates wanted; fewer come back where there are no more plans.
            begin: plans to begin from, such as the best measured; those of other sizes lend
                the blocks that they drop.

        Returns:
            Distinct, best first.

        Raises:
            LmscoutError: no uniform plan meets the budget.
        """
        plans = self._plans(target.budget)
        rng = np.random.default_rng([seed, 4])
        rows, loss_increases = _predicted(plans, plans.moved(begin), predict, rng)
        rows, loss_increases = rows[:count], loss_increases[:count]
        costs = target.budget.cost(rows)
        return [
            Candidate(plan, float(loss_increase), float(cost))
            for plan, loss_increase, cost in zip(as_plans(rows), loss_increases, costs, strict=True)
        ]

    def _plans(self, budget: Budget) -> UniformPlans:
        return UniformPlans(self._choices.depth, self._choices.sizes(budget))


def _covering(
    plans: UniformPlans, count: int, known: set[Plan], rng: np.random.Generator
) -> list[Proposal]:
    """A plan of each size in turn, sizes in random order, until there are enough."""
    chosen = Chosen(known)
    waiting = []
    for turn, place in enumerate(rng.permutation(len(plans.sizes))):
        size = plans.sizes[place]
        adjacent, others = plans.of_size(size, count + len(known), rng)
        name = "tied" if size.dropped else "uniform"
        both = [[(name, row) for row in adjacent], [("free", row) for row in others]]
        waiting.append(list(_in_turn(*(both if turn % 2 else both[::-1]))))
    for origin, row in _in_turn(*waiting):
        if len(chosen.proposals) == count:
            break
        chosen.take(row[None], origin, 1)
    return chosen.proposals


def _promising(
    plans: UniformPlans,
    count: int,
    known: set[Plan],
    rng: np.random.Generator,
    predictor: PredictsLoss,
    begin: Sequence[Plan],
) -> list[Proposal]:
    """The best predicted, those a step away from the best measured, and the unsure."""
    chosen = Chosen(known)
    start = plans.moved(begin)
    rows, loss_increases = _predicted(plans, start, predictor.cautious, rng)
    unsure, near = round(UNSURE * count), round(NEAR * count)
    chosen.take(rows, "found", count - unsure - near)
    beside = plans.near(start[:PARENTS] if len(start) else rows[:PARENTS])
    if len(beside):
        beside = beside[np.argsort(predictor.cautious(beside), kind="stable")]
    chosen.take(beside, "near", near)
    promising = loss_increases - PROMISING * predictor.spread(rows)
    chosen.take(rows[np.argsort(promising, kind="stable")], "unsure", unsure)
    chosen.take(rows, "found", count - len(chosen.proposals))
    return chosen.proposals


def _predicted(
    plans: UniformPlans, start: Rows, predict: Predict, rng: np.random.Generator
) -> tuple[Rows, Floats]:
    """Distinct plans with their predicted rises, best first: all there are, or many.

    Where there are too many to predict all, the best of those drawn are replaced by the best
    of what is a step away from them, as long as that helps.
    """
    if plans.count <= _LISTED:
        rows = plans.every()
        return _best_first(rows, predict(rows))
    seen: set[bytes] = set()
    rows = np.concatenate([start, plans.drawn(_LISTED, rng)])
    rows = rows[unseen(rows, seen)]
    rows, loss_increases = _best_first(rows, predict(rows))
    for _ in range(_CLIMBS):
        best = rows[:_CLIMBERS]
        near = plans.near(best)
        new = near[unseen(near, seen)]
        if not len(new):
            break
        rows, loss_increases = _best_first(
            np.concatenate([rows, new]), np.concatenate([loss_increases, predict(new)])
        )
        if (rows[:_CLIMBERS] == best).all():
            break
    return rows, loss_increases


def _best_first(rows: Rows, loss_increases: Floats) -> tuple[Rows, Floats]:
    order = np.argsort(loss_increases, kind="stable")
    return rows[order], loss_increases[order]


def _in_turn(*sequences: Sequence[T]) -> Iterator[T]:
    """The first of each sequence, then the second of each, ..., as long as any has more."""
    for turn in range(max(map(len, sequences))):
        yield from (one[turn] for one in sequences if turn < len(one))


def space_of(shape: str, units: Shape, model: PreTrainedModel, multiple: int = 1) -> PlanSpace:
    """The plans that may be proposed; the grain is of those whose blocks have any size."""
    if shape == "uniform":
        return UniformSpace(units, model.config)
    return AnySpace(units) if multiple == 1 else AlignedSpace(units, multiple)


def fast_multiple(model: PreTrainedModel) -> int:
    """Of what MLP widths are to be multiples, so that a model's device runs them fast.

    Tensor cores take rows of 16 bytes; other rows go three times as slowly.
    """
    return 16 // model.dtype.itemsize if model.device.type == "cuda" else 1
