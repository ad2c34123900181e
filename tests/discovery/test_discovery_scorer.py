from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from tiny_benchmark import tiny_benchmark

from lmscout.discovery.scorer import Scorer
from lmscout.proxies import parse
from lmscout.statistics import Batch, Workers, score_proxies
from lmscout.statistics.deep_values import DeepEvaluator

BENCHMARK = tiny_benchmark(9)
BATCH = Batch(4, 16)
TEXT = "sum(total(abs(mul(weight, grad))))"


@pytest.fixture
def scored(tmp_path):
    return Scorer(
        BENCHMARK.specs,
        "scored",
        cache=tmp_path / "scored",
        batch=BATCH,
        workers=Workers(1),
        seed=3,
    )


@pytest.fixture
def plain(tmp_path):
    """Scores of one proxy, read on their own."""
    read = partial(
        score_proxies, BENCHMARK.specs, name="plain", folder=tmp_path, workers=Workers(1)
    )

    def scores(name, seed=3, data=0, **others):
        return read([name], seed=seed, batch=Batch(4, 16, seed=data), **others)[name]

    return scores


def test_scores_are_those_of_the_seed_and_the_batch(scored, plain):
    found = scored.scores(["snip", "fisher", TEXT, "snip"])
    assert list(found) == ["snip", "fisher", TEXT]
    for name, scores in found.items():
        np.testing.assert_array_equal(scores, plain(name))
    np.testing.assert_array_equal(scored.tree_scores([parse(TEXT)])[parse(TEXT)], plain(TEXT))


def test_changes_are_of_one_thing_each(scored, plain):
    def fisher(scorer, **changes):
        return scorer.scores(["fisher"], **changes)["fisher"]

    np.testing.assert_array_equal(fisher(scored.with_other_data()), plain("fisher", data=1))
    np.testing.assert_array_equal(fisher(replace(scored, seed=4)), plain("fisher", seed=4))
    np.testing.assert_array_equal(fisher(scored, ones="act"), plain("fisher", ones="act"))
    np.testing.assert_array_equal(fisher(scored), plain("fisher"))
    np.testing.assert_array_equal(fisher(scored.subset(np.array([5, 2]))), plain("fisher")[[5, 2]])
    assert not np.array_equal(plain("fisher"), plain("fisher", ones="act"))


def test_what_is_known_is_not_read_again(scored, monkeypatch):
    scored.scores([TEXT, "fisher"])

    def build(spec, seed):
        raise AssertionError("a model was built")

    for spec in BENCHMARK.specs:
        monkeypatch.setattr(type(spec), "build", build)
    assert set(scored.scores(["fisher"])) == {"fisher"}
    assert set(scored.tree_scores([parse(TEXT)])) == {parse(TEXT)}
    with pytest.raises(AssertionError, match="was built"):
        scored.scores([TEXT, "synflow"])


def test_sketches_are_of_all_architectures(scored, plain):
    # The Frobenius norm is one of the moments that are kept exactly.
    text = "sum(average(frobenius(weight)))"
    np.testing.assert_allclose(
        DeepEvaluator(scored.sketches()).scores(parse(text)), plain(text), rtol=1e-5
    )
