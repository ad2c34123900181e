"""Engines of the symbolic search and its candidates: genetic, regularized, random, exhaustive.

Candidates of a search in the deep space, and what they are worth on the search split.

Engines: where candidates come from.  They are asked for trees and told what became of them.

An engine knows nothing of benchmarks.  What it asks next depends on its seed and on what it
was told, so a run that was recorded can be told again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from types import MappingProxyType
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from lmscout.errors import LmscoutError
from lmscout.metrics import kendall, log_pearson, partial_spearman, spearman
from lmscout.proxies import Expression, Grammar, canonical, format_expression, parse
from lmscout.proxies.genetic import (
    crossover,
    hoist_mutation,
    join,
    point_mutation,
    subtree_mutation,
)
from lmscout.proxies.spaces import Random, every_score, random_score
from lmscout.results import SavedAs

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A tree that was proposed, and what became of it.

    Attributes:
        node: the tree.
        fitness: on the search split, from 0 to 1; None where it was discarded before.
        discarded: the name of the rule that it fell to, or "" where it was evaluated.
        order: fingerprint of how it orders the probe architectures, 0 where that was not seen.
        estimate: of the fitness, where the race dropped it: by the architectures seen until then.
    """

    node: Annotated[Expression, SavedAs(format_expression, parse)]
    fitness: float | None
    discarded: str = ""
    order: int = 0
    estimate: float | None = None

    @property
    def worth(self) -> float | None:
        """What an engine may go by: the fitness, or what is known of it."""
        return self.estimate if self.fitness is None else self.fitness


def _spearman(scores: Values, quality: Values, _: Values) -> float:
    return spearman(scores, quality)


def _kendall(scores: Values, quality: Values, _: Values) -> float:
    return kendall(scores, quality)


def _order_and_distance(scores: Values, quality: Values, _: Values) -> float:
    """Of two that order alike, the one whose scores are as far apart as the quality is."""
    return (spearman(scores, quality) + log_pearson(scores, quality)) / 2


def _beyond_size(scores: Values, quality: Values, params: Values) -> float:
    return partial_spearman(scores, quality, params)


Coefficient = Callable[[Values, Values, Values], float]

DEFAULT_OBJECTIVE = "spearman+pearson"  # chosen on halves of search splits: docs/deep-search.md
OBJECTIVES: Mapping[str, Coefficient] = MappingProxyType(
    {
        "spearman": _spearman,
        DEFAULT_OBJECTIVE: _order_and_distance,
        "kendall": _kendall,
        "beyond-size": _beyond_size,
    }
)
"""What is sought: a coefficient of scores, quality and numbers of parameters, each [n].  The
sign is free, as a proxy may fall with quality; "spearman+pearson" is the mean of Spearman's and of
Pearson's, the latter of logarithms; "beyond-size" holds the parameters fixed."""


