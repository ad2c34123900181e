"""Sampler: the plans of the first round, and those that later rounds measure.

Plans that begin alike: the evaluator computes what they share once.

A model is computed block by block, attention first, so two plans share the computation of
all steps before the first at which they keep different numbers of units.

Plans that cover the space, for the first round: before anything has been learnt.

Which plans a round measures.

Round 0 covers the space: the two uniform plans, plans with adjacent blocks tied, free ones.
Later rounds measure what a search on the predictor found, what one near the best measured
plans found, and plans that look good but about which the predictor is unsure.

Proposals depend on the seed, the round and the pairs of earlier rounds alone, so that a run
that was killed proposes the same again, and skips what the study has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from lmscout.pruning.budgets import Budget
from lmscout.pruning.plan import (
    Floats,
    Plan,
    Rows,
    Shape,
    as_plans,
    as_rows,
    dense_row,
    in_block_order,
)
from lmscout.pruning.ranges import Ranges, best_pairs, fit, meets, uniform
from lmscout.pruning.search import (
    DISTANCE,
    GENERATIONS,
    Candidate,
    Predict,
    apart,
    drawn,
    moved,
    search,
)
from lmscout.pruning.study import Pair


def order_for_prefix_sharing(plans: Sequence[Plan]) -> list[Plan]:
    """The same plans, those that begin alike side by side.

    Sorted like words, with steps for letters: of all orders, this shares the most steps
    between neighbours.
    """
    return [plans[place] for place in sharing_order(as_rows(plans))]


def sharing_order(rows: Rows) -> list[int]:
    """Places of rows [n, 2L] in the order of `order_for_prefix_sharing`."""
    if not len(rows):
        return []
    return [int(place) for place in np.lexsort(in_block_order(rows).T[::-1])]


def shared_share(plans: Sequence[Plan]) -> float:
    """Mean share of a plan's steps that the plan before it has in common, 0 to 1."""
    if not plans:
        return 0.0
    steps = in_block_order(as_rows(plans))
    alike = np.minimum.accumulate(steps[1:] == steps[:-1], axis=1).sum()
    return float(alike / steps.size)


