import numpy as np
import pytest
import scipy.stats

from lmscout.discovery.explain import Change, Sensitivity, change, leaves_as_ones, why_no_inputs
from lmscout.proxies import CATALOG, as_expression, format_expression, parse, resolve


def test_a_change_is_two_correlations():
    random = np.random.default_rng(0)
    scores, own, quality = random.normal(size=(3, 30))
    found = change(scores, own, quality)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(scores, own).statistic)
    assert found.quality == pytest.approx(scipy.stats.spearmanr(scores, quality).statistic)
    undefined = change(np.ones(30), own, quality)
    assert undefined.to_json() == {"spearman": None, "quality": None}


def test_each_tensor_leaf_is_replaced_by_ones_wherever_it_occurs():
    node = parse("sum(total(mul(weight, sub(grad, softmax(weight)))) + average(softmax)) / depth")
    ones = "exp(sub({0}, {0}))".format
    assert {leaf: format_expression(tree) for leaf, tree in leaves_as_ones(node).items()} == {
        "weight": f"sum(total(mul({ones('weight')}, sub(grad, softmax({ones('weight')})))) "
        "+ average(softmax)) / depth",
        "grad": f"sum(total(mul(weight, sub({ones('grad')}, softmax(weight)))) "
        "+ average(softmax)) / depth",
        "softmax": f"sum(total(mul(weight, sub(grad, softmax(weight)))) "
        f"+ average({ones('softmax')})) / depth",
    }


def test_why_there_are_no_inputs():
    said = {one.name: why_no_inputs(one, as_expression(one)) for one in CATALOG}
    assert {name for name, why in said.items() if "runs the model" in why} == {
        "grasp",
        "synflow",
        "logsynflow",
    }
    assert {name for name, why in said.items() if "configuration" in why} == {"parameters"}
    for text in ("sum(abs(weight))", "sum(total(act)) / params"):
        assert why_no_inputs(resolve(text), as_expression(resolve(text))) == ""
    assert "configuration" in why_no_inputs(resolve("depth * width"), parse("depth * width"))


def test_a_proxy_without_room_for_ones_says_so():
    large = parse(" + ".join(["sum(total(act))"] * 17))
    assert leaves_as_ones(large) == {}
    assert why_no_inputs(large, large) == "it has 67 words, more than 64"
    assert set(leaves_as_ones(parse(" + ".join(["sum(total(act))"] * 16)))) == {"act"}


def test_json():
    one = Change(0.5, float("nan"))
    values = Sensitivity(one, one, {"act": one}, "").to_json()
    figures = {"spearman": 0.5, "quality": None}
    assert values == {
        "other_data": figures,
        "other_weights": figures,
        "inputs": {"act": figures},
        "inputs_left_out": None,
    }
