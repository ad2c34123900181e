"""Search of the deep space: filters, record, and choice."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from searching_process import SETTINGS, SMALL, search, weights
from tiny_benchmark import tiny_benchmark

from lmscout.cli.discover import discover
from lmscout.discovery import filters as filters_module
from lmscout.discovery import symbolic_search
from lmscout.discovery.engines import GeneticProgramming, RandomSearch, engine_of
from lmscout.discovery.filters import (
    BLIND,
    CONSTANT,
    DUPLICATE,
    NAMES,
    NOISE,
    RACE,
    SEEN,
    UNDEFINED,
    Filters,
    SearchData,
    draw_rungs,
)
from lmscout.discovery.search_record import BATCH, Record, evolve
from lmscout.discovery.symbolic_search import (
    DeepDiscovery,
    DeepSettings,
    begin_deep,
    discover_deep,
)
from lmscout.errors import LmscoutError
from lmscout.proxies import Expression, Grammar, canonical, format_expression, parse, walk
from lmscout.proxies.grammar import every_score, random_score, subtree_mutation
from lmscout.proxies.rules import RULES
from lmscout.statistics import Batch, Workers, score_proxies
from lmscout.statistics.deep_values import DeepEvaluator
from lmscout.statistics.sketches import collect_sketches

BATCHES = Batch(4, 16), Batch(4, 16, seed=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def search_data(cache):
    benchmark = tiny_benchmark(40)
    sketches, others = (
        collect_sketches(
            benchmark.specs, name="filters", folder=cache, batch=one, workers=Workers(1)
        )
        for one in BATCHES
    )
    rungs = draw_rungs(40, 0)
    return SearchData(sketches, benchmark.quality, rungs, others.subset(rungs[0]))


def evaluated(search_data, *texts, **switches):
    several = search_data if isinstance(search_data, list) else [search_data]
    filters = Filters(several, **switches)
    found = filters.evaluate([parse(text) for text in texts])
    filters.close()
    return found


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (["sum(total(act))", "sum(total(act))"], SEEN),
        (["sum(total(mul(weight, grad)))", "sum(total(mul(grad, weight)))"], SEEN),
        (["sum(average(exp(exp(exp(exp(exp(exp(act))))))))"], UNDEFINED),
        (["sum(total(act))", "sum(negate(total(act)))"], DUPLICATE),
        (["max(average(relu(log(softmax))))"], CONSTANT),  # no logarithm of a share is positive
        (["sum(total(sigmoid(relu(log(softmax)))))"], BLIND),  # half of how many there are
        (["sum(total(abs(sub(exp(add(act, act_grad)), mul(exp(act), exp(act_grad))))))"], NOISE),
        (["sum(total(square(softmax))) - sum(total(square(softmax)))"], "cancels"),
        (["sum(total(frobenius(negate(grad))))"], "sign lost"),
    ],
)
def test_what_falls_to_which_rule(search_data, texts, rule):
    *before, last = evaluated(search_data, *texts, race=False)
    assert (last.discarded, last.fitness) == (rule, None)
    assert all(one.fitness is not None for one in before)


def test_rules_that_are_switched_off_discard_nothing_that_has_a_score(search_data):
    texts = ["sum(total(act))", "sum(total(act))", "sum(total(sigmoid(relu(log(softmax)))))"]
    for one in evaluated(search_data, *texts, rules=False, race=False):
        assert one.fitness is not None
    constant = "max(average(relu(log(softmax))))"
    (one,) = evaluated(search_data, constant, rules=False, race=False)
    assert one.discarded == UNDEFINED  # it ranks nothing
    assert (
        evaluated(search_data, "sum(total(weight))", race=False)[0].discarded == ""
    )  # claims no data


def test_fitness_is_the_coefficient_on_all_search_architectures(search_data):
    text = "sum(total(abs(mul(weight, grad))))"
    scores = DeepEvaluator(search_data.sketches).scores(canonical(parse(text)))
    quality = np.exp(search_data.quality)
    search_data = dataclasses.replace(search_data, quality=quality)
    rho = scipy.stats.spearmanr(scores, quality).statistic
    r = scipy.stats.pearsonr(np.log(scores), np.log(quality)).statistic
    for objective, expected in (
        ("spearman", rho),
        ("spearman+pearson", (rho + r) / 2),
        ("kendall", scipy.stats.kendalltau(scores, quality).statistic),
    ):
        (one,) = evaluated(search_data, text, objective=objective)
        assert one.fitness == pytest.approx(abs(expected))


def trees(count, seed=0):
    rng = np.random.default_rng(seed)
    return [random_score(Grammar(largest=10), rng) for _ in range(count)]


def test_results_do_not_depend_on_workers(search_data):
    found = []
    for workers in (1, 2, 3):
        filters = Filters([search_data], workers=workers)
        found.append([filters.evaluate(trees(150, seed)) for seed in range(3)])
        filters.close()
    assert found[0] == found[1] == found[2]


def test_racing_never_drops_what_would_enter_the_front(search_data):
    """It may, by chance; those that it drops are far behind as a rule."""
    racing, patient = Filters([search_data]), Filters([search_data], race=False)
    dropped = entered = 0
    for seed in range(6):
        for fast, slow in zip(
            racing.evaluate(trees(150, seed)), patient.evaluate(trees(150, seed)), strict=True
        ):
            if fast.discarded == RACE and slow.fitness is not None:
                dropped += 1
                entered += slow in patient.best
    assert dropped > 50
    assert entered <= 0.05 * dropped
    assert racing.evaluations < 0.4 * patient.evaluations
    racing.close()
    patient.close()


def test_a_candidate_is_dropped_at_the_first_rung_that_makes_it_unlikely(search_data):
    """Racing by its definition on every tree: z after each rung, and its possible increase."""
    filters = Filters([search_data], objective="spearman")
    filters.evaluate(trees(150, 0))
    front = filters.best
    rng, grammar = np.random.default_rng(1), Grammar(largest=10)
    parents = [front[place].node for place in rng.integers(len(front), size=600)]
    new = [canonical(subtree_mutation(one, grammar, rng)) for one in parents]
    evaluated = filters.evaluate(new)
    filters.close()
    every = DeepEvaluator(search_data.sketches)
    order = np.concatenate(search_data.rungs)
    ends = np.cumsum([len(one) for one in search_data.rungs])
    fell = Counter()
    for node, one in zip(new, evaluated, strict=True):
        if one.discarded not in ("", RACE):
            continue
        beat = max((o.fitness for o in front if o.node.size <= node.size), default=0.0)
        scores, quality = every.scores(node)[order], search_data.quality[order]
        lost = [
            rung
            for rung, end in enumerate(ends[:-1])
            if np.arctanh(min(abs(scipy.stats.spearmanr(scores[:end], quality[:end])[0]), 1 - 1e-6))
            + np.sqrt(1 / (end - 3) - 1 / 37)
            < np.arctanh(beat)
        ]
        assert (one.discarded == RACE) == bool(lost)
        assert (one.estimate is not None) == bool(lost)
        if lost:
            known = scores[: ends[lost[0]]], quality[: ends[lost[0]]]
            rho = scipy.stats.spearmanr(*known).statistic
            assert one.estimate == pytest.approx(abs(rho), abs=0.02)  # near ties are rounded apart
        fell[lost[0] if lost else "none"] += 1
    assert all(fell[rung] for rung in (0, 1, 2, "none")), fell


def test_what_the_other_architectures_may_bring_has_the_size_that_is_assumed():
    """z of a part differs from that of the whole by sqrt(1 / (m - 3) - 1 / (n - 3))."""
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(2_000):
        x, noise = rng.standard_normal((2, 40))
        y = x + noise
        part, whole = (scipy.stats.spearmanr(x[:m], y[:m]).statistic for m in (24, 40))
        differences.append(np.arctanh(part) - np.arctanh(whole))
    assert np.std(differences) == pytest.approx(np.sqrt(1 / 21 - 1 / 37), rel=0.15)


def test_a_shorter_tree_of_the_same_order_is_no_duplicate(search_data):
    long, short = "sum(negate(total(act)))", "sum(total(act))"
    first, second = evaluated(search_data, long, short, race=False)
    assert first.fitness == second.fitness
    assert evaluated(search_data, short, long, race=False)[1].discarded == DUPLICATE


@given(st.integers(1, 300), st.integers(0, 5))
def test_every_architecture_is_in_one_rung(n, seed):
    rungs = draw_rungs(n, seed)
    assert sorted(np.concatenate(rungs)) == list(range(n))
    assert len(rungs) == len(draw_rungs(200, seed))  # benchmarks of any size race together
    assert len(rungs[0]) == min(n, filters_module.PROBE)
    assert all((np.diff(one) > 0).all() for one in rungs)


def test_recalled_batches_restore_the_filters(search_data):
    first, second = Filters([search_data]), Filters([search_data])
    batches = [first.evaluate(trees(100, seed)) for seed in range(3)]
    for batch in batches:
        second.recall(batch)
    assert second.evaluate(trees(100, 9)) == first.evaluate(trees(100, 9))
    assert second.best == first.best
    assert (second.evaluations, second.discarded) == (first.evaluations, first.discarded)
    first.close()
    second.close()


def test_every_rule_is_counted_by_a_name_of_its_own():
    assert len(set(NAMES)) == len(NAMES)
    assert {rule.name for rule in RULES} < set(NAMES)
    assert filters_module.PROBE < 40  # so that the fixtures race


def evolved(search_data, folder, evaluations, engine="genetic", workers=1):
    filters = Filters([search_data], workers=workers)
    result = evolve(
        engine_of(engine, Grammar(largest=10), 0),
        filters,
        evaluations=evaluations,
        record=Record(folder) if folder else None,
    )
    filters.close()
    return result


@pytest.mark.parametrize(
    "engine",
    ["genetic", *(pytest.param(one, marks=pytest.mark.slow) for one in ("regularized", "random"))],
)
def test_a_search_that_was_stopped_ends_as_one_that_was_not(search_data, tmp_path, engine):
    whole = evolved(search_data, None, 40, engine)
    evolved(search_data, tmp_path, 20, engine)
    for _ in range(2):  # the second time everything is replayed
        assert evolved(search_data, tmp_path, 40, engine, workers=2) == whole
    batches = sorted((tmp_path / "evaluations").iterdir())
    batches[-1].write_bytes(b"")
    with pytest.raises(LmscoutError, match=r"cannot be read.*remove it and those after it"):
        evolved(search_data, tmp_path, 40, engine)
    batches[-1].unlink()
    assert evolved(search_data, tmp_path, 40, engine) == whole
    hall = tmp_path / "hall_of_fame.csv"
    shown = hall.read_text()
    hall.write_text("of a batch before: it was killed when the last one was kept, not shown\n")
    evolved(search_data, tmp_path, 40, engine)
    assert hall.read_text() == shown
    assert not list(tmp_path.rglob("*.part"))


def test_every_candidate_is_in_the_record(search_data, tmp_path):
    result = evolved(search_data, tmp_path, 40)
    rows = [
        row
        for path in sorted((tmp_path / "evaluations").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == result.proposed
    assert sum(row["fitness"] is not None for row in rows) == result.evaluations
    assert sum(bool(row["discarded"]) for row in rows) == sum(result.discarded.values())
    hall = (tmp_path / "hall_of_fame.csv").read_text().splitlines()
    assert hall[0] == "fitness,size,proxy"
    best = result.hall[0]
    assert hall[1].startswith(f"{best.fitness:.6f},{best.node.size},")
    assert format_expression(best.node) in hall[1]


def test_a_search_ends_where_everything_is_discarded(search_data):
    class Stubborn(RandomSearch):
        def ask(self, count):
            return [parse("sum(average(softmax))")] * count

    filters = Filters([search_data])
    result = evolve(Stubborn(Grammar(), 0), filters, evaluations=3)
    filters.close()
    assert result.evaluations == 0
    assert result.proposed >= 3
    assert result.proposed % BATCH == 0
    assert result.hall == ()


def tiny_pair():
    """The tiny benchmark, and another whose quality is half width and half depth."""
    one = tiny_benchmark(40)
    other = tiny_benchmark(44)
    rows = np.arange(4, 44)
    quality = other.quality[rows] + np.array([other.specs[row].width / 8 for row in rows])
    return one, dataclasses.replace(other.subset(rows), name="wide", quality=quality)


@pytest.fixture(scope="module")
def found(cache):
    return search(cache)


@pytest.fixture(scope="module")
def found_on_both(cache):
    return discover_deep(tiny_pair(), SMALL, search=[25, 20], seed=3, cache=cache, **SETTINGS)


def test_what_is_reported_is_what_full_tensors_give(found, found_on_both, cache):
    for result, benchmarks in ((found, [tiny_benchmark(40)]), (found_on_both, tiny_pair())):
        text = format_expression(result.proxy)
        for finding, benchmark in zip(result.findings, benchmarks, strict=True):
            (scores,) = score_proxies(
                benchmark.specs, [text], name="whole", folder=cache, **SETTINGS
            ).values()
            for rows, rho in (
                (finding.split.search, finding.search[0]),
                (finding.split.test, finding.test.agreement.spearman.value),
            ):
                expected = scipy.stats.spearmanr(
                    finding.sign * scores[rows], benchmark.quality[rows]
                )
                assert rho == pytest.approx(expected.statistic)
    assert found.findings[0].search[0] > 0.9  # quality is depth and a little noise


def test_the_proxy_is_the_product_of_the_best_of_every_search(found):
    assert len(found.members) == len(found.evolutions) == SMALL.searches
    assert found.members[0].node != found.members[1].node
    assert found.corrected  # so the product is a part, whose logarithm is taken
    product = {
        one
        for _, one in walk(found.proxy)
        if one.name in ("*", "/") and set(one.operands) == {one.node for one in found.members}
    }
    assert len(product) == 1
    for member, evolution in zip(found.members, found.evolutions, strict=True):
        assert member.node in {one.node for one in evolution.hall}


def test_on_several_benchmarks_the_worst_counts(cache):
    """A tree's fitness is the least |ρ|, and 0 if its signs differ."""
    benchmarks = tiny_pair()
    search_data = []
    for benchmark in benchmarks:
        first, second = (
            collect_sketches(
                benchmark.specs, name="pair", folder=cache, batch=one, workers=Workers(1)
            )
            for one in BATCHES
        )
        rungs = draw_rungs(40, 1)
        search_data.append(SearchData(first, benchmark.quality, rungs, second.subset(rungs[0])))
    turned = dataclasses.replace(search_data[1], quality=-search_data[1].quality)
    texts = [
        "sum(total(abs(mul(weight, grad))))",
        "depth - sum(total(frobenius(grad)))",
        "width * sum(average(abs(act)))",
    ]
    options = {"race": False, "objective": "spearman"}
    with_each = [evaluated([one], *texts, **options) for one in search_data]
    found = {
        "both": evaluated(search_data, *texts, **options),
        "against": evaluated([search_data[0], turned], *texts, **options),
    }
    for place, text in enumerate(texts):
        values = [DeepEvaluator(one.sketches).scores(canonical(parse(text))) for one in search_data]
        rho = [
            scipy.stats.spearmanr(scores, one.quality).statistic
            for scores, one in zip(values, search_data, strict=True)
        ]
        assert [abs(one) for one in rho] == pytest.approx([w[place].fitness for w in with_each])
        alike = rho[0] * rho[1] > 0
        least = min(map(abs, rho))
        assert found["both"][place].fitness == pytest.approx(least if alike else 0.0)
        assert found["against"][place].fitness == pytest.approx(0.0 if alike else least)


