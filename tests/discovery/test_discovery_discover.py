import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from tiny_benchmark import tiny_benchmark

from lmscout.discovery import discover, rank_proxies
from lmscout.discovery.discover import Discovery, save_discovery
from lmscout.discovery.rank import RankResult, save_rank
from lmscout.errors import LmscoutError
from lmscout.proxies import CATALOG, as_published, evaluate, format_expression, parse, published
from lmscout.runs import Run, default_run_folder, open_run
from lmscout.statistics import Batch, Workers, collect

SETTINGS = {"batch": Batch(4, 16), "workers": Workers(1)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def found(cache):
    space = published(("mean", "sum"))
    return discover(tiny_benchmark(), space, search=12, seed=3, cache=cache, **SETTINGS)


def test_what_is_reported_is_what_the_definition_gives(found, cache):
    benchmark = tiny_benchmark()
    statistics = collect(benchmark.specs, published().chains, name="tiny", folder=cache, **SETTINGS)
    scores = found.sign * evaluate(found.proxy, statistics.branch, statistics.depth)
    for rows, rho in (
        (found.split.search, found.search[0]),
        (found.split.test, found.test.agreement.spearman.value),
    ):
        expected = scipy.stats.spearmanr(scores[rows], benchmark.quality[rows]).statistic
        assert rho == pytest.approx(expected)
    assert found.search[0] == pytest.approx(np.nanmax(np.abs(found.ranking.spearman)), abs=1e-6)
    parameters = next(one for one in found.baselines if one.name == "parameters")
    counts = [benchmark.specs[row].parameters() for row in found.split.test]
    assert parameters.agreement.spearman.value == pytest.approx(
        scipy.stats.spearmanr(counts, benchmark.quality[found.split.test]).statistic
    )


def test_the_choice_does_not_see_the_test_split(found, cache):
    benchmark = tiny_benchmark()
    quality = benchmark.quality.copy()
    quality[found.split.test] = quality[found.split.test][::-1]
    changed = type(benchmark)(
        benchmark.name, benchmark.specs, quality, "depth", benchmark.identifiers, "changed"
    )
    again = discover(changed, found.space, search=12, seed=3, cache=cache, **SETTINGS)
    assert again.proxy == found.proxy
    assert again.sign == found.sign
    assert again.search == found.search
    assert again.test != found.test


def test_turning_the_quality_turns_the_sign_alone(found, cache):
    benchmark = tiny_benchmark()
    turned = type(benchmark)(
        "tiny", benchmark.specs, -benchmark.quality, "-depth", benchmark.identifiers, "turned"
    )
    again = discover(turned, found.space, search=12, seed=3, cache=cache, **SETTINGS)
    assert again.proxy == found.proxy
    assert again.sign == -found.sign
    assert again.search == pytest.approx(found.search)


def test_the_json_says_it_all_and_is_plain(found):
    result = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert result["n_proxies"] == 48_000
    assert 0 < result["n_distinct"] <= 48_000 - result["n_undefined"]
    assert parse(result["best"]["proxy"]) == found.proxy
    for key in ("spearman", "kendall"):
        triple = result["best"]["test"][key]
        assert triple["low"] <= triple["value"] <= triple["high"]
        assert isinstance(result["best"]["search"][key], float)
        assert all(isinstance(one[key], float) for one in result["baselines"])
    assert set(result["seconds"]) == {"statistics", "ranking"}
    best = max(one["spearman"] for one in result["baselines"])
    own = result["best"]["test"]["spearman"]["value"]
    assert result["beats_baselines"] == (own > best)
    ahead = result["ahead_of_best_baseline"]
    assert ahead["value"] == pytest.approx(own - best)
    assert ahead["low"] <= ahead["value"] <= ahead["high"]


def test_the_ten_best_are_sorted_differ_in_order_and_are_reported_on_both_splits(found, cache):
    benchmark = tiny_benchmark()
    assert len(found.top) == 10
    first = found.top[0]
    assert (first.proxy.name, first.proxy.sign) == (found.test.name, found.sign)
    assert (first.search, first.test) == (
        pytest.approx(found.search[0]),
        pytest.approx(found.test.agreement.spearman.value),
    )
    every = [one.search for one in found.top]
    assert every == sorted(every, reverse=True)
    evaluated = rank_proxies(
        benchmark, [str(one.proxy) for one in found.top], seed=0, cache=cache, **SETTINGS
    )
    rows, quality = found.split.search, benchmark.quality
    orders = set()
    for one in found.top:
        scores = evaluated.scores[str(one.proxy)]
        assert scipy.stats.spearmanr(scores[rows], quality[rows]).statistic == pytest.approx(
            one.search, abs=1e-6
        )
        assert scipy.stats.spearmanr(
            scores[found.split.test], quality[found.split.test]
        ).statistic == pytest.approx(one.test, abs=1e-6)
        orders.add(tuple(scipy.stats.rankdata(scores[rows])))
    assert len(orders) == 10
    assert [one["proxy"] for one in found.to_json()["top"]] == [one.proxy.name for one in found.top]


def test_a_run_folder_holds_settings_every_score_and_the_result(found, tmp_path):
    folder = tmp_path / "runs" / "first"
    run = open_run(folder, "discover", {"seed": 3})
    save_discovery(run, found)
    assert sorted(path.name for path in folder.iterdir()) == [
        "result.json",
        "scores.parquet",
        "settings.json",
    ]
    result = json.loads((folder / "result.json").read_text())
    assert found.to_json().items() <= result.items()
    again = Run(folder, "discover").load(Discovery)
    assert again.to_json() == json.loads(json.dumps(found.to_json()))
    assert again.to_dict() == found.to_dict()
    assert (again.space, again.proxy) == (found.space, found.proxy)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["search_rows"] == found.split.search.tolist()
    table = pq.read_table(folder / "scores.parquet")
    assert table.num_rows == found.space.size
    rho = table["spearman"].to_numpy()
    np.testing.assert_array_equal(rho, found.ranking.spearman)
    for index in (0, 12_345, 47_999):
        row = {name: table[name][index].as_py() for name in table.column_names}
        proxy = found.space.proxy(index)
        assert row["proxy"] == format_expression(proxy)
        form = as_published(proxy)
        matrix_product = row["binary"] == "matrix_product"  # the sum of the products
        assert matrix_product == (index % 4 == 3)
        assert form.aggregation == ("sum" if matrix_product else row["aggregation"])
        signs = {"sum": "+", "difference": "-", "product": "*", "matrix_product": "*"}
        assert form.sign == signs[row["binary"]]
        for side, branch in zip(("left", "right"), form.branches, strict=True):
            assert row[f"{side}_input"] == branch.input
            assert row[f"{side}_chain"] == "|".join(branch.chain)


def test_a_run_that_fails_leaves_nothing(tmp_path):
    folder = tmp_path / "run"

    def fail():
        with open_run(folder, "rank", {}).saving(None) as draft:
            (draft / "half").write_text("x")
            raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LmscoutError, match="not empty"):
        open_run(tmp_path, "rank", {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_default_folder_has_a_plain_name():
    assert default_run_folder("rank-lts:/a b/c").name.startswith("rank-lts--a-b-c-")


def test_ranking_the_catalog(cache, tmp_path):
    benchmark = tiny_benchmark()
    result = rank_proxies(benchmark, seed=0, cache=cache, **SETTINGS)
    assert [one.name for one in result.proxies] == [entry.name for entry in CATALOG]
    by_name = {one.name: one for one in result.proxies}
    counts = [spec.parameters() for spec in benchmark.specs]
    assert by_name["parameters"].agreement.spearman.value == pytest.approx(
        scipy.stats.spearmanr(counts, benchmark.quality).statistic
    )
    assert math.isnan(by_name["parameters"].given_params)
    run = open_run(tmp_path / "run", "rank", {"seed": 0})
    save_rank(run, result, benchmark)
    assert run.load(RankResult).to_json() == result.to_json()
    table = pq.read_table(tmp_path / "run" / "scores.parquet")
    assert table.column_names == ["architecture", "quality", *by_name]
    # kept as float32, like all that is collected
    assert table["parameters"].to_pylist() == pytest.approx(counts, rel=1e-7)
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["proxies"][0]["given_params"] is None
    assert {one["proxy"] for one in plain["baselines"]} >= {"parameters", "depth"}


def test_ranking_an_expression_of_the_user(cache):
    benchmark = tiny_benchmark()
    text = "sum(std(exp(weight)) * abs(grad))"
    result = rank_proxies(benchmark, [text, "snip"], seed=0, cache=cache, **SETTINGS)
    assert [one.name for one in result.proxies] == [text, "snip"]
    chains = (("exp", "std"), ("abs",))
    statistics = collect(benchmark.specs, chains, name="x", folder=cache, **SETTINGS)
    expected = evaluate(parse(text), statistics.branch, statistics.depth)
    assert result.scores[text] == pytest.approx(expected, rel=1e-5)


def test_an_expression_of_single_operations_shares_the_statistics_of_discover(cache, found):
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    text = "sum(abslog(head) - sqrt(weight))"
    rank_proxies(tiny_benchmark(), [text], seed=0, cache=cache, **SETTINGS)
    assert before == {path: path.stat().st_mtime_ns for path in cache.iterdir()}
