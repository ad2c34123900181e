"""Plans that cover the space, for the first round: before anything has been learnt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from lmscout.pruning.searching.budgets import Budget
from lmscout.pruning.searching.ranges import Ranges, meets, uniform
from lmscout.pruning.searching.sharing import families
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.plan_arrays import Floats, Rows, as_plans, as_rows

_TIES = (2, 3, 4)  # adjacent blocks that share their ratio
_FAMILY = 4  # plans that begin with the same blocks
_ATTEMPTS = 8  # draws of more plans where too many were known already


@dataclass(frozen=True, eq=False)
class Target:
    """A size for which plans are sought.

    Attributes:
        budget: that plans meet.
        ranges: within which they lie.
    """

    budget: Budget
    ranges: Ranges


@dataclass(frozen=True)
class Proposal:
    """A plan to be measured.

    Attributes:
        plan: the plan.
        origin: how it came about: "uniform", "guarded", "tied" or "free" where the space is
            covered; "found", "near" or "unsure" where a predictor was asked.
    """

    plan: Plan
    origin: str


class Chosen:
    """Proposals so far: distinct, none of them known."""

    def __init__(self, known: Iterable[Plan]) -> None:
        self.proposals: list[Proposal] = []
        self._taken = set(known)

    def take(self, rows: Rows, origin: str, most: int) -> None:
        """Add the first new plans of rows, `most` at most."""
        for plan in as_plans(rows) if most > 0 else ():
            if plan not in self._taken:
                self._taken.add(plan)
                self.proposals.append(Proposal(plan, origin))
                most -= 1
                if most == 0:
                    return


def covering(
    shape: Shape,
    target: Target,
    count: int,
    known: Iterable[Plan],
    rng: np.random.Generator,
    share: bool,
) -> list[Proposal]:
    """The uniform plans, then tied and free ones in turn, half of them guarded."""
    chosen = Chosen(known)
    ranges, budget = target.ranges, target.budget
    guarded = ranges.guarded(shape)
    if not guarded.can_meet(budget):
        guarded = ranges
    for origin, within in (("uniform", ranges), ("guarded", guarded)):
        left = count - len(chosen.proposals)
        chosen.take(as_rows([uniform(shape, within, budget)]), origin, min(left, 1))
    for _ in range(_ATTEMPTS):
        missing = count - len(chosen.proposals)
        if missing <= 0:
            break
        each = -(-missing // 4)
        for tied, within in (
            (True, guarded),
            (False, guarded),
            (True, ranges),
            (False, ranges),
        ):
            sobol = qmc.Sobol(2 * shape.depth, seed=rng)
            draws = sobol.random_base2(int(np.ceil(np.log2(max(each, 2)))))
            if tied:
                draws = _tied(draws, shape.depth, rng)
            low, high = as_rows([within.low, within.high])
            rows = families(
                low + draws * (high - low), within, budget, size=_FAMILY if share else 1
            )
            left = count - len(chosen.proposals)
            chosen.take(rows[meets(rows, budget)], "tied" if tied else "free", min(each, left))
    return chosen.proposals


def _tied(draws: Floats, depth: int, rng: np.random.Generator) -> Floats:
    """Give adjacent blocks the same draw, two to four of them, as many in all of a row."""
    ties = rng.choice(_TIES, len(draws))[:, None]
    block = np.arange(depth) // ties * ties
    return np.take_along_axis(draws, np.concatenate([block, depth + block], axis=1), axis=1)