def test_other_instructions_of_a_cpu_find_the_same(found, tmp_path):
    """PyTorch's own routines, and the least that MKL and oneDNN know, round differently."""
    other = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
    script = Path(__file__).with_name("searching_process.py")
    there = subprocess.run(
        [sys.executable, script, tmp_path],
        check=False,
        env={**os.environ, **other, "ONEDNN_MAX_CPU_ISA": "SSE41"},
        capture_output=True,
        text=True,
    )
    assert there.stdout.split() == [weights()], there.stderr
    again = DeepDiscovery.load(tmp_path / "result.json")
    assert again.evolutions == found.evolutions
    assert (again.members, again.proxy) == (found.members, found.proxy)


def test_a_score_is_the_mean_over_draws_of_weights_and_data(cache, search_data):
    settings = dataclasses.replace(SMALL, evaluations=6, searches=1, weights=2, correction=False)
    benchmark, (small, other) = tiny_benchmark(16), BATCHES
    result = discover_deep([benchmark], settings, search=[10], seed=3, cache=cache, **SETTINGS)
    text, (finding,) = format_expression(result.proxy), result.findings
    draws = [
        score_proxies(
            benchmark.specs,
            [text],
            name="draw",
            folder=cache,
            seed=draw,
            batch=batch,
            workers=Workers(1),
        )[text]
        for draw, batch in ((0, small), (1, other))
    ]
    scores = finding.sign * np.mean(draws, axis=0)
    for rows, rho in (
        (finding.split.search, finding.search[0]),
        (finding.split.test, finding.test.agreement.spearman.value),
    ):
        assert rho == pytest.approx(
            scipy.stats.spearmanr(scores[rows], benchmark.quality[rows]).statistic
        )
    specs, options = tiny_benchmark(40).specs, {"workers": Workers(1), "batch": other}
    second = collect_sketches(specs, name="filters", folder=cache, **options)  # known already
    both = dataclasses.replace(search_data, more_draws=(second,))
    text = "sum(total(abs(mul(weight, grad))))"
    (one,) = evaluated(both, text, objective="spearman", race=False)
    mean = sum(DeepEvaluator(s).scores(parse(text)) for s in (both.sketches, second)) / 2
    assert one.fitness == pytest.approx(abs(scipy.stats.spearmanr(mean, both.quality).statistic))


