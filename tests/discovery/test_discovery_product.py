"""The product of several searches: its members, and the sign of each."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscout.discovery.combination import Known, choose
from lmscout.discovery.engines import OBJECTIVES, Candidate
from lmscout.metrics import spearman
from lmscout.proxies import format_expression, parse
from lmscout.statistics.deep_values import joined_score

TEXTS = [
    f"{aggregate}(average({word}(act)))"
    for aggregate in ("sum", "max")
    for word in ("abs", "exp", "square", "log")
]
NODES = [parse(text) for text in TEXTS]
QUALITY = np.random.default_rng(0).normal(size=40)


def finalists(*searches):
    return [[Candidate(NODES[place], 0.5) for place in places] for places in searches]


def known(*scores, quality=QUALITY):
    return Known(
        dict(zip(NODES, (one[None] for one in scores), strict=False)),
        quality,
        np.ones(len(quality)),
    )


def noisy(noise, seed=1, shift=0.0):
    """Positive scores that follow quality, the closer the less noise."""
    return np.exp(QUALITY + noise * np.random.default_rng(seed).normal(size=40) + shift)


def chosen(searches, *benches):
    return choose(finalists(*searches), benches, OBJECTIVES["spearman"])


def test_the_best_of_each_search_on_full_tensors_is_a_member():
    bench = known(noisy(0.9), noisy(0.2, 2), noisy(0.3, 3), noisy(0.8, 4))
    found = chosen([[0, 1], [2, 3]], bench)
    assert [one.node for one in found.members] == [NODES[1], NODES[2]]
    assert [one.fitness for one in found.members] == pytest.approx(
        [spearman(bench.scores[node][0], QUALITY) for node in (NODES[1], NODES[2])]
    )
    np.testing.assert_allclose(found.searched[0], noisy(0.2, 2) * noisy(0.3, 3))
    assert format_expression(found.node) == f"{TEXTS[1]} * {TEXTS[2]}"


def test_what_is_far_behind_on_full_tensors_is_no_member():
    close, far = noisy(0.35, 3), noisy(5.0, 2)
    with_both = chosen([[0], [1], [2]], known(noisy(0.3), far, close))
    assert [one.node for one in with_both.members] == [NODES[0], NODES[2]]
    alone = chosen([[1]], known(noisy(0.3), far, close))
    assert [one.node for one in alone.members] == [NODES[1]]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=5))
def test_members_count_the_way_in_which_they_rise(ways):
    """Whatever sign and direction each has, the product orders as their mean logarithm does."""
    logs = [QUALITY + 0.3 * np.random.default_rng(9 + k).normal(size=40) for k in range(len(ways))]
    scores = [
        (1.0 if positive else -1.0) * np.exp(log if rising else -log)
        for log, (positive, rising) in zip(logs, ways, strict=True)
    ]
    found = chosen([[place] for place in range(len(ways))], known(*scores))
    assert len(found.members) == len(ways)
    assert spearman(found.searched[0], np.sum(logs, axis=0)) == pytest.approx(1.0, abs=1e-3)
    turned = joined_score(found.node, dict(zip(NODES, scores, strict=False)))
    np.testing.assert_array_equal(found.searched[0], turned)


def test_scores_of_both_signs_are_no_factor():
    mixed, positive = QUALITY, noisy(0.4)
    assert chosen([[0], [1]], known(mixed, positive)).node == NODES[1]
    found = chosen([[0]], known(mixed))  # unless there is nothing else
    assert (found.node, found.members[0].fitness) == (NODES[0], pytest.approx(1.0))
    np.testing.assert_allclose(found.searched[0], mixed, rtol=2e-9)


def test_on_several_benchmarks_a_member_has_one_sign_on_all_and_is_worth_the_worst():
    other = dataclasses.replace(known(noisy(0.3), -noisy(0.1)), quality=QUALITY)
    found = chosen([[0, 1]], known(noisy(0.4), noisy(0.1)), other)
    assert found.node == NODES[0]
    assert found.members[0].fitness == pytest.approx(
        min(spearman(noisy(0.4), QUALITY), spearman(noisy(0.3), QUALITY))
    )
    assert len(found.searched) == 2


def test_scores_that_overflow_on_full_tensors_make_no_member():
    overflowing = noisy(0.1)
    overflowing[np.argmax(overflowing)] = np.inf
    assert chosen([[0], [1]], known(overflowing, noisy(0.4))).node == NODES[1]