def agreed(coefficients: Sequence[float], room: Sequence[float] = ()) -> float:
    """The least of some coefficients, rising or falling with quality on all benchmarks alike.

    Args:
        coefficients: one a benchmark.
        room: by how much each may yet be better; nothing by default.

    Returns:
        |coefficient| of the worst benchmark; below 0 where they do not agree in sign; NaN
        where one is.
    """
    values = np.array(coefficients, np.float64)
    more = np.array(room or [0.0] * len(values), np.float64)
    return float(max(np.min(values + more), np.min(more - values)))


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that none is both as short as and fitter than, shortest first."""
    best: list[Candidate] = []
    for one in sorted(_evaluated(candidates), key=lambda one: (one.node.size, -_of(one))):
        if not best or _of(one) > _of(best[-1]):
            best.append(one)
    return best


def fittest(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """The fittest candidates, the shorter of two that are alike first."""
    return sorted(_evaluated(candidates), key=by_fitness)[:count]


def by_fitness(one: Candidate) -> tuple[float, int]:
    """Sorts what is worth most first, the shorter of two that are alike; for what has a worth."""
    return -(one.worth or 0.0), one.node.size


def to_beat(best: Sequence[Candidate], size: int) -> float:
    """Fitness of the front at a size; 0 where nothing is as short."""
    return max((_of(one) for one in best if one.node.size <= size), default=0.0)


def _evaluated(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [one for one in candidates if one.fitness is not None]


def _of(candidate: Candidate) -> float:
    assert candidate.fitness is not None
    return candidate.fitness


EXHAUSTIVE = "exhaustive"

# Tried on search splits of their own (seeds 20 to 49 of pico and LiteTransformerSearch): see
# docs/deep-search.md, which has the table.
_NEAR = 0.6  # share of offspring that differs by one step from a tree of the front
_HOISTED = 0.3  # of these, how many are shorter; the others have one word exchanged
_TRIES = 10  # draws of a tree that was asked before, until it is asked again
_CROSSED, _JOINED = 0.1, 0.3  # shares of offspring of two parents
_SUBTREE, _POINT = 0.55, 0.3  # shares of the offspring of one; hoisted are the rest
_FRESH = 0.02  # share of offspring that is grown anew, so that no island runs dry
_RIVALS = 6  # trees of an island of which the fittest becomes a parent
_SHORTER = 0.5  # how often only those rivals count that are no longer than the first


class Engine(Protocol):
    """A source of candidates."""

    def ask(self, count: int) -> list[Expression]:
        """Trees to judge; fewer where there are no more."""

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """What became of the trees asked last, in their order."""


class ExhaustiveSearch:
    """Every tree, shortest first: nothing short is missed, and nothing long is reached."""

    def __init__(self, grammar: Grammar, seed: int, seeds: Sequence[Expression] = ()) -> None:
        """Begin with given trees, if any; nothing depends on the seed."""
        self._trees = chain(seeds, every_score(grammar))

    def ask(self, count: int) -> list[Expression]:
        """The next trees."""
        return list(islice(self._trees, count))

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """Nothing is learnt."""


class RandomSearch:
    """Every tree is grown anew: what the others have to beat."""

    def __init__(self, grammar: Grammar, seed: int, seeds: Sequence[Expression] = ()) -> None:
        """Begin with given trees, if any."""
        self._grammar, self._rng = grammar, np.random.default_rng(seed)
        self._seeds = deque(seeds)

    def ask(self, count: int) -> list[Expression]:
        """The given trees first, then random ones."""
        return _begun(self._seeds, self._grammar, count, self._rng)

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """Nothing is learnt."""


class RegularizedEvolution:
    """Regularized evolution (Real et al., arXiv 1802.01548), as AutoML-Zero runs it (2003.03384).

    The fittest of a random sample is mutated; the child joins, and the oldest goes.
    """

    def __init__(
        self,
        grammar: Grammar,
        seed: int,
        seeds: Sequence[Expression] = (),
        *,
        population: int = 100,
        sample: int = 10,
    ) -> None:
        """Begin with given trees, if any."""
        self._grammar, self._rng = grammar, np.random.default_rng(seed)
        self._seeds = deque(seeds)
        self._population: deque[Candidate] = deque(maxlen=population)
        self._sample = sample

    def ask(self, count: int) -> list[Expression]:
        """Mutants of tournament winners; random trees until the population is full."""
        if len(self._population) < (self._population.maxlen or 0):
            return _begun(self._seeds, self._grammar, count, self._rng)
        return [self._child() for _ in range(count)]

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """Those that raced join, whether they arrived or not; others have nothing to compare."""
        self._population.extend(one for one in evaluated if one.worth is not None)

    def _child(self) -> Expression:
        places = self._rng.integers(len(self._population), size=self._sample)
        parent = min((self._population[place] for place in places), key=by_fitness).node
        return _mutant(parent, self._grammar, self._rng)


class GeneticProgramming:
    """Islands of trees: crossed, joined, mutated, hoisted; selected for fitness and brevity.

    Survivors are chosen by non-domination and crowding (NSGA-II, Deb et al. 2002) of fitness
    and size; now and then the best of each island are copied to the next one.  More than half
    of the offspring is sought a step from the front of all islands, and what was asked before is
    drawn again, up to ten times, so that these steps are tried out: what falls before it is
    evaluated costs little.
    """

    def __init__(
        self,
        grammar: Grammar,
        seed: int,
        seeds: Sequence[Expression] = (),
        *,
        islands: int = 4,
        population: int = 25,
        migration: int = 5,
        migrants: int = 4,
    ) -> None:
        """Begin with given trees, if any.

        Args:
            grammar: which trees may grow.
            seed: of all chance.
            seeds: trees to begin with, spread over the islands.
            islands: how many populations.
            population: trees of each.
            migration: generations between migrations.
            migrants: trees that are copied then.
        """
        self._grammar, self._rng = grammar, np.random.default_rng(seed)
        self._seeds = deque(seeds)
        self._islands: list[list[Candidate]] = [[] for _ in range(islands)]
        self._population, self._migration, self._migrants = population, migration, migrants
        self._generation = 0
        self._front: list[Candidate] = []
        self._asked: set[Expression] = set()

    def ask(self, count: int) -> list[Expression]:
        """Offspring of every island in turn; random trees where there are no parents yet."""
        if not all(len(island) >= 2 for island in self._islands):
            begun = _begun(self._seeds, self._grammar, count, self._rng)
            self._asked.update(map(canonical, begun))
            return begun
        return [self._new(self._islands[place % len(self._islands)]) for place in range(count)]

    def tell(self, evaluated: Sequence[Candidate]) -> None:
        """Offspring join their parents' island, of which as many survive as there is room."""
        for place, one in enumerate(evaluated):
            if one.worth is not None:
                self._islands[place % len(self._islands)].append(one)
        self._front = front([*self._front, *evaluated])
        self._generation += 1
        if self._generation % self._migration == 0:
            best = [sorted(island, key=by_fitness)[: self._migrants] for island in self._islands]
            for place, island in enumerate(self._islands):
                known = {one.node for one in island}
                island.extend(one for one in best[place - 1] if one.node not in known)
        self._islands = [survivors(island, self._population) for island in self._islands]

    def _new(self, island: Sequence[Candidate]) -> Expression:
        """A child that was not asked before, if there is one at hand."""
        for _ in range(_TRIES):
            child = self._child(island)
            if (known := canonical(child)) not in self._asked:
                self._asked.add(known)
                break
        return child

    def _child(self, island: Sequence[Candidate]) -> Expression:
        if self._front and self._rng.random() < _NEAR:
            best = self._front[self._rng.integers(len(self._front))].node
            change = hoist_mutation if self._rng.random() < _HOISTED else point_mutation
            return change(best, self._grammar, self._rng)
        if self._rng.random() < _FRESH:
            return random_score(self._grammar, self._rng)
        parent = self._parent(island)
        chance = self._rng.random()
        if chance < _CROSSED:
            return crossover(parent, self._parent(island), self._grammar, self._rng)
        if chance < _CROSSED + _JOINED:
            return join(parent, self._parent(island), self._grammar, self._rng)
        return _mutant(parent, self._grammar, self._rng)

    def _parent(self, island: Sequence[Candidate]) -> Expression:
        """The fittest of a few, or of those among them that are as short as one of them.

        Survivors are a front, of which brevity alone makes no parent; but a long front grows at
        all its sizes.
        """
        places = self._rng.integers(len(island), size=_RIVALS)
        some: list[Candidate] = [island[place] for place in places]
        if self._rng.random() < _SHORTER:
            longest = some[0].node.size
            some = [one for one in some if one.node.size <= longest]
        return min(some, key=by_fitness).node