def families(
    wanted: npt.NDArray[np.float64], ranges: Ranges, budget: Budget, *, size: int = 4
) -> Rows:
    """Fit plans so that every few of them begin with the same blocks.

    The first of `size` rows is fitted freely; the others take its first half of the blocks
    and fit their own second half, where that can meet the budget.

    Args:
        wanted: [n, 2L] units, in families one after the other.
        ranges: within which plans lie.
        budget: that they meet.
        size: plans a family; 1 leaves every plan by itself.

    Returns:
        [n, 2L].
    """
    rows = fit(wanted, ranges, budget)
    first = np.arange(len(rows)) // size * size
    depth = rows.shape[1] // 2
    begun = np.tile(np.arange(depth) < depth // 2, 2)
    low, high = as_rows([ranges.low, ranges.high])
    lead = rows[first]
    together = fit(
        np.where(begun, lead, wanted),
        (np.where(begun, lead, low), np.where(begun, lead, high)),
        budget,
    )
    return np.where(meets(together, budget)[:, None], together, rows)


def share_prefixes(
    plans: Sequence[Plan],
    predict: Predict,
    shape: Shape,
    ranges: Ranges,
    budget: Budget,
    *,
    tolerance: float,
    taken: Sequence[Plan] = (),
    distance: float = DISTANCE,
) -> list[Plan]:
    """Give plans the first blocks of plans before them, where the prediction allows.

    Each plan in turn is offered the first blocks, up to half of them, of every plan kept so
    far; its other blocks are fitted to the budget anew.  It takes the longest beginning with
    which it is predicted to rise by no more than `tolerance` above what it was.

    Args:
        plans: distinct, best first.
        predict: rises of plans, [n, 2L] to [n].
        shape: of the dense model.
        ranges: within which plans lie.
        budget: that they meet.
        tolerance: nats a token.
        taken: plans that no result may equal.
        distance: least mean difference of kept shares between a changed plan and others.

    Returns:
        As many plans, distinct, in the same order.
    """
    if len(plans) < 2 or shape.depth < 2:
        return list(plans)
    rows = as_rows(plans)
    loss_increases = predict(rows)
    units, depth = dense_row(shape), shape.depth
    low, high = as_rows([ranges.low, ranges.high])
    others = as_rows([*plans, *taken])
    lengths = np.arange(depth // 2, 0, -1)
    kept = rows[:1]
    for row, loss_increase in zip(rows[1:], loss_increases[1:], strict=True):
        donors = np.repeat(np.arange(len(kept)), len(lengths))
        length = np.tile(lengths, len(kept))
        begun = np.tile(np.arange(depth) < length[:, None], 2)
        wanted = np.where(begun, kept[donors], row)
        grafts = fit(wanted, (np.where(begun, wanted, low), np.where(begun, wanted, high)), budget)
        good = (predict(grafts) <= loss_increase + tolerance) & meets(grafts, budget)
        chosen = row
        for place in np.flatnonzero(good)[np.argsort(-length[good], kind="stable")]:
            graft = grafts[place]
            apart = np.abs((kept - graft) / units).mean(axis=1).min() >= distance
            if apart and not (others == graft).all(axis=1).any():
                chosen = graft
                break
        kept = np.concatenate([kept, chosen[None]])
    return as_plans(kept)


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
    protected = ranges.protected(shape)
    if not protected.can_meet(budget):
        protected = ranges
    for origin, within in (("uniform", ranges), ("protected", protected)):
        left = count - len(chosen.proposals)
        chosen.take(as_rows([uniform(shape, within, budget)]), origin, min(left, 1))
    for _ in range(_ATTEMPTS):
        missing = count - len(chosen.proposals)
        if missing <= 0:
            break
        each = -(-missing // 4)
        for tied, within in (
            (True, protected),
            (False, protected),
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


# What uniform plans are proposed by, too:
ELITE = 12  # best measured plans, with which searches begin
NEAR = 0.5  # share of a later round that is sought near the best measured
PARENTS = 5  # of the best measured, near which it is sought
_WIDTH = 0.1  # of a block's units, beyond what parents keep
UNSURE = 0.15  # share of a later round
_POOL = 1000  # mutations, and draws, among which the best predicted are taken
PROMISING = 2.0  # spreads by which an unsure plan is taken to be better than predicted
_SHARING = 0.5  # typical errors that a plan may lose in prediction to begin like another


_Result = TypeVar("_Result")
Seeking = Callable[[], list[Candidate]]  # a search that is yet to be done


class Calls(Protocol):
    """What calls a function elsewhere, such as an executor of Python's own."""

    def submit(self, function: Callable[[], _Result], /) -> Future[_Result]:
        """Have a function called."""


class PredictsLoss(Protocol):
    """What proposals ask of a predictor."""

    def cautious(self, rows: Rows) -> Floats:
        """Rises that are not hoped for, plans [n, 2L] to [n]."""

    def spread(self, rows: Rows) -> Floats:
        """Standard deviation of predictions, in nats."""

    def error_near(self, loss_increase: float) -> float:
        """Typical error in nats of a prediction about a rise."""


def propose(
    shape: Shape,
    targets: Sequence[Target],
    *,
    count: int,
    seed: int,
    round_: int,
    pairs: Sequence[Pair] = (),
    predictor: PredictsLoss | None = None,
    waiting: Collection[Plan] = (),
    beside: Calls | None = None,
    generations: int = GENERATIONS,
    share: bool = True,
) -> list[Proposal]:
    """Plans for one round, in the order in which to measure them.

    Args:
        shape: of the dense model.
        targets: sizes that the study is to serve; each gets an equal part of the round.
        count: of proposals; fewer come back where there are no more plans.
        seed: of the run.
        round_: from 0.
        pairs: the study's; those of this round and later ones are not looked at.
        predictor: fitted on the pairs of earlier rounds; needed after round 0.
        waiting: plans that are being measured, and not proposed again.
        beside: does one of two searches while the other is done here; what is found is the same.
        generations: of the search.
        share: whether plans are made to begin alike where that costs little.

    Returns:
        Distinct plans, none of an earlier round's, each meeting its target's budget; those
        that begin alike are neighbours.

    Raises:
        LmscoutError: no plan meets a target's budget.
    """
    earlier = [pair for pair in pairs if pair.round < round_]
    known = {*waiting, *(pair.plan for pair in earlier)}
    proposals: list[Proposal] = []
    for index, target in enumerate(targets):
        target.ranges.require(target.budget)
        part = count // len(targets) + (index < count % len(targets))
        rng = np.random.default_rng([seed, round_, index])
        elsewhere = [
            pair.plan
            for other in targets
            if other is not target
            for pair in best_pairs(earlier, other.ranges, other.budget, PARENTS)
        ]
        if round_ == 0 or predictor is None:
            found = covering(shape, target, part, known, rng, share)
        else:
            found = _promising(
                shape,
                target,
                part,
                known,
                rng,
                earlier,
                predictor,
                elsewhere,
                generations,
                share,
                beside,
            )
        proposals += found
        known |= {one.plan for one in found}
    order = sharing_order(as_rows([one.plan for one in proposals]))
    return [proposals[place] for place in order]


def _promising(
    shape: Shape,
    target: Target,
    count: int,
    known: Iterable[Plan],
    rng: np.random.Generator,
    earlier: Sequence[Pair],
    predictor: PredictsLoss,
    elsewhere: Sequence[Plan],
    generations: int,
    share: bool,
    beside: Calls | None,
) -> list[Proposal]:
    """What the search found, near relatives of the best measured, and the unsure."""
    ranges, budget, units = target.ranges, target.budget, dense_row(shape)
    best = best_pairs(earlier, ranges, budget, ELITE)
    elite = [pair.plan for pair in best]
    unsure, near = round(UNSURE * count), round(NEAR * count)

    def seeking(within: Ranges, number: int, begin: Sequence[Plan]) -> Seeking:
        seed = int(rng.integers(2**31))
        return partial(
            search,
            predictor.cautious,
            shape,
            within,
            budget,
            seed=seed,
            count=number,
            begin=begin,
            generations=generations,
        )

    anywhere = seeking(ranges, 2 * count, [*elite, *elsewhere])
    if elite:
        parents = as_rows(elite)
        close = seeking(_around(parents[:PARENTS], ranges, units), 2 * near, elite)
        candidates, relatives = _both(anywhere, close, beside)
        found = as_rows([candidate.plan for candidate in candidates])
    else:
        candidates = anywhere()
        found = as_rows([candidate.plan for candidate in candidates])
        parents = found[:ELITE]
        if not len(parents):  # so few plans are of this size that the search came by none
            return covering(shape, target, count, known, rng, share)
        relatives = seeking(_around(parents[:PARENTS], ranges, units), 2 * near, elite)()
    chosen = Chosen(known)
    chosen.take(found, "found", count - unsure - near)
    chosen.take(as_rows([candidate.plan for candidate in relatives]), "near", near)

    far = np.concatenate([parents, found])
    far = moved(far[rng.integers(0, len(far), _POOL)], shape, rng, most=8)
    far = np.concatenate([fit(far, ranges, budget), fit(drawn(ranges, _POOL, rng), ranges, budget)])
    promising = predictor.cautious(far) - PROMISING * predictor.spread(far)
    order = np.argsort(promising, kind="stable")
    far = far[order[meets(far[order], budget)]]
    chosen.take(far[apart(far, units, 2 * unsure, DISTANCE)], "unsure", unsure)

    missing = count - len(chosen.proposals)
    if missing > 0:
        rest = fit(drawn(ranges, 4 * missing, rng), ranges, budget)
        chosen.take(rest[meets(rest, budget)], "free", missing)
    if not share:
        return chosen.proposals
    return _alike(
        chosen.proposals,
        predictor,
        shape,
        target,
        tolerance=_SHARING
        * predictor.error_near(best[0].value if best else candidates[0].loss_increase),
        known=known,
    )


def _both(
    one: Seeking, other: Seeking, beside: Calls | None
) -> tuple[list[Candidate], list[Candidate]]:
    """What two searches find, side by side where there is somebody for the second."""
    if beside is None:
        return one(), other()
    coming = beside.submit(other)
    return one(), coming.result()


def _around(parents: Rows, ranges: Ranges, units: Rows) -> Ranges:
    """Ranges that hold the parents, and a little on either side."""
    low, high = as_rows([ranges.low, ranges.high])
    room = np.ceil(_WIDTH * units).astype(np.int64)
    return Ranges(
        *as_plans(
            np.stack(
                [
                    np.maximum(low, parents.min(axis=0) - room),
                    np.minimum(high, parents.max(axis=0) + room),
                ]
            )
        )
    )


def _alike(
    proposals: Sequence[Proposal],
    predictor: PredictsLoss,
    shape: Shape,
    target: Target,
    *,
    tolerance: float,
    known: Iterable[Plan],
) -> list[Proposal]:
    """Proposals of one origin made to begin alike; others' beginnings would defeat an origin."""
    taken = {*known, *(one.plan for one in proposals)}
    result: list[Proposal] = []
    for origin in dict.fromkeys(one.origin for one in proposals):
        shared = share_prefixes(
            [one.plan for one in proposals if one.origin == origin],
            predictor.cautious,
            shape,
            target.ranges,
            target.budget,
            tolerance=tolerance,
            taken=list(taken),
        )
        taken |= set(shared)
        result += [Proposal(plan, origin) for plan in shared]
    return result
