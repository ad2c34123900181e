import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from designing_process import BATCH, EVALUATIONS, SPACE, design_tiny

import lmscout
from lmscout.benchmarks.limits import form_of, limits_of
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


def test_the_best_five_are_those_of_the_trace_with_their_certainty(found, tmp_path):
    several = design_tiny(tmp_path, weights=3, evaluations=20)
    for one in (found, several):
        best = sorted((score for _, score in one.trace), reverse=True)[:5]
        assert [choice.score for choice in one.choices] == best
        assert one.choices[0].spec == one.spec
        assert one.to_frame()["score"].tolist() == best
        assert Design.from_dict(one.to_dict()) == one
    assert {choice.chance for choice in found.choices} == {None}
    chances = [choice.chance for choice in several.choices]
    assert 0 < chances[0] <= 1
    assert sum(chances) <= 1 + 1e-9  # one of 20 is the best twentieth
    assert several.choices == design_tiny(tmp_path, weights=3, evaluations=20).choices
    several.save_report(tmp_path / "report.html")
    assert "The best by score" in (tmp_path / "report.html").read_text()


def test_a_proxy_that_no_draw_changes_is_sure(tmp_path):
    found = design_tiny(tmp_path, proxy="parameters", weights=2, evaluations=20)
    first = found.choices[0]
    others = [one for one in found.choices if one.score == first.score]
    assert first.standard_error == 0
    assert first.chance == pytest.approx(1 / len(others))


def test_several_limits_are_kept_and_a_limit_alone_bounds_another_size(tmp_path):
    least = design_tiny(tmp_path, proxy="-parameters", evaluations=30)
    macs = 2 * least.spec.multiply_adds()
    limits = limits_of(3000, macs, 1000.0)
    found = design_tiny(tmp_path, proxy="parameters", limits=limits, evaluations=8)
    assert (found.limit, found.max_macs, found.max_latency) == (3000, macs, 1000.0)
    for one in found.choices:
        assert one.spec.parameters() <= 3000
        assert one.spec.multiply_adds() <= macs
        assert one.latency == limits[2].cost(one.spec) <= 1000
    wide = design_tiny(tmp_path, proxy="parameters", limits=limits_of(max_macs=macs))
    assert wide.spec.multiply_adds() <= macs
    assert wide.score >= found.score
    assert found.to_json()["max_macs"] == macs
    assert found.plot().data


def test_the_public_function_says_which_limits_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCOUT_CACHE", str(tmp_path))
    settings = {"proxy": "depth", "evaluations": 4, "workers": 1, "progress": False}
    with pytest.raises(LmscoutError, match="tiny: no limit; give --max-params, --max-macs or"):
        lmscout.design(SPACE, **settings)
    with pytest.raises(LmscoutError, match="max_macs of 0 is too small"):
        lmscout.design(SPACE, max_macs=0, **settings)
    for latency in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(LmscoutError, match="max_latency: no number of milliseconds above 0"):
            lmscout.design(SPACE, max_latency=latency, **settings)
    for latency in (True, "3"):
        with pytest.raises(LmscoutError, match=r"design: max_latency is of type .*expected float"):
            lmscout.design(SPACE, max_latency=latency, **settings)
    with pytest.raises(LmscoutError, match="max_latency: measured here, not on cluster"):
        lmscout.design(SPACE, max_latency=1, cluster="local", **settings)
    budgeted = lmscout.design(replace(SPACE, params=3000, tolerance=0.4), **settings)
    assert (budgeted.limit, budgeted.max_macs, budgeted.n_scored) == (None, None, 4)
    assert budgeted.summary().startswith("tiny: 4 architectures evaluated")


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
            limits=limits_of(10_000),
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