def survivors(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first non-dominated fronts of fitness and size; the last one's most spread out."""
    if len(candidates) <= count:
        return list(candidates)
    values = np.array([[-(one.worth or 0.0), one.node.size] for one in candidates], np.float64)
    kept: list[int] = []
    for level in NonDominatedSorting().do(values, n_stop_if_ranked=count):
        spread = calc_crowding_distance(values[level])
        kept.extend(level[np.argsort(-spread, kind="stable")[: count - len(kept)]])
    return [candidates[place] for place in sorted(kept)]


def _mutant(parent: Expression, grammar: Grammar, rng: Random) -> Expression:
    chance = rng.random()
    if chance < _SUBTREE:
        return subtree_mutation(parent, grammar, rng)
    if chance < _SUBTREE + _POINT:
        return point_mutation(parent, grammar, rng)
    return hoist_mutation(parent, grammar, rng)


def _begun(seeds: deque[Expression], grammar: Grammar, count: int, rng: Random) -> list[Expression]:
    given = [seeds.popleft() for _ in range(min(count, len(seeds)))]
    return [*given, *(random_score(grammar, rng) for _ in range(count - len(given)))]


_ENGINES: dict[str, Callable[[Grammar, int, Sequence[Expression]], Engine]] = {
    EXHAUSTIVE: ExhaustiveSearch,
    "random": RandomSearch,
    "regularized": RegularizedEvolution,
    "genetic": GeneticProgramming,
}
ENGINES = tuple(_ENGINES)


def engine_of(name: str, grammar: Grammar, seed: int, seeds: Sequence[Expression] = ()) -> Engine:
    """An engine by name.

    Raises:
        LmscoutError: there is none of that name.
    """
    if name not in _ENGINES:
        raise LmscoutError(f"unknown engine {name!r}: expected one of {', '.join(ENGINES)}")
    return _ENGINES[name](grammar, seed, [one for one in seeds if grammar.holds(one)])
