import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from designing_process import BATCH, EVALUATIONS, SPACE, design_tiny

from lmscout.benchmarks.mutation import form_of
from lmscout.discovery import Design, design, signed_proxy
from lmscout.discovery.design import AT_ONCE
from lmscout.errors import LmscoutError
from lmscout.models import spec_from_dict
from lmscout.statistics import Workers, score_proxies

SCRIPT = Path(__file__).with_name("designing_process.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return design_tiny(tmp_path_factory.mktemp("design"))


def figures(result):
    return {key: value for key, value in result.to_json().items() if key != "seconds"}


def test_what_is_found_is_of_the_space_within_the_limit_and_scored_as_said(found, tmp_path):
    assert form_of(SPACE, found.spec) is not None
    assert found.spec.parameters() <= 4000
    assert (found.n_scored, found.n_undefined) == (EVALUATIONS, 0)
    scores = score_proxies([found.spec], ["snip"], name="again", folder=tmp_path, batch=BATCH)
    assert found.score == scores["snip"][0]
    assert found.score >= found.drawn_score
    assert spec_from_dict(found.to_json()["spec"]) == found.spec
    found.save(tmp_path / "found.json")
    assert Design.load(tmp_path / "found.json") == found


@pytest.mark.parametrize("seed", range(4))
def test_all_that_were_drawn_count_as_drawn(tmp_path, seed):
    """Readings go in batches: the first are all drawn, and more than the population holds."""
    found = design_tiny(tmp_path, proxy="parameters", seed=seed, evaluations=AT_ONCE)
    assert found.n_scored == AT_ONCE
    assert found.drawn_score == found.score


def test_with_several_weights_the_score_is_the_mean_over_them(found, tmp_path):
    calls = []
    several = design_tiny(
        tmp_path, weights=3, evaluations=20, progress=lambda _, *done: calls.append(done)
    )
    assert calls[-1] == (60, 60)
    assert calls == sorted(calls)
    assert (found.weights, several.weights) == (1, 3)
    assert several.to_json()["weights"] == 3
    scores = [
        score_proxies(
            [several.spec],
            ["snip"],
            name="again",
            folder=tmp_path,
            seed=seed,
            batch=replace(BATCH, seed=seed),
        )["snip"][0]
        for seed in range(3)
    ]
    assert len(set(scores)) == 3
    assert several.score == pytest.approx(sum(scores) / 3, rel=1e-12)
    with pytest.raises(LmscoutError, match="0 draws of initial weights"):
        design_tiny(tmp_path, weights=0)


def test_two_workers_find_the_same(found, tmp_path):
    assert figures(design_tiny(tmp_path, workers=2)) == figures(found)


def test_another_seed_searches_elsewhere(found, tmp_path):
    other = design_tiny(tmp_path, seed=1)
    assert other.spec != found.spec or other.drawn_score != found.drawn_score


def test_a_search_that_was_killed_goes_on_and_finds_the_same(found, tmp_path):
    at = AT_ONCE + 4
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, str(tmp_path), str(at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *sys.path])},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    calls = []
    again = design_tiny(tmp_path, progress=lambda _, done, __: calls.append(done))
    assert figures(again) == figures(found)
    # The first batch is read from the cache; the second, which the kill left unsaved, anew.
    assert calls[: AT_ONCE + 2] == [
        AT_ONCE,
        *range(AT_ONCE, 2 * AT_ONCE + 1),
    ]
    calls.clear()
    design_tiny(tmp_path, progress=lambda _, done, __: calls.append(done))
    assert calls == [16, 32, 48, 50]  # nothing is read twice


def test_a_minus_sign_finds_the_other_end(tmp_path):
    up, down = (design_tiny(tmp_path, proxy=proxy) for proxy in ("parameters", "-parameters"))
    assert up.score == up.spec.parameters() > up.drawn_score
    assert down.score == down.spec.parameters() < down.drawn_score
    assert down.score < up.score
    assert (up.to_json()["sign"], down.to_json()["sign"]) == (1, -1)


def test_of_equal_scores_the_smaller_model_is_taken(tmp_path):
    """`normalize` has a mean of 0 wherever it is defined, so every score is the same."""
    found = design_tiny(tmp_path, proxy="mean(normalize(weight))")
    assert found.score == 0
    larger = design_tiny(tmp_path, proxy="parameters").spec
    assert found.spec.parameters() < larger.parameters()


def test_a_space_smaller_than_the_evaluations_is_read_whole(tmp_path):
    few = replace(SPACE, families=("gpt2",), depths=(1,), widths=(8,), groups=(1,), missing=(0.0,))

    def read_whole(proxy):
        return design(
            few,
            signed_proxy(proxy),
            limit=10_000,
            evaluations=200,
            seed=0,
            cache=tmp_path,
            batch=BATCH,
            workers=Workers(1),
        )

    found = read_whole("parameters")
    assert found.n_scored == 4  # heads 1 or 2, MLPs 8 or 16 wide
    assert found.spec.inner == (16,)
    alike = read_whole("mean(normalize(weight))")
    assert (alike.score, alike.spec.inner) == (0, (8,))  # of equal ones the smallest of all


def test_a_limit_that_nothing_keeps_and_a_proxy_without_scores_say_so(tmp_path):
    with pytest.raises(LmscoutError, match="no architecture of the space tiny has 100 parameters"):
        design_tiny(tmp_path, limit=100)
    with pytest.raises(LmscoutError, match="gives none of 50 architectures"):
        design_tiny(tmp_path, proxy="sum(exp(exp(exp(exp(exp(weight))))))")
    assert np.isfinite(design_tiny(tmp_path).score)
