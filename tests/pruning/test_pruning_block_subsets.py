"""Subsets of blocks against itertools."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscout.pruning.space import (
    are_runs,
    changed_by_one,
    drawn_subsets,
    every_subset,
    in_random_order,
    runs,
    swapped,
)

sizes = st.integers(1, 8).flatmap(lambda depth: st.tuples(st.just(depth), st.integers(0, depth)))


def members(subsets):
    return [tuple(np.flatnonzero(one).tolist()) for one in subsets]


@given(sizes)
def test_subsets_and_runs_are_all_there_are(size):
    depth, number = size
    wanted = list(combinations(range(depth), number))
    assert members(every_subset(depth, number)) == wanted
    adjacent = [one for one in wanted if all(b - a == 1 for a, b in pairwise(one))]
    assert members(runs(depth, number)) == adjacent
    assert [one for one in wanted if one in adjacent] == [
        one for one, run in zip(wanted, are_runs(every_subset(depth, number)), strict=True) if run
    ]


@given(sizes, st.integers(0, 9))
def test_neighbours_of_a_subset_are_all_there_are(size, seed):
    depth, number = size
    wanted = list(combinations(range(depth), number))
    own = wanted[seed % len(wanted)]
    subset = np.isin(np.arange(depth), own)
    assert sorted(members(swapped(subset))) == [
        one for one in wanted if len(set(one) & set(own)) == number - 1
    ]
    assert sorted(members(changed_by_one(subset, True))) == [
        one for one in combinations(range(depth), number + 1) if set(one) > set(own)
    ]
    fewer = combinations(range(depth), number - 1) if number else []
    assert sorted(members(changed_by_one(subset, False))) == [
        one for one in fewer if set(one) < set(own)
    ]


@pytest.mark.parametrize(("depth", "number", "count"), [(10, 3, 40), (30, 9, 500), (6, 3, 20)])
def test_draws_are_distinct_and_seldom_hold_the_ends(depth, number, count):
    subsets = drawn_subsets(depth, number, count, np.random.default_rng(0))
    drawn = members(subsets)
    assert len(set(drawn)) == len(drawn) == count
    assert {len(one) for one in drawn} == {number}
    held = subsets[: count // 2].mean(axis=0)
    assert held[[0, -1]].mean() < 0.65 * held[1:-1].mean()
    again = drawn_subsets(depth, number, count, np.random.default_rng(0))
    assert (again == subsets).all()
    assert (drawn_subsets(depth, number, count, np.random.default_rng(1)) != subsets).any()


def test_no_more_are_drawn_than_there_are():
    drawn = members(drawn_subsets(5, 2, 99, np.random.default_rng(0)))
    assert sorted(drawn) == list(combinations(range(5), 2))
    assert members(drawn_subsets(5, 0, 3, np.random.default_rng(0))) == [()]


def test_a_random_order_loses_nothing():
    every = every_subset(8, 3)
    ordered = in_random_order(every, np.random.default_rng(0))
    assert sorted(members(ordered)) == members(every)
    with_ends = ordered[:, [0, -1]].any(axis=1)
    assert with_ends[:15].sum() < with_ends[-15:].sum()
