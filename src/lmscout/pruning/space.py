"""Spaces of plans: the interface, and MLP widths that are multiples of a number of channels.

Where plans come from: what rounds of measuring, and the search after them, ask.

Plans whose MLP widths are multiples of a grain.

A matrix product whose inner size is no multiple of eight numbers takes three times as long on a
GPU with tensor cores.  So where that matters plans are sought in bundles of channels: all that
searches sees a model with fewer, larger channels, and what it finds is said in channels again.
A width that the grain does not divide has one smaller bundle at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from lmscout.pruning.budgets import Budget, TableBudget, least_steps
from lmscout.pruning.plan import Floats, Plan, Rows, Shape, as_plans, as_rows, dense_row
from lmscout.pruning.ranges import Ranges, best_pairs, meets
from lmscout.pruning.sampler import Calls, PredictsLoss, Proposal, Target, propose
from lmscout.pruning.search import Candidate, Predict, search
from lmscout.pruning.study import Pair


class PlanSpace(Protocol):
    """A set of plans, and how to look for good ones in it."""

    narrows: ClassVar[bool]  # whether blocks vary by themselves, so that each has a range

    def require(self, budget: Budget) -> None:
        """Refuse a budget that no plan meets, naming the nearest that can be met."""

    def meets(self, rows: Rows, budget: Budget) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] are of the size that a budget asks for, [n]."""

    def best_pairs(self, pairs: Sequence[Pair], budget: Budget, count: int) -> list[Pair]:
        """The best whole pairs of a size, best first."""

    def propose(
        self,
        targets: Sequence[Target],
        *,
        count: int,
        seed: int,
        round_: int,
        pairs: Sequence[Pair],
        predictor: PredictsLoss | None,
        waiting: Collection[Plan] = (),
        beside: Calls | None = None,
    ) -> list[Proposal]:
        """Plans for one round, as `proposals.propose`."""

    def search(
        self, predict: Predict, target: Target, *, seed: int, count: int, begin: Sequence[Plan]
    ) -> list[Candidate]:
        """The best plans of one size by prediction, as `search.search`."""


@dataclass(frozen=True)
class AnySpace:
    """Plans whose blocks have each a size of their own.

    Attributes:
        shape: of the dense model.
    """

    shape: Shape

    narrows: ClassVar[bool] = True

    def require(self, budget: Budget) -> None:
        """Refuse a budget that no plan meets."""
        Ranges.above(self.shape).require(budget)

    def meets(self, rows: Rows, budget: Budget) -> npt.NDArray[np.bool_]:
        """Whether plans are of a size."""
        return meets(rows, budget)

    def best_pairs(self, pairs: Sequence[Pair], budget: Budget, count: int) -> list[Pair]:
        """The best whole pairs of a size."""
        return best_pairs(pairs, Ranges.above(self.shape), budget, count)

    def propose(
        self,
        targets: Sequence[Target],
        *,
        count: int,
        seed: int,
        round_: int,
        pairs: Sequence[Pair],
        predictor: PredictsLoss | None,
        waiting: Collection[Plan] = (),
        beside: Calls | None = None,
    ) -> list[Proposal]:
        """Plans for one round."""
        return propose(
            self.shape,
            targets,
            count=count,
            seed=seed,
            round_=round_,
            pairs=pairs,
            predictor=predictor,
            waiting=waiting,
            beside=beside,
        )

    def search(
        self, predict: Predict, target: Target, *, seed: int, count: int, begin: Sequence[Plan]
    ) -> list[Candidate]:
        """The best plans of one size by prediction."""
        return search(
            predict, self.shape, target.ranges, target.budget, seed=seed, count=count, begin=begin
        )


class AlignedSpace:
    """Plans whose blocks have each a size of their own, a multiple of the grain."""

    narrows: ClassVar[bool] = True

    def __init__(self, shape: Shape, multiple: int) -> None:
        """Bundle channels.

        Args:
            shape: of the dense model.
            multiple: channels a bundle.
        """
        self._grid = _Grid(shape, multiple)
        self._coarse = AnySpace(self._grid.coarse)

    def require(self, budget: Budget) -> None:
        """Refuse a budget that no plan meets."""
        self._coarse.require(_Bundled(self._grid, budget))

    def meets(self, rows: Rows, budget: Budget) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] are of a size and on the grid, [n]."""
        bundled = self._grid.bundled(rows)
        return self._grid.holds(rows) & self._coarse.meets(bundled, _Bundled(self._grid, budget))

    def best_pairs(self, pairs: Sequence[Pair], budget: Budget, count: int) -> list[Pair]:
        """The best whole pairs of a size, best first."""
        bundled = self._pairs(pairs)
        best = self._coarse.best_pairs(bundled, _Bundled(self._grid, budget), count)
        return [replace(one, plan=self._grid.channels(one.plan)) for one in best]

    def propose(
        self,
        targets: Sequence[Target],
        *,
        count: int,
        seed: int,
        round_: int,
        pairs: Sequence[Pair],
        predictor: PredictsLoss | None,
        waiting: Collection[Plan] = (),
        beside: Calls | None = None,
    ) -> list[Proposal]:
        """Plans for one round, as `proposals.propose`."""
        found = self._coarse.propose(
            [self._target(one) for one in targets],
            count=count,
            seed=seed,
            round_=round_,
            pairs=self._pairs(pairs),
            predictor=None if predictor is None else _Prediction(self._grid, predictor),
            waiting=[self._grid.bundles(plan) for plan in waiting],
            beside=beside,
        )
        return [Proposal(self._grid.channels(one.plan), one.origin) for one in found]

    def search(
        self, predict: Predict, target: Target, *, seed: int, count: int, begin: Sequence[Plan]
    ) -> list[Candidate]:
        """The best plans of one size by prediction, as `search.search`."""
        found = self._coarse.search(
            lambda rows: predict(self._grid.unbundled(rows)),
            self._target(target),
            seed=seed,
            count=count,
            begin=[self._grid.bundles(plan) for plan in begin],
        )
        return [replace(one, plan=self._grid.channels(one.plan)) for one in found]

    def _pairs(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those on the grid, in bundles; which of two plans comes first stays the same."""
        if not pairs:
            return []
        rows = as_rows([pair.plan for pair in pairs])
        plans = as_plans(self._grid.bundled(rows))
        return [
            replace(pair, plan=plan)
            for pair, plan, held in zip(pairs, plans, self._grid.holds(rows), strict=True)
            if held
        ]

    def _target(self, target: Target) -> Target:
        low, high = self._grid.bundled(as_rows([target.ranges.low, target.ranges.high]))
        return Target(_Bundled(self._grid, target.budget), Ranges(*as_plans(np.stack([low, high]))))


