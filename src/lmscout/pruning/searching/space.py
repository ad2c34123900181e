"""Where plans come from: what rounds of measuring, and the search after them, ask."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from lmscout.pruning.ledger import Pair
from lmscout.pruning.searching.breeding import Predict
from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.covering import Proposal, Target
from lmscout.pruning.searching.elite import best_pairs
from lmscout.pruning.searching.proposals import Calls, Foretells, propose
from lmscout.pruning.searching.ranges import Ranges, meets
from lmscout.pruning.searching.search import Candidate, search
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.plan_arrays import Rows


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
        predictor: Foretells | None,
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
        predictor: Foretells | None,
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