def test_the_choice_does_not_see_the_test_split(found, cache):
    benchmark = tiny_benchmark(40)
    quality, (finding,) = benchmark.quality.copy(), found.findings
    quality[finding.split.test] = quality[finding.split.test][::-1]
    changed = dataclasses.replace(benchmark, quality=quality)
    again = discover_deep([changed], SMALL, search=[32], seed=3, cache=cache, **SETTINGS)
    assert again.proxy == found.proxy
    assert (again.findings[0].sign, again.findings[0].search) == (finding.sign, finding.search)
    assert again.findings[0].test != finding.test


def test_it_is_corrected_where_the_configuration_may_be_read_and_counts(
    found, found_on_both, cache
):
    assert found.to_json()["corrected"] is True
    assert not found_on_both.corrected
    for change in ({"correction": False}, {"spec_leaves": False}, {"objective": "beyond-size"}):
        assert not dataclasses.replace(SMALL, **change).corrections
    plain = dataclasses.replace(SMALL, correction=False, evaluations=20, searches=1)
    result = discover_deep(
        [tiny_benchmark(40)], plain, search=[32], seed=3, cache=cache, **SETTINGS
    )
    assert not result.corrected
    assert result.proxy in (result.members[0].node, Expression("negate", (result.members[0].node,)))


