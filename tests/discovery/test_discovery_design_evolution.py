from dataclasses import replace

import numpy as np

from lmscout.benchmarks.limits import form_of, limited, limits_of
from lmscout.benchmarks.space import NANO, PICO
from lmscout.discovery.design import RegularizedEvolution

LIMIT = 2_000_000
LIMITS = limits_of(LIMIT)


def wide_and_shallow(spec):
    """A score that no limit of parameters alone maximises."""
    return np.log(sum(spec.inner)) - abs(spec.width - 190) / 50 - spec.depth / 10


def searched(engine, count, score=wide_and_shallow):
    found = []
    while len(found) < count:
        proposed = engine.ask(16)
        scores = [score(spec) for spec in proposed]
        engine.tell(proposed, scores)
        found += zip(scores, proposed, strict=True)
    return found


def test_proposals_are_new_and_within_space_and_limit():
    found = searched(RegularizedEvolution(limited(PICO, LIMITS), 0), 200)
    specs = [spec for _, spec in found]
    assert len(set(specs)) == len(specs)
    for spec in specs:
        assert spec.parameters() <= LIMIT
        assert form_of(PICO, spec) is not None


def test_it_finds_more_than_as_many_draws():
    space = limited(PICO, LIMITS)
    evolved, drawn = (
        [
            max(score for score, _ in searched(RegularizedEvolution(space, seed, **settings), 192))
            for seed in range(5)
        ]
        for settings in ({}, {"population": 10_000})
    )
    assert sum(one > other for one, other in zip(evolved, drawn, strict=True)) >= 4


def test_the_same_seed_asks_the_same():
    space = limited(PICO, LIMITS)
    walks = [searched(RegularizedEvolution(space, seed), 96) for seed in (3, 3, 4)]
    assert walks[0] == walks[1]
    assert walks[0] != walks[2]


def test_the_oldest_is_removed_however_good_it_is():
    space = limited(PICO, LIMITS)
    engine = RegularizedEvolution(space, 0, population=5, sample=5)
    first = engine.ask(5)
    engine.tell(first, [100.0, 1.0, 2.0, 3.0, 4.0])
    (child,) = engine.ask(1)
    engine.tell([child], [0.0])
    population = [score for score, _ in engine._population]
    assert population == [1.0, 2.0, 3.0, 4.0, 0.0]


def test_what_has_no_score_is_no_parent():
    engine = RegularizedEvolution(limited(PICO, LIMITS), 0, population=4, sample=2)
    engine.tell(engine.ask(8), [np.nan, np.inf, 1.0, -np.inf, 2.0, np.nan, 3.0, np.nan])
    assert [score for score, _ in engine._population] == [1.0, 2.0, 3.0]


def test_a_space_that_is_exhausted_gives_fewer():
    few = replace(NANO, families=("gpt2",), depths=(1,), widths=(16,), groups=(1,), missing=(0.0,))
    engine = RegularizedEvolution(limited(few, limits_of(1_000_000)), 0, population=4, sample=2)
    proposed = engine.ask(50)
    engine.tell(proposed, [1.0] * len(proposed))
    assert engine.ask(5) == []
    # One block of one or two heads and one of three widths.
    assert {(spec.heads, spec.inner) for spec in proposed} == {
        ((heads,), (inner,)) for heads in (1, 2) for inner in (16, 32, 64)
    }
