"""Candidates of the symbolic search, and the engines that propose them.

An engine knows nothing of benchmarks.  Its proposals depend on its seed and on the candidates that
it was given, so that a recorded search can be replayed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from types import MappingProxyType
from typing import Protocol

import numpy as np
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from lmscout.discovery.assessment import SavedTree
from lmscout.discovery.scorer import Scores
from lmscout.metrics import kendall, log_pearson, partial_spearman, spearman
from lmscout.proxies import Expression, Grammar, canonical
from lmscout.proxies.spaces import (
    crossover,
    every_score,
    hoist_mutation,
    join,
    point_mutation,
    random_score,
    subtree_mutation,
)

Coefficient = Callable[[Scores, Scores, Scores], float]

DEFAULT_OBJECTIVE = "spearman+pearson"  # chosen on halves of search splits: docs/deep-search.md
OBJECTIVES: Mapping[str, Coefficient] = MappingProxyType(
    {
        "spearman": lambda scores, quality, _: spearman(scores, quality),
        DEFAULT_OBJECTIVE: lambda scores, quality, _: (
            (spearman(scores, quality) + log_pearson(scores, quality)) / 2
        ),
        "kendall": lambda scores, quality, _: kendall(scores, quality),
        "beyond-size": partial_spearman,
    }
)
"""Coefficients of scores, quality and numbers of parameters, each [n]; the sign is free.
"spearman+pearson" is the mean of Spearman's ρ and of Pearson's r of logarithms; "beyond-size" holds
the number of parameters fixed."""


@dataclass(frozen=True)
class Candidate:
    """A proposed tree and its evaluation."""

    node: SavedTree
    fitness: float | None  # on the search split, from 0 to 1; None if it was discarded before
    discarded: str = ""  # name of the rule that discarded it
    order: int = 0  # fingerprint of its order of the probe architectures, 0 if not computed
    estimate: float | None = None  # of the fitness, on the rungs up to which racing kept it

    @property
    def estimated_fitness(self) -> float | None:
        """The fitness, or its estimate."""
        return self.estimate if self.fitness is None else self.fitness


def joint_fitness(coefficients: Sequence[float], slack: Sequence[float] = ()) -> float:
    """|coefficient| of the worst benchmark; below 0 if the signs differ; NaN if one is.

    Slack is the upper bound of each coefficient's increase, 0 by default.  The result is rounded to
    nine decimals, so that comparisons do not depend on the CPU.
    """
    values = np.array(coefficients, np.float64)
    more = np.array(slack or [0.0] * len(values), np.float64)
    return round(float(max((values + more).min(), (more - values).min())), 9)


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The Pareto front of fitness and size among evaluated candidates, shortest first."""
    best: list[Candidate] = []
    for one in sorted(_evaluated(candidates), key=lambda one: (one.node.size, -_fitness(one))):
        if not best or _fitness(one) > _fitness(best[-1]):
            best.append(one)
    return best