def test_without_spec_leaves_none_is_read(cache):
    bare = dataclasses.replace(SMALL, spec_leaves=False)
    result = discover_deep([tiny_benchmark(40)], bare, search=[25], seed=3, cache=cache, **SETTINGS)
    for one in result.evolutions[0].hall:
        assert not one.node.leaves & {"depth", "width", "params"}


def test_a_discovery_that_was_stopped_ends_as_one_that_was_not(found, cache, tmp_path, monkeypatch):
    arguments = {"search": [32], "seed": 3, "cache": cache, "folder": tmp_path, **SETTINGS}
    whole = discover_deep([tiny_benchmark(40)], SMALL, **arguments)
    assert (whole.evolutions, whole.proxy) == (found.evolutions, found.proxy)
    hall = (tmp_path / "hall_of_fame.csv").read_text()
    last = sorted((tmp_path / "evaluations").glob("1-*"))[-1]
    written = last.read_bytes()
    monkeypatch.setattr(symbolic_search, "_LONG", SMALL.share)  # searches get processes
    for workers in (1, 2):
        last.unlink()  # as if it had been killed in the second search
        (tmp_path / "hall_of_fame.csv").unlink()
        calls = []
        again = discover_deep(
            [tiny_benchmark(40)],
            SMALL,
            **arguments | {"workers": Workers(workers)},
            progress=lambda *call, calls=calls: calls.append(call),
        )
        assert (again.evolutions, again.proxy) == (whole.evolutions, whole.proxy)
        assert last.read_bytes() == written
        assert (tmp_path / "hall_of_fame.csv").read_text() == hall
        assert [call for call in calls if call[0] == "searching"][-1] == ("searching", 60, 60)
    fitness = [float(line.split(",")[0]) for line in hall.splitlines()[1:]]
    assert fitness == sorted(fitness, reverse=True)
    everything = [one.fitness for each in whole.evolutions for one in each.hall]
    assert fitness[0] == pytest.approx(max(everything), abs=1e-6)


