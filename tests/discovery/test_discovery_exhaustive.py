import sys

import numpy as np
import pytest
import scipy.stats

from lmscout.discovery import rank_space
from lmscout.proxies import Space, evaluate, published
from lmscout.proxies.primitives import INPUTS

N, BLOCKS = 23, 3
CHAINS = (("abs",), ("l1",), ("log",), ("negate", "exp"))
ALL = ("mean", "sum", "max", "min")


@pytest.fixture
def small():
    """Random block values of a small space, with what can go wrong among them."""
    rng = np.random.default_rng(0)
    depth = rng.integers(1, BLOCKS + 1, N)
    inputs = ("act", "grad", "weight")
    space = Space("small", inputs, CHAINS, ALL)
    values = {
        (name, chain): rng.normal(size=(N, BLOCKS)).astype(np.float32)
        for name in inputs
        for chain in CHAINS
    }
    values["act", ("l1",)] = values["act", ("abs",)]  # equal branches
    values["grad", ("log",)] = np.ones((N, BLOCKS), np.float32)  # a constant
    values["weight", ("log",)][4, 0] = np.inf  # overflow within the depth
    for block_values in values.values():
        block_values[np.arange(BLOCKS) >= depth[:, None]] = np.nan
    return space, lambda name, chain: values[name, chain], depth, np.round(rng.normal(size=N), 1)


def test_every_proxy_has_the_correlation_of_its_definition(small):
    space, branch, depth, quality = small
    ranking = rank_space(space, branch, depth, quality, threads=2)
    undefined = 0
    for index in range(space.size):
        scores = evaluate(space.proxy(index), branch, depth)
        if not np.isfinite(scores).all() or np.ptp(scores) == 0:
            undefined += 1
            assert np.isnan(ranking.spearman[index])
        else:
            expected = scipy.stats.spearmanr(np.round(scores, 9), quality).statistic
            assert ranking.spearman[index] == pytest.approx(expected, abs=1e-6)
    assert undefined == ranking.n_undefined > 0


def test_equal_scores_are_counted_once(small):
    space, branch, depth, quality = small
    ranking = rank_space(space, branch, depth, quality)
    distinct = set()
    for index in range(space.size):
        scores = evaluate(space.proxy(index), branch, depth)
        if np.isfinite(scores).all() and np.ptp(scores) > 0:
            distinct.add(tuple(np.float32(scores)))
    assert ranking.n_distinct == len(distinct) < space.size - ranking.n_undefined


def test_the_best_is_the_strongest_whatever_its_sign(small):
    space, branch, depth, quality = small
    ranking = rank_space(space, branch, depth, quality)
    strongest = np.nanmax(np.abs(ranking.spearman))
    assert abs(ranking.spearman[ranking.best()]) == strongest
    turned = rank_space(space, branch, depth, -quality)
    assert turned.best() == ranking.best()
    assert turned.spearman[ranking.best()] == -ranking.spearman[ranking.best()]


def test_pieces_and_threads_change_nothing(small, monkeypatch):
    space, branch, depth, quality = small
    whole = rank_space(space, branch, depth, quality, threads=1)
    monkeypatch.setattr(sys.modules["lmscout.discovery.discover"], "_PIECE", 1)
    pieces = rank_space(space, branch, depth, quality, threads=3)
    np.testing.assert_array_equal(whole.spearman, pieces.spearman)
    np.testing.assert_array_equal(whole.fingerprint, pieces.fingerprint)


def test_progress_reaches_the_size_of_the_space(small):
    space, branch, depth, quality = small
    calls = []
    rank_space(space, branch, depth, quality, progress=lambda *call: calls.append(call))
    assert calls[-1] == (space.size, space.size)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_quality_that_is_constant_has_no_best(small):
    space, branch, depth, _ = small
    ranking = rank_space(space, branch, depth, np.ones(N))
    with pytest.raises(ValueError, match="no proxy"):
        ranking.best()


def test_a_planted_proxy_of_the_published_space_is_found():
    rng = np.random.default_rng(1)
    space = published(("mean", "sum"))
    values = {
        (entry.name, chain): rng.lognormal(size=(40, 2)).astype(np.float32)
        for entry in INPUTS
        for chain in space.chains
    }
    depth = rng.integers(1, 3, 40)

    def branch(name, chain):
        return values[name, chain]

    planted = space.proxy(31_415)
    ranking = rank_space(space, branch, depth, -evaluate(planted, branch, depth))
    assert evaluate(space.proxy(ranking.best()), branch, depth) == pytest.approx(
        evaluate(planted, branch, depth)
    )
    assert ranking.spearman[ranking.best()] == -1.0
