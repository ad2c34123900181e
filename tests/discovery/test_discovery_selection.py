import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_benchmark import tiny_benchmark

from lmscout.discovery import Selection, pick, signed_proxy
from lmscout.discovery.selection import assess_pick, chosen
from lmscout.errors import LmscoutError
from lmscout.models import spec_from_dict
from lmscout.statistics import Batch, Workers, score_proxies

BATCH = Batch(size=2, length=8)


def plain_truth(scores, quality, within, drawn):
    """Rank, regret and ties of a choice, by definition: plain loops, every tie as likely."""
    defined = [row for row in drawn if np.isfinite(scores[row])]
    best = max(scores[row] for row in defined)
    tied = [row for row in defined if scores[row] == best]
    ranks, regrets = [], []
    for row in tied:
        better = sum(quality[other] > quality[row] for other in within)
        same = sum(quality[other] == quality[row] for other in within)
        ranks.append(better + (same + 1) / 2)
        regrets.append(max(quality[other] for other in within) - quality[row])
    return sum(ranks) / len(tied), sum(regrets) / len(tied), len(tied)


@given(
    quality=st.lists(st.integers(-3, 3), min_size=8, max_size=8),
    scores=st.lists(st.sampled_from([np.nan, np.inf, -1.5, 0.0, 2.5, 3.0]), min_size=8, max_size=8),
    order=st.permutations(range(8)),
    data=st.data(),
)
def test_the_truth_about_a_choice_against_plain_loops(quality, scores, order, data):
    within = np.sort(order[: data.draw(st.integers(1, 8))])
    drawn = np.array(data.draw(st.permutations(within.tolist())))
    drawn = drawn[: data.draw(st.integers(1, len(drawn)))]
    values, truths = np.array(scores), np.array(quality, np.float64)
    tied = chosen(values, drawn)
    if not np.isfinite(values[drawn]).any():
        assert not len(tied)
        return
    found = assess_pick("it", truths, within, tied)
    rank, regret, count = plain_truth(values, truths, within.tolist(), drawn.tolist())
    assert found.rank == pytest.approx(rank)
    assert found.regret == pytest.approx(regret)
    assert found.n_tied == count
    assert found.top == pytest.approx(rank / len(within))


def test_scores_that_differ_by_rounding_are_tied():
    scores = np.array([1.0, 1.0 + 1e-15, 0.5])
    assert chosen(scores, np.array([2, 1, 0])).tolist() == [1, 0]
    assert chosen(-scores, np.array([0, 1, 2])).tolist() == [2]


def picked(folder, proxy="snip", **changes):
    settings = {"limit": 3000, "evaluations": 10, "seed": 0, "workers": Workers(1)}
    return pick(
        tiny_benchmark(40), signed_proxy(proxy), cache=folder, batch=BATCH, **settings | changes
    )


def test_the_report_on_a_benchmark_against_plain_loops(tmp_path):
    benchmark = tiny_benchmark(40)
    scores = score_proxies(
        benchmark.specs, ["snip"], name="x", folder=tmp_path, batch=BATCH, workers=Workers(1)
    )["snip"]
    quality = benchmark.quality
    parameters = np.array([spec.parameters() for spec in benchmark.specs])
    limit = int(np.median(parameters))
    within = [row for row in range(40) if parameters[row] <= limit]
    drawn = np.random.default_rng(5).permutation(within)[:10].tolist()
    for sign, proxy in ((1, "snip"), (-1, "-snip")):
        found = picked(tmp_path, proxy, limit=limit, seed=5)
        assert (found.n_within, found.n_drawn, found.n_undefined) == (len(within), 10, 0)
        rank, regret, _ = plain_truth(sign * scores, quality, within, drawn)
        assert (found.pick.rank, found.pick.regret) == (rank, pytest.approx(regret))
        row = benchmark.identifiers.index(found.identifier)
        assert row == max(drawn, key=lambda one: sign * scores[one])
        assert (found.spec, found.quality) == (benchmark.specs[row], quality[row])
        assert spec_from_dict(found.to_json()["spec"]) == found.spec
        assert Selection.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    depths = np.array([spec.depth for spec in benchmark.specs], np.float64)
    by_depth = next(one for one in found.baselines if one.name == "depth")
    rank, regret, tied = plain_truth(depths, quality, within, drawn)
    assert (by_depth.rank, by_depth.n_tied) == (pytest.approx(rank), tied)
    assert tied > 1
    assert by_depth.regret == pytest.approx(regret)
    assert found.best_drawn.rank == plain_truth(quality, quality, within, drawn)[0]
    assert found.at_random.rank == (len(within) + 1) / 2
    assert found.at_random.trials == 1
    assert found.at_random.regret == pytest.approx(quality[within].max() - quality[within].mean())
    assert found.best_quality == quality[within].max()


def test_with_several_weights_the_mean_over_them_chooses(tmp_path):
    benchmark = tiny_benchmark(40)
    noise = "sum(total(grad))"  # of both signs, so that it is another with every draw
    scores = [
        score_proxies(
            benchmark.specs,
            [noise],
            name="x",
            folder=tmp_path,
            seed=seed,
            batch=replace(BATCH, seed=seed),
            workers=Workers(1),
        )[noise]
        for seed in range(4)
    ]
    chosen_by = {}
    for weights in (1, 4):
        found = picked(tmp_path, noise, limit=10**9, evaluations=40, weights=weights)
        mean = sum(scores[:weights]) / weights
        assert found.identifier == benchmark.identifiers[int(np.argmax(mean))]
        assert found.to_json()["weights"] == weights
        chosen_by[weights] = found.identifier
    assert chosen_by[1] != chosen_by[4]


def test_a_proxy_that_is_a_baseline_chooses_as_it_does(tmp_path):
    found = picked(tmp_path, "parameters")
    (same,) = [one for one in found.baselines if one.name == "parameters"]
    assert replace(same, name="") == replace(found.pick, name="")


def test_with_evaluations_for_all_the_seed_does_not_matter(tmp_path):
    results = [picked(tmp_path, evaluations=1000, seed=seed) for seed in (0, 1)]
    assert results[0].pick == results[1].pick
    assert results[0].n_drawn == results[0].n_within
    assert results[0].best_drawn.rank == 1
    assert results[0].best_drawn.trials == results[0].n_within


def test_another_seed_draws_others(tmp_path):
    names = {picked(tmp_path, evaluations=1, seed=seed).identifier for seed in range(8)}
    assert len(names) > 2


def test_a_limit_that_nothing_keeps_and_a_proxy_without_scores_say_so(tmp_path):
    least = min(spec.parameters() for spec in tiny_benchmark(40).specs)
    with pytest.raises(LmscoutError, match=f"no architecture of tiny has 10 .* has {least:,}"):
        picked(tmp_path, limit=10)
    with pytest.raises(LmscoutError, match="gives none of 10 architectures of tiny a score"):
        picked(tmp_path, "sum(exp(exp(exp(exp(exp(weight))))))")