def test_an_exhaustive_search_asks_for_everything_and_ends(cache):
    settings = DeepSettings("exhaustive", evaluations=9_999, searches=1, largest=3, catalog=False)
    result = discover_deep(
        [tiny_benchmark(40)], settings, search=[25], seed=3, cache=cache, **SETTINGS
    )
    everything = list(every_score(settings.grammar))
    # leaves, aggregates of reductions, one word on a configuration's, and two of these joined
    assert result.proposed == len(everything) == 3 + 4 * 2 * 11 + 10 * (3 + 10 * 3) + 3 * 9 + 3
    assert result.front[-1].fitness == max(one.fitness for one in result.evolutions[0].hall)
    with pytest.raises(LmscoutError, match="give 1 for searches"):
        DeepSettings("exhaustive")


def test_the_json_says_what_was_searched(found, found_on_both):
    one, both = (
        json.loads(json.dumps(each.to_json(), allow_nan=False)) for each in (found, found_on_both)
    )
    assert one["benchmark"] == "tiny"
    assert one["evaluations"] == sum(each.evaluations for each in found.evolutions)
    assert one["proposed"] == one["evaluations"] + sum(one["discarded"].values())
    assert parse(one["best"]["proxy"]) == found.proxy
    assert [parse(member["proxy"]) for member in one["members"]] == [
        member.node for member in found.members
    ]
    sizes = [candidate["size"] for candidate in one["front"]]
    assert sizes == sorted(set(sizes))
    assert [each["benchmark"] for each in both["benchmarks"]] == ["tiny", "wide"]
    assert {each["best"]["proxy"] for each in both["benchmarks"]} == {
        format_expression(found_on_both.proxy)
    }
    assert "benchmark" not in both


