"""The kit for engines passes those that are shipped, and finds what is wrong with others."""

import numpy as np
import pytest
from engine_kit import check_engine

from lmscout.discovery.engines import (
    ENGINES,
    EXHAUSTIVE,
    GeneticProgramming,
    RandomSearch,
    RegularizedEvolution,
    engine_of,
)
from lmscout.discovery.symbolic_search import DeepSettings
from lmscout.errors import LmscoutError
from lmscout.proxies.spaces import random_score


@pytest.mark.parametrize("make", [RandomSearch, RegularizedEvolution, GeneticProgramming])
def test_shipped_engines_conform(make):
    check_engine(make)


def test_engines_are_found_by_name():
    for name in ENGINES:
        check_engine(
            lambda *arguments, name=name: engine_of(name, *arguments), chance=name != EXHAUSTIVE
        )
    with pytest.raises(LmscoutError, match="unknown engine 'annealing': expected one of exh"):
        DeepSettings(engine="annealing")


class TooFew(RandomSearch):
    def ask(self, count):
        return super().ask(count)[1:]


class Forgetful(RandomSearch):
    def __init__(self, grammar, seed, seeds=()):
        super().__init__(grammar, seed)


class Unseeded(RandomSearch):
    def __init__(self, grammar, seed, seeds=()):
        super().__init__(grammar, np.random.SeedSequence().entropy, seeds)


class Deaf(RandomSearch):
    def __init__(self, grammar, seed, seeds=()):
        super().__init__(grammar, 0, seeds)


class Large(RandomSearch):
    def ask(self, count):
        other = type(self._grammar)(largest=30)
        return [*super().ask(count - 30), *(random_score(other, self._rng) for _ in range(30))]


class Stuck(RandomSearch):
    def ask(self, count):
        if not hasattr(self, "first"):
            self.first = super().ask(count)
        return self.first


def test_the_kit_finds_chance_where_there_should_be_none():
    with pytest.raises(AssertionError, match="despite chance=False"):
        check_engine(RandomSearch, chance=False)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (TooFew, "another number of trees"),
        (Forgetful, "lack a given tree"),
        (Unseeded, "one seed gave two"),
        (Deaf, "two seeds gave one"),
        (Large, "outside its grammar"),
        (Stuck, "repeats its proposals"),
    ],
)
def test_the_kit_finds(make, wrong):
    with pytest.raises(AssertionError, match=wrong):
        check_engine(make)