def fittest(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """The fittest evaluated candidates, the shorter of equally fit ones first."""
    return sorted(_evaluated(candidates), key=by_fitness)[:count]


def by_fitness(one: Candidate) -> tuple[float, int]:
    """Sort key: highest (estimated) fitness first, the shorter of equally fit ones first."""
    return -(one.estimated_fitness or 0.0), one.node.size


def to_beat(best: Sequence[Candidate], size: int) -> float:
    """Fitness of a front at a size; 0 if it has nothing as short."""
    return max((_fitness(one) for one in best if one.node.size <= size), default=0.0)


def _evaluated(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [one for one in candidates if one.fitness is not None]


def _fitness(candidate: Candidate) -> float:
    assert candidate.fitness is not None
    return candidate.fitness


# Tuned on search splits of their own (seeds 20 to 49 of pico and LiteTransformerSearch): see
# docs/deep-search.md.
_POPULATION, _SAMPLE = 100, 10  # of regularized evolution
_NEAR = 0.6  # share of offspring that is one mutation from a tree of the front
_HOISTED = 0.3  # of these, the share of hoist mutations; the others are point mutations
_TRIES = 10  # draws of a tree that was proposed before, until it is proposed again
_CROSSED, _JOINED = 0.1, 0.3  # shares of offspring of two parents
_SUBTREE, _POINT = 0.55, 0.3  # shares of the offspring of one; the rest are hoist mutations
_FRESH = 0.02  # share of random offspring
_ISLANDS, _ISLAND = 4, 25  # populations, and trees of each
_MIGRATION, _MIGRANTS = 5, 4  # generations between migrations, and trees that are copied then
_TOURNAMENT = 6  # trees of an island of which the fittest becomes a parent
_SHORTER = 0.5  # how often only trees count that are no longer than the first one


class Engine(Protocol):
    """A source of candidates."""

    def ask(self, count: int) -> list[Expression]:
        """Trees to evaluate; fewer if there are no more."""

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """Take the evaluated trees of the last `ask`, in their order."""


class ExhaustiveSearch:
    """Every tree, shortest first."""

    def __init__(self, grammar: Grammar, seed: int, seeds: Sequence[Expression] = ()) -> None:
        """Start with the seed trees; nothing depends on the seed."""
        self._trees = chain(seeds, every_score(grammar))

    def ask(self, count: int) -> list[Expression]:
        """The next trees."""
        return list(islice(self._trees, count))

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """Ignore the fitness."""


class RandomSearch:
    """Independent random trees: the baseline of the other engines."""

    def __init__(self, grammar: Grammar, seed: int, seeds: Sequence[Expression] = ()) -> None:
        """Start with the seed trees."""
        self._grammar, self._rng = grammar, np.random.default_rng(seed)
        self._seeds = deque(seeds)

    def ask(self, count: int) -> list[Expression]:
        """The seed trees first, then random ones."""
        given = [self._seeds.popleft() for _ in range(min(count, len(self._seeds)))]
        drawn = (random_score(self._grammar, self._rng) for _ in range(count - len(given)))
        return [*given, *drawn]

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """Ignore the fitness."""

    def _mutant(self, parent: Expression) -> Expression:
        chance = self._rng.random()
        if chance < _SUBTREE:
            return subtree_mutation(parent, self._grammar, self._rng)
        mutation = point_mutation if chance < _SUBTREE + _POINT else hoist_mutation
        return mutation(parent, self._grammar, self._rng)


class RegularizedEvolution(RandomSearch):
    """Regularized evolution (Real et al., arXiv 1802.01548), as in AutoML-Zero (2003.03384).

    The fittest of a random sample is mutated; the child joins, and the oldest is removed.
    """

    def __init__(self, grammar: Grammar, seed: int, seeds: Sequence[Expression] = ()) -> None:
        """Start with the seed trees."""
        super().__init__(grammar, seed, seeds)
        self._population: deque[Candidate] = deque(maxlen=_POPULATION)

    def ask(self, count: int) -> list[Expression]:
        """Mutants of tournament winners; random trees until the population is full."""
        if len(self._population) < (self._population.maxlen or 0):
            return super().ask(count)
        return [self._child() for _ in range(count)]

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """Add candidates with full or partial fitness."""
        self._population.extend(one for one in evaluated if one.estimated_fitness is not None)

    def _child(self) -> Expression:
        places = self._rng.integers(len(self._population), size=_SAMPLE)
        return self._mutant(min((self._population[at] for at in places), key=by_fitness).node)


class GeneticProgramming(RandomSearch):
    """Genetic programming on islands: crossover, joins, mutation, selection by fitness and size.

    Survivors are chosen by non-domination and crowding (NSGA-II, Deb et al. 2002) of fitness
    and size; at intervals the best of each island are copied to the next one.  More than half of
    the offspring is one mutation from the front of all islands.  A tree that was proposed before is
    drawn again up to ten times, so that these mutations are exhausted: filters discard most trees
    at little cost.
    """

    def __init__(self, grammar: Grammar, seed: int, seeds: Sequence[Expression] = ()) -> None:
        """Start with the seed trees, spread over the islands."""
        super().__init__(grammar, seed, seeds)
        self._islands: list[list[Candidate]] = [[] for _ in range(_ISLANDS)]
        self._generation = 0
        self._front: list[Candidate] = []
        self._proposed: set[Expression] = set()

    def ask(self, count: int) -> list[Expression]:
        """Offspring of every island in turn; random trees until each island has parents."""
        if not all(len(island) >= 2 for island in self._islands):
            first = super().ask(count)
            self._proposed.update(map(canonical, first))
            return first
        return [self._new(self._islands[place % len(self._islands)]) for place in range(count)]

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """Add offspring to their parents' island, migrate, and select survivors."""
        for place, one in enumerate(evaluated):
            if one.estimated_fitness is not None:
                self._islands[place % len(self._islands)].append(one)
        self._front = front([*self._front, *evaluated])
        self._generation += 1
        if self._generation % _MIGRATION == 0:
            best = [sorted(island, key=by_fitness)[:_MIGRANTS] for island in self._islands]
            for place, island in enumerate(self._islands):
                known = {one.node for one in island}
                island.extend(one for one in best[place - 1] if one.node not in known)
        self._islands = [survivors(island, _ISLAND) for island in self._islands]

    def _new(self, island: Sequence[Candidate]) -> Expression:
        """A child that was not proposed before, if ten draws give one."""
        for _ in range(_TRIES):
            child = self._child(island)
            if (known := canonical(child)) not in self._proposed:
                self._proposed.add(known)
                break
        return child

    def _child(self, island: Sequence[Candidate]) -> Expression:
        if self._front and self._rng.random() < _NEAR:
            best = self._front[self._rng.integers(len(self._front))].node
            mutation = hoist_mutation if self._rng.random() < _HOISTED else point_mutation
            return mutation(best, self._grammar, self._rng)
        if self._rng.random() < _FRESH:
            return random_score(self._grammar, self._rng)
        parent = self._parent(island)
        chance = self._rng.random()
        if chance < _CROSSED + _JOINED:
            combine = crossover if chance < _CROSSED else join
            return combine(parent, self._parent(island), self._grammar, self._rng)
        return self._mutant(parent)

    def _parent(self, island: Sequence[Candidate]) -> Expression:
        """The winner of a tournament, half of the time among trees as short as the first one.

        Survivors are a front, on which size alone makes no parent; a long front has parents of all
        sizes.
        """
        places = self._rng.integers(len(island), size=_TOURNAMENT)
        some: list[Candidate] = [island[place] for place in places.tolist()]
        if self._rng.random() < _SHORTER:
            some = [one for one in some if one.node.size <= some[0].node.size]
        return min(some, key=by_fitness).node


def survivors(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first non-dominated fronts of fitness and size; the least crowded of the last one."""
    if len(candidates) <= count:
        return list(candidates)
    values = np.array(
        [[-(one.estimated_fitness or 0.0), one.node.size] for one in candidates], np.float64
    )
    *levels, last = NonDominatedSorting().do(values, n_stop_if_ranked=count)
    crowded = last[np.argsort(-calc_crowding_distance(values[last]), kind="stable")]
    kept = np.concatenate([*levels, crowded])[:count]
    return [candidates[place] for place in sorted(kept)]


EXHAUSTIVE = "exhaustive"
_ENGINES: dict[str, Callable[[Grammar, int, Sequence[Expression]], Engine]] = {
    EXHAUSTIVE: ExhaustiveSearch,
    "random": RandomSearch,
    "regularized": RegularizedEvolution,
    "genetic": GeneticProgramming,
}
ENGINES = tuple(_ENGINES)


def engine_of(name: str, grammar: Grammar, seed: int, seeds: Sequence[Expression] = ()) -> Engine:
    """An engine by name, one of `ENGINES`."""
    return _ENGINES[name](grammar, seed, [one for one in seeds if grammar.holds(one)])