def test_a_run_folder_is_of_one_search(found, tmp_path):
    benchmarks, folder = [tiny_benchmark(40)], tmp_path / "run"
    begin_deep(folder, benchmarks, SMALL, search=[25], seed=3)
    begin_deep(folder, benchmarks, SMALL, search=[25], seed=3)  # continued
    with pytest.raises(LmscoutError, match="holds a run with seed 3, not 4"):
        begin_deep(folder, benchmarks, SMALL, search=[25], seed=4)
    more = dataclasses.replace(SMALL, weights=2)
    with pytest.raises(LmscoutError, match="holds a run with weights 1, not 2"):
        begin_deep(folder, benchmarks, more, search=[25], seed=3)
    with pytest.raises(LmscoutError, match="with device cpu, not cuda"):
        begin_deep(folder, benchmarks, SMALL, search=[25], seed=3, device="cuda:1")
    begin_deep(folder, benchmarks, SMALL, search=[25], seed=3).end(found)
    result = json.loads((folder / "result.json").read_text())
    assert found.to_json().items() <= result.items()
    run = begin_deep(folder, benchmarks, SMALL, search=[25], seed=3)
    assert run.finished
    again = run.load(DeepDiscovery)
    assert again.to_json() == found.to_json()
    assert again.proxy == found.proxy
    assert again.evolutions == found.evolutions
    settings = json.loads((folder / "settings.json").read_text())
    settings["environment"]["lmscout"] = "0.0"
    (folder / "settings.json").write_text(json.dumps(settings))
    assert begin_deep(folder, benchmarks, SMALL, search=[25], seed=3).finished
    (folder / "result.json").unlink()
    with pytest.raises(LmscoutError, match="unfinished search of another version"):
        begin_deep(folder, benchmarks, SMALL, search=[25], seed=3)
    (folder / "settings.json").write_text("[]")
    with pytest.raises(LmscoutError, match=r"damaged settings\.json"):
        begin_deep(folder, benchmarks, SMALL, search=[25], seed=3)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "other").touch()
    with pytest.raises(LmscoutError, match="is not empty"):
        begin_deep(folder, benchmarks, SMALL, search=[25], seed=3)


def test_without_a_folder_the_newest_unfinished_run_of_the_same_search_goes_on(
    found, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    benchmarks = [tiny_benchmark(40)]

    def folder_of(seed):
        return begin_deep(None, benchmarks, SMALL, search=[25], seed=seed).folder

    first = folder_of(3)
    assert folder_of(3) == first
    renamed = first.with_name(first.name + "-earlier")
    first.rename(renamed)
    (renamed.parent / "discover-damaged").mkdir()
    (renamed.parent / "discover-damaged" / "settings.json").touch()
    other = folder_of(4)
    assert other != renamed
    assert folder_of(3) == renamed
    begin_deep(renamed, benchmarks, SMALL, search=[25], seed=3).end(found)
    assert folder_of(3) not in (renamed, other)


def test_the_command_searches_as_the_settings_do():
    parameters = inspect.signature(discover).parameters
    for name in ("engine", "evaluations", "objective", "spec_leaves"):
        assert parameters[name].default == getattr(DeepSettings(), name)


def test_unknown_words_are_refused():
    with pytest.raises(LmscoutError, match="unknown objective 'r2'"):
        DeepSettings(objective="r2")
    for name in ("searches", "evaluations", "largest", "weights"):
        with pytest.raises(LmscoutError, match=f"{name} of 0 is too small: give 1 or more"):
            DeepSettings(**{name: 0})
    assert isinstance(engine_of("genetic", Grammar(), 0), GeneticProgramming)
