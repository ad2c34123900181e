"""Which plans a round measures.

Round 0 covers the space: the two uniform plans, plans with adjacent blocks tied, free ones.
Later rounds measure what a search on the predictor found, what one near the best measured
plans found, and plans that look good but about which the predictor is unsure.

Proposals depend on the seed, the round and the pairs of earlier rounds alone, so that a run
that was killed proposes the same again, and skips what the ledger has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from lmscout.pruning.ledger import Pair
from lmscout.pruning.searching.breeding import moved
from lmscout.pruning.searching.covering import Chosen, Proposal, Target, covering
from lmscout.pruning.searching.elite import best_pairs
from lmscout.pruning.searching.ranges import Ranges, fit, meets
from lmscout.pruning.searching.search import (
    DISTANCE,
    GENERATIONS,
    Candidate,
    apart,
    drawn,
    search,
)
from lmscout.pruning.searching.sharing import share_prefixes, sharing_order
from lmscout.pruning.subnetworks.plan import Plan, Shape
from lmscout.pruning.subnetworks.plan_arrays import Floats, Rows, as_plans, as_rows, dense_row

__all__ = ["Proposal", "Target", "propose"]

# What uniform plans are proposed by, too:
ELITE = 12  # best measured plans, with which searches begin
NEAR = 0.5  # share of a later round that is sought near the best measured
PARENTS = 5  # of the best measured, near which it is sought
_WIDTH = 0.1  # of a block's units, beyond what parents keep
UNSURE = 0.15  # share of a later round
_POOL = 1000  # mutations, and draws, among which the best predicted are taken
HOPE = 2.0  # spreads by which an unsure plan is taken to be better than predicted
_SHARING = 0.5  # typical errors that a plan may lose in prediction to begin like another


_Result = TypeVar("_Result")
Seeking = Callable[[], list[Candidate]]  # a search that is yet to be done


class Calls(Protocol):
    """What calls a function elsewhere, such as an executor of Python's own."""

    def submit(self, function: Callable[[], _Result], /) -> Future[_Result]:
        """Have a function called."""


class Foretells(Protocol):
    """What proposals ask of a predictor."""

    def cautious(self, rows: Rows) -> Floats:
        """Rises that are not hoped for, plans [n, 2L] to [n]."""

    def spread(self, rows: Rows) -> Floats:
        """Standard deviation of predictions, in nats."""

    def error_near(self, rise: float) -> float:
        """Typical error in nats of a prediction about a rise."""


def propose(
    shape: Shape,
    targets: Sequence[Target],
    *,
    count: int,
    seed: int,
    round_: int,
    pairs: Sequence[Pair] = (),
    predictor: Foretells | None = None,
    waiting: Collection[Plan] = (),
    beside: Calls | None = None,
    generations: int = GENERATIONS,
    share: bool = True,
) -> list[Proposal]:
    """Plans for one round, in the order in which to measure them.

    Args:
        shape: of the dense model.
        targets: sizes that the ledger is to serve; each gets an equal part of the round.
        count: of proposals; fewer come back where there are no more plans.
        seed: of the run.
        round_: from 0.
        pairs: the ledger's; those of this round and later ones are not looked at.
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
    predictor: Foretells,
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
    hopeful = predictor.cautious(far) - HOPE * predictor.spread(far)
    order = np.argsort(hopeful, kind="stable")
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
        tolerance=_SHARING * predictor.error_near(best[0].value if best else candidates[0].rise),
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
    predictor: Foretells,
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
