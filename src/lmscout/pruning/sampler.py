"""Sampler: the plans that a round measures.

Round 0 covers the space.  Later rounds exploit a predictor: they measure what a search on it
found, relatives of the best measured plans, and plans with a low confidence bound about which it is
unsure.  Proposals depend on the seed, the round and the pairs of earlier rounds alone, so that a
run that was killed proposes the same again, and skips what its study holds.

A model is computed block by block, attention first, so two plans share the computation of all steps
before the first at which they keep different numbers of units.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import product, zip_longest

import numpy as np
from scipy.stats import qmc

from lmscout.pruning.features import ImportanceMass
from lmscout.pruning.plan import (
    Floats,
    Plan,
    Rows,
    Shape,
    as_plans,
    as_rows,
    dense_row,
)
from lmscout.pruning.predictor import Predictor
from lmscout.pruning.ranges import Ranges, Target, fit, uniform
from lmscout.pruning.search import (
    DISTANCE,
    GENERATIONS,
    Candidate,
    Predict,
    allocate,
    apart,
    mutate,
    rank_uniform,
    search,
    uniform_draws,
)
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import Pair

_TIES = (2, 3, 4)  # adjacent blocks that share their ratio
_FAMILY = 4  # plans that share their first blocks
_ATTEMPTS = 8  # draws of more plans where too many were known already

_ALLOCATED = 0.6  # share of the first plans that are allocated by an estimate
_PERTURBED = 0.6  # largest standard deviation of the logarithm of a perturbed mass

_ELITE = 12  # best measured plans, with which searches start
_PARENTS = 5  # of them, whose relatives are searched
_NEAR = 0.5  # share of a later round that is searched around the parents
_MARGIN = 0.1  # of a block's units, beyond what parents keep
_UNSURE = 0.15  # share of a later round
_SPREADS = 2.0  # of an unsure plan's prediction, subtracted from it
_POOL = 1000  # mutations, and draws, among which unsure plans are chosen
_TOLERANCE = 0.5  # typical errors that a plan may lose in prediction to share a prefix

_Named = tuple[Rows, str]  # a row and its origin


@dataclass(frozen=True)
class Proposal:
    """A plan to be measured."""

    plan: Plan
    # "allocated", "uniform", "protected", "tied" or "free" where the space is covered; "found",
    # "near" or "unsure" where a predictor is exploited.
    origin: str


def propose(
    space: PlanSpace,
    targets: Sequence[Target],
    *,
    count: int,
    seed: int,
    round_: int,
    pairs: Sequence[Pair] = (),
    predictor: Predictor | None = None,
    waiting: Collection[Plan] = (),
    mass: ImportanceMass | None = None,
    executor: Executor | None = None,
    generations: int = GENERATIONS,
) -> list[Proposal]:
    """Plans for one round, in the order in which to measure them.

    Each target gets an equal part of the round, whose number is from 0.  Pairs of this round and
    later ones are ignored; the predictor, fitted on those of earlier rounds, is needed after round
    0.  Plans that are `waiting` to be measured are not proposed again.  If `mass` estimates the
    loss increase, plans around its allocation are among the first.  The `executor` runs one of two
    searches at the same time as the other; results are the same.

    Returns:
        Distinct plans, none of an earlier round's, each meeting its target's budget; those with
        common prefixes are neighbours.  Fewer than `count` if there are no more.

    Raises:
        LmscoutError: no plan meets a target.
    """
    for target in targets:
        space.require(target.budget, target.ranges)
    earlier = [pair for pair in pairs if pair.round < round_]
    best = [space.best_pairs(earlier, one.budget, _ELITE, one.ranges) for one in targets]
    known = {*waiting, *(pair.plan for pair in earlier)}
    proposals: list[Proposal] = []
    for index, target in enumerate(targets):
        part = count // len(targets) + (index < count % len(targets))
        rng = np.random.default_rng([seed, round_, index])
        selection = _Selection(space, target, part, known, rng)
        if round_ == 0 or predictor is None:
            selection.cover(mass if mass is not None and mass.in_nats else None)
        else:
            others = [
                pair.plan
                for other, its_best in enumerate(best)
                if other != index
                for pair in its_best[:_PARENTS]
            ]
            selection.exploit(predictor, best[index], others, executor, generations)
        proposals += selection.proposals
        known |= {one.plan for one in selection.proposals}
    return sorted(proposals, key=lambda one: one.plan.steps)


class _Selection:
    """Distinct unknown plans of one target.  Rows are in steps of the space."""

    def __init__(
        self,
        space: PlanSpace,
        target: Target,
        count: int,
        known: Iterable[Plan],
        rng: np.random.Generator,
    ) -> None:
        self.proposals: list[Proposal] = []
        self._space, self._budget, self._whole = space, target.budget, target
        self._target = space.in_steps(target)
        self._count, self._rng = count, rng
        self._near, self._unsure = round(_NEAR * count), round(_UNSURE * count)
        self._known = set(known)

    @property
    def _missing(self) -> int:
        return self._count - len(self.proposals)

    def _take(self, rows: Rows, origin: str, most: int) -> None:
        """Add the first unknown plans of rows, `most` at most."""
        end = len(self.proposals) + min(most, self._missing)
        for row in self._space.to_units(rows):
            if len(self.proposals) >= end:
                return
            (plan,) = as_plans(row[None])
            if plan not in self._known:
                self._known.add(plan)
                self.proposals.append(Proposal(plan, origin))

    def _fitted(self, wanted: Floats | Rows) -> Rows:
        """Plans near to wanted ones [n, 2L]; only those that meet the target."""
        rows = fit(wanted, self._target.ranges, self._target.budget)
        return rows[self._target.budget.meets(rows)]

    def _sorted(self, rows: Rows, predictor: Predictor, spreads: float = 0.0) -> Rows:
        """Rows by prediction less some of its spreads, lowest first."""
        if not len(rows):
            return rows
        units = self._space.to_units(rows)
        bound = predictor.cautious(units)
        if spreads:
            bound = bound - spreads * predictor.spread(units)
        return rows[np.argsort(bound, kind="stable")]

    def cover(self, mass: ImportanceMass | None = None) -> None:
        """Take plans that cover the space, most of them near the allocation by a mass."""
        if self._space.uniform is not None:
            if mass is not None:
                plan = allocate(self._space, self._whole, mass)
                self._take(self._rows([plan]), "allocated", 1)
            self._cover_uniform()
            return
        if mass is not None:
            self._take_allocated(mass)
        shape, ranges, budget = self._space.steps, self._target.ranges, self._target.budget
        protected = ranges.protected(shape)
        if not protected.can_meet(budget):
            protected = ranges
        for origin, within in (("uniform", ranges), ("protected", protected)):
            self._take(as_rows([uniform(shape, within, budget)]), origin, 1)
        for _ in range(_ATTEMPTS):
            each = -(-self._missing // 4)
            if not each:
                break
            for within, tied in product((protected, ranges), (True, False)):
                sobol = qmc.Sobol(2 * shape.depth, seed=self._rng)
                draws = sobol.random_base2(int(np.ceil(np.log2(max(each, 2)))))
                if tied:
                    draws = _tied(draws, shape.depth, self._rng)
                low, high = within.rows
                rows = families(low + draws * (high - low), Target(budget, within))
                self._take(rows[budget.meets(rows)], "tied" if tied else "free", each)

    def _take_allocated(self, mass: ImportanceMass) -> None:
        """Take the allocation of least estimated loss increase, and those of perturbed masses.

        Each mass is multiplied by a factor of its own, so plans vary where estimates of
        different blocks are close to each other.
        """
        for spread in np.linspace(0.0, _PERTURBED, round(_ALLOCATED * self._count)):
            before = len(self.proposals)
            for _ in range(_ATTEMPTS):
                draw = self._rng.standard_normal(2 * self._space.shape.depth)
                plan = allocate(self._space, self._whole, mass.scaled(np.exp(spread * draw)))
                self._take(self._rows([plan]), "allocated", 1)
                if len(self.proposals) > before:
                    break

    def _cover_uniform(self) -> None:
        """Take a plan of each size in turn: one that drops adjacent blocks, then another."""
        plans = self._space.plans(self._budget)
        by_size = []
        for turn, place in enumerate(self._rng.permutation(len(plans.sizes))):
            size = plans.sizes[place]
            adjacent, others = plans.of_size(size, self._count + len(self._known), self._rng)
            name = "tied" if size.dropped else "uniform"
            both = [[(row, name) for row in adjacent], [(row, "free") for row in others]]
            by_size.append(_in_turn(both if turn % 2 else both[::-1]))
        for row, origin in _in_turn(by_size):
            if not self._missing:
                break
            self._take(row[None], origin, 1)

    def exploit(
        self,
        predictor: Predictor,
        best: Sequence[Pair],
        others: Sequence[Plan],
        executor: Executor | None,
        generations: int,
    ) -> None:
        """Take what a search found, relatives of the best pairs, and unsure plans.

        Searches start from the best of this target and of others.
        """
        elite = [pair.plan for pair in best]
        if self._space.uniform is not None:
            self._exploit_uniform(predictor, [*elite, *others])
            return
        shape, rng = self._space.steps, self._rng

        def searching(
            ranges: Ranges, count: int, initial: Sequence[Plan]
        ) -> Callable[[], list[Candidate]]:
            return partial(
                search,
                self._space,
                predictor.cautious,
                Target(self._budget, Ranges.of_rows(*self._space.to_units(ranges.rows))),
                seed=int(rng.integers(2**31)),
                count=count,
                initial=initial,
                generations=generations,
            )

        anywhere = searching(self._target.ranges, 2 * self._count, [*elite, *others])
        if elite:
            parents = self._rows(elite)
            nearby = searching(self._around(parents), 2 * self._near, elite)
            future = executor.submit(nearby) if executor else None
            candidates = anywhere()
            relatives = future.result() if future else nearby()
        else:
            candidates = anywhere()
            parents = self._rows([one.plan for one in candidates[:_ELITE]])
            if not len(parents):  # so few plans are of this size that the search finds none
                self.cover()
                return
            relatives = searching(self._around(parents), 2 * self._near, elite)()
        found = self._rows([one.plan for one in candidates])
        self._take(found, "found", self._count - self._unsure - self._near)
        self._take(self._rows([one.plan for one in relatives]), "near", self._near)

        pool = np.concatenate([parents, found])
        pool = mutate(pool[rng.integers(0, len(pool), _POOL)], shape, rng, most=8)
        draws = uniform_draws(self._target.ranges, _POOL, rng)
        pool = np.concatenate([self._fitted(pool), self._fitted(draws)])
        pool = self._sorted(pool, predictor, spreads=_SPREADS)
        self._take(
            pool[apart(pool, dense_row(shape), 2 * self._unsure, DISTANCE)], "unsure", self._unsure
        )
        if self._missing:
            draws = uniform_draws(self._target.ranges, 4 * self._missing, rng)
            self._take(self._fitted(draws), "free", self._missing)
        lowest = best[0].value if best else candidates[0].loss_increase
        self._share_prefixes(predictor, _TOLERANCE * predictor.error_near(lowest))

    def _exploit_uniform(self, predictor: Predictor, initial: Sequence[Plan]) -> None:
        plans = self._space.plans(self._budget)
        start = plans.projected(initial)
        rows, loss_increases = rank_uniform(plans, start, predictor.cautious, self._rng)
        self._take(rows, "found", self._count - self._unsure - self._near)
        relatives = plans.neighbours(start[:_PARENTS] if len(start) else rows[:_PARENTS])
        self._take(self._sorted(relatives, predictor), "near", self._near)
        bound = loss_increases - _SPREADS * predictor.spread(rows)
        self._take(rows[np.argsort(bound, kind="stable")], "unsure", self._unsure)
        self._take(rows, "found", self._missing)

    def _rows(self, plans: Sequence[Plan]) -> Rows:
        """Plans in steps, [n, 2L]."""
        return self._space.to_steps(as_rows(plans).reshape(-1, 2 * self._space.shape.depth))

    def _around(self, rows: Rows) -> Ranges:
        """Ranges that hold the first rows, with a margin."""
        low, high = self._target.ranges.rows
        room = np.ceil(_MARGIN * dense_row(self._space.steps)).astype(np.int64)
        parents = rows[:_PARENTS]
        return Ranges.of_rows(
            np.maximum(low, parents.min(axis=0) - room),
            np.minimum(high, parents.max(axis=0) + room),
        )

    def _share_prefixes(self, predictor: Predictor, tolerance: float) -> None:
        """Share prefixes among plans of one origin, so that origins stay different."""
        taken = {*self._known}
        shared: list[Proposal] = []
        for origin in dict.fromkeys(one.origin for one in self.proposals):
            rows = share_prefixes(
                self._rows([one.plan for one in self.proposals if one.origin == origin]),
                lambda rows: predictor.cautious(self._space.to_units(rows)),
                self._space.steps,
                self._target,
                tolerance=tolerance,
                taken=self._rows(list(taken)),
            )
            plans = as_plans(self._space.to_units(rows))
            taken |= set(plans)
            shared += [Proposal(plan, origin) for plan in plans]
        self.proposals = shared


def _in_turn(sequences: Sequence[Sequence[_Named]]) -> list[_Named]:
    """The first of each sequence, then the second of each, ..., as long as any has more."""
    return [one for some in zip_longest(*sequences) for one in some if one is not None]


def _tied(draws: Floats, depth: int, rng: np.random.Generator) -> Floats:
    """Give two to four adjacent blocks the same draw, the same number in all of a row."""
    ties = rng.choice(_TIES, len(draws))[:, None]
    block = np.arange(depth) // ties * ties
    return np.take_along_axis(draws, np.concatenate([block, depth + block], axis=1), axis=1)


def order_for_prefix_sharing(plans: Sequence[Plan]) -> list[Plan]:
    """The same plans in lexicographic order of their steps.

    Of all orders, this shares the most steps between neighbours.
    """
    return sorted(plans, key=lambda plan: plan.steps)


def families(wanted: Floats, target: Target) -> Rows:
    """Fit plans near to wanted ones [n, 2L], every four with the same first half of blocks.

    A plan is fitted by itself where it cannot meet the budget with the first half of its family's
    first plan.
    """
    rows = fit(wanted, target.ranges, target.budget)
    depth = rows.shape[1] // 2
    prefix = np.tile(np.arange(depth) < depth // 2, 2)
    low, high = target.ranges.rows
    lead = rows[np.arange(len(rows)) // _FAMILY * _FAMILY]
    together = fit(
        np.where(prefix, lead, wanted),
        (np.where(prefix, lead, low), np.where(prefix, lead, high)),
        target.budget,
    )
    return np.where(target.budget.meets(together)[:, None], together, rows)


def share_prefixes(
    rows: Rows,
    predict: Predict,
    shape: Shape,
    target: Target,
    *,
    tolerance: float,
    taken: Rows,
) -> Rows:
    """Give plans the first blocks of plans before them, where the prediction allows.

    Each plan in turn is tried with the first blocks, up to half of them, of every plan kept so
    far, its other blocks fitted to the budget anew.  It takes the longest prefix whose predicted
    loss increase is at most `tolerance` above its own.

    Args:
        rows: [n, 2L] distinct plans, best first.
        predict: loss increases of plans, [n, 2L] to [n].
        shape: of the dense model.
        target: that plans meet.
        tolerance: nats/token.
        taken: [m, 2L] plans that no result may equal.

    Returns:
        [n, 2L] distinct plans, in the same order.
    """
    if len(rows) < 2 or shape.depth < 2:
        return rows
    loss_increases = predict(rows)
    units, depth = dense_row(shape), shape.depth
    low, high = target.ranges.rows
    others = np.concatenate([rows, taken])
    lengths = np.arange(depth // 2, 0, -1)
    kept = rows[:1]
    for row, loss_increase in zip(rows[1:], loss_increases[1:], strict=True):
        donors = np.repeat(np.arange(len(kept)), len(lengths))
        length = np.tile(lengths, len(kept))
        prefix = np.tile(np.arange(depth) < length[:, None], 2)
        wanted = np.where(prefix, kept[donors], row)
        bounds = np.where(prefix, wanted, low), np.where(prefix, wanted, high)
        grafts = fit(wanted, bounds, target.budget)
        good = (predict(grafts) <= loss_increase + tolerance) & target.budget.meets(grafts)
        chosen = row
        for place in np.flatnonzero(good)[np.argsort(-length[good], kind="stable")]:
            graft = grafts[place]
            far = np.abs((kept - graft) / np.maximum(units, 1)).mean(axis=1).min() >= DISTANCE
            if far and not (others == graft).all(axis=1).any():
                chosen = graft
                break
        kept = np.concatenate([kept, chosen[None]])
    return kept
