import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_benchmark import tiny_benchmark

import lmscout
from lmscout.benchmarks.limits import limits_of
from lmscout.discovery import Selection, pick, signed_proxy
from lmscout.discovery.design import certainty
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
    settings = {"limit": 3000, "evaluations": 10, "seed": 0, "workers": Workers(1)} | changes
    settings = {"limits": limits_of(settings.pop("limit"))} | settings
    return pick(tiny_benchmark(40), signed_proxy(proxy), cache=folder, batch=BATCH, **settings)


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


def every_resample(draws, place):
    """Chance of an architecture to be in the best twentieth, over all samples of the draws."""
    n_draws, n = draws.shape
    hits = 0
    for rows in product(range(n_draws), repeat=n_draws):
        means = draws[list(rows)].mean(axis=0)
        hits += sum(means > means[place]) < max(n // 20, 1)
    return hits / n_draws**n_draws


def test_the_best_five_with_their_errors_chances_and_ranks_by_definition(tmp_path):
    benchmark, noise = tiny_benchmark(40), "sum(total(grad))"
    draws = np.array(
        [
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
    )
    for sign, proxy in ((1, noise), (-1, f"-{noise}")):
        found = picked(tmp_path, proxy, limit=None, evaluations=40, weights=4)
        order = np.argsort(-sign * draws.mean(axis=0), kind="stable")
        rows = [benchmark.identifiers.index(one.identifier) for one in found.choices]
        assert rows == order[:5].tolist()
        assert found.choices[0].spec == found.spec
        for row, one in zip(rows, found.choices, strict=True):
            assert one.spec == benchmark.specs[row]
            assert one.score == pytest.approx(draws[:, row].mean())
            assert one.standard_error == pytest.approx(draws[:, row].std(ddof=1) / 2)
            # 1,000 samples: three standard errors
            assert one.chance == pytest.approx(every_resample(sign * draws, row), abs=0.05)
            assert one.rank == 1 + sum(benchmark.quality > benchmark.quality[row])
        assert 0 < found.choices[0].chance < 1
        again = picked(tmp_path, proxy, limit=None, evaluations=40, weights=4)
        assert found.choices == again.choices
        assert Selection.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@given(
    draws=st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 2.0, 1e150]), min_size=30, max_size=30),
        min_size=2,
        max_size=3,
    )
)
def test_chances_are_shared_by_equal_scores_and_add_up(draws):
    """One of 30 is the best; the chances of all add up to 1."""
    chances = [chance for _, chance in certainty(np.array(draws), range(30))]
    assert sum(chances) == pytest.approx(1)
    for place, other in product(range(30), repeat=2):
        if [row[place] for row in draws] == [row[other] for row in draws]:
            assert chances[place] == pytest.approx(chances[other])


def test_with_one_draw_there_is_no_interval(tmp_path):
    found = picked(tmp_path)
    assert [(one.standard_error, one.chance) for one in found.choices] == [(None, None)] * 5
    assert "--weights 2 or more" in found.summary()


def test_a_result_of_an_earlier_version_is_read(tmp_path):
    values = picked(tmp_path).to_dict()
    earlier = {k: v for k, v in values.items() if k not in ("choices", "max_macs", "max_latency")}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    found = lmscout.load_result(tmp_path / "earlier.json")
    assert (found.limit, found.max_macs, found.choices) == (3000, None, ())
    assert "within 3,000 parameters" in found.summary()
    found.save_report(tmp_path / "report.html")


def test_a_limit_of_multiply_adds_or_of_latency_leaves_out_what_exceeds_it(tmp_path):
    benchmark = tiny_benchmark(40)
    costs = sorted(spec.multiply_adds() for spec in benchmark.specs)
    found = picked(tmp_path, "parameters", limits=limits_of(max_macs=costs[9]), evaluations=40)
    assert found.n_within == sum(cost <= costs[9] for cost in costs)
    assert (found.limit, found.max_macs) == (None, costs[9])
    latency = limits_of(max_latency=1000)
    steps = []
    found = picked(
        *(tmp_path, "parameters"),
        limits=latency,
        evaluations=40,
        progress=lambda *one: steps.append(one),
    )
    assert steps[:40] == [("latencies", done, 40) for done in range(1, 41)]
    assert found.n_within == 40
    assert all(one.latency == latency[0].cost(one.spec) for one in found.choices)  # kept
    with pytest.raises(
        LmscoutError, match=r"tiny has 1e-06 ms or fewer: the smallest has 0\.\d+ ms"
    ):
        picked(tmp_path, "parameters", limits=limits_of(max_latency=1e-6))


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
