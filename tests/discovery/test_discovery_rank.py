"""Given proxies on a whole benchmark: their signs, and what their search has seen."""

from dataclasses import replace

import numpy as np
from tiny_benchmark import tiny_benchmark

from lmscout.discovery import explain, pick, rank_proxies, signed_proxy
from lmscout.statistics import Batch, Workers

SETTINGS = {"seed": 0, "batch": Batch(4, 16), "workers": Workers(1)}
BENCHMARK = replace(tiny_benchmark(), name="flexibert")  # which champion-encoder has seen


def test_a_minus_sign_turns_scores_and_figures_round(tmp_path):
    names = ["-snip", "snip", "-mean(frobenius(act))"]
    evaluated = rank_proxies(BENCHMARK, names, cache=tmp_path, **SETTINGS)
    assert [one.name for one in evaluated.proxies] == names
    falling, rising, _ = evaluated.proxies
    np.testing.assert_array_equal(evaluated.scores["-snip"], -evaluated.scores["snip"])
    assert falling.agreement.spearman.value == -rising.agreement.spearman.value
    plain = rank_proxies(BENCHMARK, ["mean(frobenius(act))"], cache=tmp_path, **SETTINGS)
    np.testing.assert_array_equal(
        evaluated.scores["-mean(frobenius(act))"], -plain.scores["mean(frobenius(act))"]
    )


def test_what_a_search_found_on_a_part_of_the_benchmark_is_marked(tmp_path):
    names = ["champion-encoder", "-champion", "champion-decoder", "snip"]
    rows = rank_proxies(BENCHMARK, names, cache=tmp_path, **SETTINGS).to_json()["proxies"]
    assert {one["proxy"]: one["seen"] for one in rows} == {
        "champion-encoder": True,
        "-champion": True,
        "champion-decoder": False,
        "snip": False,
    }
    elsewhere = replace(BENCHMARK, name="another")
    (other,) = rank_proxies(elsewhere, names[:1], cache=tmp_path, **SETTINGS).to_json()["proxies"]
    assert other["seen"] is False


def test_a_pick_and_an_explanation_are_marked_too(tmp_path):
    for name, seen in (("champion-encoder", True), ("synaptic-saliency", False)):
        picked = pick(
            BENCHMARK,
            signed_proxy(name),
            limits=(),
            evaluations=6,
            cache=tmp_path,
            **SETTINGS,
        )
        assert picked.to_json()["seen"] is seen
    explained = explain(BENCHMARK, "synaptic-saliency", cache=tmp_path, **SETTINGS)
    assert explained.to_json()["seen"] is False
    champion = replace(explained, assessment=replace(explained.assessment, name="champion"))
    assert champion.to_json()["seen"] is True
