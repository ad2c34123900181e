"""Selection of candidates: fronts and survivors, against their definitions."""

import zlib
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmscout.discovery import engines
from lmscout.discovery.engines import (
    Candidate,
    GeneticProgramming,
    RandomSearch,
    RegularizedEvolution,
    fittest,
    front,
    survivors,
    to_beat,
)
from lmscout.discovery.filters import RACE
from lmscout.proxies import Grammar, canonical, parse, walk

TREES = {
    size: parse("sum(average(" + "abs(" * (size - 3) + "act" + ")" * (size - 1))
    for size in range(3, 12)
}

candidates = st.lists(
    st.builds(
        lambda size, fitness: Candidate(TREES[size], fitness),
        st.integers(3, 11),
        st.none() | st.integers(0, 20).map(lambda n: n / 20),
    ),
    max_size=30,
)


def dominates(one, other):
    no_worse = one.node.size <= other.node.size and one.fitness >= other.fitness
    return no_worse and (one.node.size, one.fitness) != (other.node.size, other.fitness)


@given(candidates)
def test_the_front_is_what_nothing_dominates(some):
    evaluated = [one for one in some if one.fitness is not None]
    undominated = {
        (one.node.size, one.fitness)
        for one in evaluated
        if not any(dominates(other, one) for other in evaluated)
    }
    found = front(some)
    assert [(one.node.size, one.fitness) for one in found] == sorted(undominated)


@given(candidates, st.integers(3, 11))
def test_to_beat_is_the_best_that_is_as_short(some, size):
    short = [o.fitness for o in some if o.fitness is not None and o.node.size <= size]
    assert to_beat(front(some), size) == max(short, default=0.0)


@given(candidates, st.integers(1, 10))
def test_fittest_are_in_order(some, count):
    best = fittest(some, count)
    keys = [(-one.fitness, one.node.size) for one in best]
    assert keys == sorted(keys)
    others = sorted((-o.fitness, o.node.size) for o in some if o.fitness is not None)
    assert keys == others[:count]


@given(candidates.map(lambda some: [one for one in some if one.fitness is not None]))
def test_survivors_are_the_first_fronts(some):
    kept = survivors(some, 8)
    assert len(kept) == min(8, len(some))

    def level(one):
        above = [other for other in some if dominates(other, one)]
        return 1 + max(map(level, above)) if above else 0

    worst = max((level(one) for one in kept), default=0)
    lost = [one for one in some if not any(one is other for other in kept)]
    assert all(level(one) >= worst for one in lost)


def test_regularized_evolution_removes_the_oldest_whatever_its_fitness(monkeypatch):
    monkeypatch.setattr(engines, "_POPULATION", 5)
    engine = RegularizedEvolution(Grammar(), 0)
    best, *others = (Candidate(TREES[size], 1.0 if size == 3 else 0.1) for size in range(3, 9))
    engine.tell([best, *others[:4]])
    assert best in engine._population
    engine.tell([others[4]])
    assert best not in engine._population
    assert len(engine._population) == 5


def test_the_estimate_of_a_dropped_tree_counts_as_its_fitness(monkeypatch):
    dropped = Candidate(TREES[3], None, RACE, estimate=0.9)
    lost, poor = Candidate(TREES[4], None, "twice"), Candidate(TREES[5], 0.1)
    assert (dropped.estimated_fitness, lost.estimated_fitness, poor.estimated_fitness) == (
        0.9,
        None,
        0.1,
    )
    assert survivors([poor, dropped], 1) == [dropped]
    assert fittest([dropped, poor], 2) == front([dropped, poor]) == [poor]  # it did not arrive
    regularized = RegularizedEvolution(Grammar(), 0)
    regularized.tell([dropped, lost, poor])
    assert list(regularized._population) == [dropped, poor]
    monkeypatch.setattr(engines, "_ISLANDS", 1)
    genetic = GeneticProgramming(Grammar(), 0)
    genetic.tell([dropped, lost, poor])
    assert genetic._islands == [[dropped, poor]]


def test_the_best_of_an_island_come_to_the_next_one(monkeypatch):
    for name, value in (("_ISLANDS", 2), ("_ISLAND", 3), ("_MIGRATION", 1), ("_MIGRANTS", 1)):
        monkeypatch.setattr(engines, name, value)
    engine = GeneticProgramming(Grammar(), 0)
    evaluated = [Candidate(TREES[size], fitness) for size, fitness in ((3, 0.9), (4, 0.1))]
    engine.tell(evaluated)
    first, second = engine._islands
    assert evaluated[0] in second
    assert evaluated[1] in first


def test_genetic_programming_climbs_where_chance_does_not():
    wanted = parse("sum(total(abs(mul(weight, grad)))) / params")

    def fitness(node):
        words = {one for one in repr(node).split("'") if one.isalpha()}
        target = {one for one in repr(wanted).split("'") if one.isalpha()}
        return len(words & target) / len(words | target)

    def best(engine):
        top = 0.0
        for _ in range(25):
            evaluated = [Candidate(node, fitness(node)) for node in engine.ask(80)]
            top = max(top, *(one.fitness for one in evaluated))
            engine.tell(evaluated)
        return top

    grammar = Grammar(largest=12)
    ahead = [
        best(GeneticProgramming(grammar, seed)) - best(RandomSearch(grammar, seed))
        for seed in range(3)
    ]
    assert np.mean(ahead) > 0.02
    assert min(ahead) >= 0


def proposals(batches):
    """Batches of the genetic engine where long trees are the fittest, each with its front."""
    engine = GeneticProgramming(Grammar(), 0)
    every, best = [], []
    for _ in range(batches):
        trees = engine.ask(12)
        luck = [(zlib.crc32(str(one).encode()) % 997) / 1e5 for one in trees]
        evaluated = [Candidate(o, o.size / 100 + more) for o, more in zip(trees, luck, strict=True)]
        every.append((trees, best))
        engine.tell(evaluated)
        best = front([*best, *evaluated])
    return every


def is_a_step_from(tree, other):
    """Whether one word is exchanged, or some are left out."""
    ours, theirs = ([one.name for _, one in walk(each)] for each in (tree, other))
    if len(ours) == len(theirs):
        return sum(one != two for one, two in zip(ours, theirs, strict=True)) == 1
    return Counter(ours) < Counter(theirs)


def test_the_genetic_engine_hardly_proposes_anything_twice():
    trees = [canonical(tree) for batch, _ in proposals(60) for tree in batch]
    assert len(set(trees)) > 0.95 * len(trees)


def test_more_than_half_of_its_proposals_are_one_mutation_from_the_front():
    near = [
        any(is_a_step_from(tree, one.node) for one in best)
        for trees, best in proposals(60)[20:]
        for tree in trees
    ]
    assert np.mean(near) > 0.5
