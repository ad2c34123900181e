import json
from importlib import import_module

import numpy as np
import pytest
import scipy.stats
from tiny_benchmark import tiny_benchmark

from lmscout.discovery import Explanation, explain
from lmscout.errors import LmscoutError
from lmscout.proxies import format_expression, to_latex, to_torch
from lmscout.statistics import Batch, Workers, score_proxies

BENCHMARK = tiny_benchmark(24)
BATCH = Batch(4, 16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def explained(cache):
    known = {}

    def run(proxy, seed=0):
        if (proxy, seed) not in known:
            known[proxy, seed] = explain(
                BENCHMARK, proxy, seed=seed, cache=cache, batch=BATCH, workers=Workers(1)
            )
        return known[proxy, seed]

    return run


def scores_of(name, cache, **changes):
    options = {"seed": 0, "batch": BATCH, "workers": Workers(1)} | changes
    return score_proxies(BENCHMARK.specs, [name], name="plain", folder=cache, **options)[name]


def rho(one, other):
    return scipy.stats.spearmanr(one, other).statistic


def test_dead_branches_are_found_where_there_are_some(explained):
    found = explained("lpzero-flexibert").dead_branches
    assert found.measured_on == "full tensors"
    assert {cut.removed for cut in found.dead} == {
        "average(logsoftmax(frobenius(act)))",
        "negate(…)",
    }
    assert format_expression(found.shortest) == "mean(square(head))"
    assert found.spearman == pytest.approx(1.0)


def test_no_dead_branch_is_found_where_there_is_none(explained):
    found = explained("sum(total(abs(mul(weight, grad))))").dead_branches
    assert found.dead == ()
    assert format_expression(found.shortest) == "sum(total(abs(mul(weight, grad))))"
    assert found.spearman == pytest.approx(1.0)


def test_larger_trees_are_cut_on_sketches_and_what_is_left_is_scored_in_full(cache, monkeypatch):
    monkeypatch.setattr(import_module("lmscout.discovery.explain"), "FULL_WORDS", 0)
    text = "sum(total(square(head)) + average(softmax(act)) * average(mean(logsoftmax(std(act)))))"
    result = explain(BENCHMARK, text, seed=0, cache=cache, batch=BATCH, workers=Workers(1))
    found = result.dead_branches
    assert found.measured_on == "sketches"
    removed = {cut.removed for cut in found.dead}
    assert "average(softmax(act)) * average(mean(logsoftmax(std(act))))" in removed
    assert format_expression(found.shortest) == "sum(total(square(head)))"
    expected = rho(scores_of("sum(total(square(head)))", cache), scores_of(text, cache))
    assert found.spearman == pytest.approx(abs(expected))


def test_what_reads_weights_alone_does_not_depend_on_data(explained, cache):
    result = explained("sum(total(abs(weight)))").sensitivity
    assert result.other_data.spearman == pytest.approx(1.0)
    assert result.other_weights.spearman < 1.0
    expected = scores_of("sum(total(abs(weight)))", cache, seed=1)
    own = scores_of("sum(total(abs(weight)))", cache)
    assert result.other_weights.spearman == pytest.approx(rho(expected, own))
    assert result.other_weights.quality == pytest.approx(rho(expected, BENCHMARK.quality))


def test_what_reads_gradients_depends_on_data(explained, cache):
    text = "sum(average(std(grad)))"
    result = explained(text).sensitivity
    expected = scores_of(text, cache, batch=Batch(4, 16, seed=1))
    assert result.other_data.spearman == pytest.approx(rho(expected, scores_of(text, cache)))
    assert result.other_data.spearman < 1.0


def test_an_input_of_ones_says_its_size_alone(explained):
    result = explained("sum(total(abs(weight)))").sensitivity
    elements = [
        sum(
            layer.weight.numel() for point in spec.build(0).probe_points() for layer in point.linear
        )
        for spec in BENCHMARK.specs
    ]
    own = explained("sum(total(abs(weight)))")
    assert set(result.inputs) == {"weight"}
    assert result.inputs["weight"].quality == pytest.approx(rho(elements, BENCHMARK.quality))
    assert own.sensitivity.left_out == ""
    flat = explained("mean(average(std(grad)))").sensitivity.inputs["grad"]
    assert np.isnan(flat.spearman)  # ones do not vary: nothing is left


def test_ones_in_a_tree_are_ones_in_a_reading(cache):
    for text, leaf in (
        ("sum(total(abs(mul(weight, grad))))", "grad"),
        ("sum(average(act) * average(log(head)))", "head"),
    ):
        replaced = text.replace(leaf, f"exp(sub({leaf}, {leaf}))")
        np.testing.assert_array_equal(scores_of(replaced, cache), scores_of(text, cache, ones=leaf))


def test_a_function_is_given_ones_for_what_it_reads(explained, cache):
    result = explained("fisher")
    assert set(result.sensitivity.inputs) == {"act", "act_grad"}
    expected = scores_of("fisher", cache, ones="act_grad")
    assert result.sensitivity.inputs["act_grad"].spearman == pytest.approx(
        rho(expected, scores_of("fisher", cache))
    )
    assert (result.tree, result.dead_branches, result.latex, result.torch) == (None,) * 4
    assert explained("synflow").sensitivity.left_out == "it runs the model itself"


def test_it_is_compared_with_the_configuration(explained, cache):
    result = explained("sum(total(abs(weight)))")
    own = scores_of("sum(total(abs(weight)))", cache)
    for name, values in {
        "depth": [spec.depth for spec in BENCHMARK.specs],
        "width": [spec.width for spec in BENCHMARK.specs],
        "params": [spec.parameters() for spec in BENCHMARK.specs],
    }.items():
        assert result.configuration[name] == pytest.approx(rho(own, values))
    assert result.assessment.agreement.spearman.value == pytest.approx(rho(own, BENCHMARK.quality))
    best = max(one.agreement.spearman.value for one in result.baselines)
    assert result.hardest.name == "depth"
    assert result.ahead.value == pytest.approx(rho(own, BENCHMARK.quality) - best)
    assert not result.beats_baselines


def test_a_count_of_parameters_is_told_to_be_one(explained):
    result = explained("parameters").surrogate
    assert result.formula == "params"
    assert result.says_as_much
    assert explained("depth * width").surrogate.formula == "depth * width"


def test_the_sign_is_as_given(explained):
    straight, turned = (
        explained("sum(total(abs(weight)))"),
        explained("negate(sum(total(abs(weight))))"),
    )
    assert turned.assessment.agreement.spearman.value == pytest.approx(
        -straight.assessment.agreement.spearman.value
    )
    assert [cut.removed for cut in turned.dead_branches.dead] == ["negate(…)"]
    assert turned.surrogate.held_out == pytest.approx(straight.surrogate.held_out)


def test_forms_are_those_of_the_proxy(explained):
    published = explained("sum(abslog(head) - sqrt(weight))")
    assert format_expression(published.tree) == "sum(abslog(head) - sqrt(weight))"
    assert r"\sqrt{\left(W_{\ell}\right)^{+}}" in published.latex
    assert "def proxy(tensors, spec):" in published.torch
    deep = explained("sum(total(abs(mul(weight, grad))))")
    assert deep.latex == to_latex(deep.tree)
    assert deep.torch == to_torch(deep.tree)


def test_what_has_no_order_is_one_line(cache):
    for text, said in (
        ("sum(average(exp(exp(exp(exp(exp(exp(abs(weight))))))))) * depth", "no finite score on"),
        ("max(relu(log(softmax)))", "the same score"),
    ):
        with pytest.raises(LmscoutError, match=said) as caught:
            explain(BENCHMARK, text, seed=0, cache=cache, batch=BATCH, workers=Workers(1))
        assert "\n" not in str(caught.value)
        assert text in str(caught.value)


def test_json_is_whole_and_the_same_at_any_number_of_workers(explained, tmp_path):
    text = "sum(total(abs(mul(weight, grad))))"
    result = explained(text).to_json()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for one in (explained(text), explained("snip")):
        saved = json.loads(json.dumps(one.to_dict(), allow_nan=False))
        read = Explanation.from_dict(saved)
        assert read.to_dict() == one.to_dict()
        assert read.to_json() == one.to_json()
        assert (read.tree, read.seen) == (one.tree, one.seen)
    again = explain(
        BENCHMARK, text, seed=0, cache=tmp_path, batch=BATCH, workers=Workers(2)
    ).to_json()
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in result.items() if k != "seconds"
    }
    assert set(result["seconds"]) == {"scores", "other data", "other weights"}