class _Grid:
    """Plans in channels, and in bundles of them."""

    def __init__(self, shape: Shape, multiple: int) -> None:
        self._units = dense_row(shape)
        self._each = np.array([1] * shape.depth + [multiple] * shape.depth, np.int64)
        self.coarse = replace(
            shape,
            channels=tuple(-(-channels // multiple) for channels in shape.channels),
            channel_parameters=tuple(each * multiple for each in shape.channel_parameters),
        )

    def unbundled(self, rows: Rows) -> Rows:
        """Rows [n, 2L] of bundles, in channels."""
        channels: Rows = np.minimum(rows * self._each, self._units)
        return channels

    def bundled(self, rows: Rows) -> Rows:
        """Rows [n, 2L] of channels, in bundles; one that is begun counts."""
        begun: Rows = -(-rows // self._each)
        return begun

    def holds(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether rows [n, 2L] of channels are whole bundles, [n]."""
        whole: npt.NDArray[np.bool_] = (self.unbundled(self.bundled(rows)) == rows).all(axis=1)
        return whole

    def counts(self) -> list[Rows]:
        """For each column, how many units so many bundles are, from 0 up."""
        coarse = dense_row(self.coarse)
        return [
            np.minimum(np.arange(bundles + 1) * each, units)
            for bundles, each, units in zip(coarse, self._each, self._units, strict=True)
        ]

    def bundles(self, plan: Plan) -> Plan:
        """A plan of channels, in bundles."""
        return as_plans(self.bundled(as_rows([plan])))[0]

    def channels(self, plan: Plan) -> Plan:
        """A plan of bundles, in channels."""
        return as_plans(self.unbundled(as_rows([plan])))[0]


@dataclass(frozen=True, eq=False)
class _Bundled:
    """A budget for plans in bundles; one bundle may be lacking where it was one channel."""

    grid: _Grid
    budget: Budget

    @property
    def name(self) -> str:
        """What is counted."""
        return self.budget.name

    @property
    def limit(self) -> float:
        """The most that a plan may cost."""
        return self.budget.limit

    @property
    def slack(self) -> float | None:
        """How far below the limit a plan may stay."""
        if self.budget.slack is None:
            return None
        first = np.eye(2 * self.grid.coarse.depth, dtype=np.int64)[self.grid.coarse.depth :]
        bundle = self.cost(first) - self.cost(np.zeros_like(first))
        return max(self.budget.slack, float(bundle.max()))

    def cost(self, rows: Rows) -> Floats:
        """Costs of plans, [n, 2L] to [n]."""
        if self._tables is None:
            return self.budget.cost(self.grid.unbundled(rows))
        return self._tables.cost(rows)

    @cached_property
    def _tables(self) -> TableBudget | None:
        """The same costs in tables that are smaller by the grain, where they are in tables."""
        return self.budget.at(self.grid.counts()) if isinstance(self.budget, TableBudget) else None

    def least_steps(self) -> Floats:
        """What one bundle more of each column costs at least, [2L]."""
        return self._least

    @cached_property
    def _least(self) -> Floats:
        return least_steps(self.cost, dense_row(self.grid.coarse))

    def words(self, cost: float, *, nearer: int = 0) -> str:
        """A cost for messages."""
        return self.budget.words(cost, nearer=nearer)


@dataclass(frozen=True)
class _Prediction:
    """What a predictor says of plans in bundles."""

    grid: _Grid
    predictor: PredictsLoss

    def cautious(self, rows: Rows) -> Floats:
        """Rises that are not hoped for."""
        return self.predictor.cautious(self.grid.unbundled(rows))

    def spread(self, rows: Rows) -> Floats:
        """Standard deviation of predictions."""
        return self.predictor.spread(self.grid.unbundled(rows))

    def error_near(self, loss_increase: float) -> float:
        """Typical error of a prediction about a rise."""
        return self.predictor.error_near(loss_increase)
