import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxy_strategies import proxies

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import (
    MAX_OPERATIONS,
    Binary,
    Branch,
    Proxy,
    branches,
    complexity,
    evaluate,
)

HEAD = Branch("head", ("abslog",))
WEIGHT = Branch("weight", ("square", "sqrt"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Branch("wieght", ("abs",)),
            "unknown input 'wieght': expected one of act, jacob, grad, head, weight, softmax; "
            "did you mean 'weight'?",
        ),
        (
            lambda: Branch("head", ("abs", "frobenious")),
            "did you mean 'frobenius'?",
        ),
        (lambda: Branch("head", ["abs"]), "a chain must be a tuple of operations, not ['abs']"),
        (lambda: Branch("head", "abs"), "a chain must be a tuple of operations, not 'abs'"),
        (lambda: Branch("head", ()), "a chain on head has 0 operations: give between 1 and 64"),
        (lambda: Branch("head", ("abs",) * 65), "a chain on head has 65 operations"),
        (lambda: Branch("head", (3,)), "operation must be a name, not 3"),
        (lambda: Binary("+", HEAD, WEIGHT), "unknown binary operation '+'"),
        (lambda: Binary("sum", HEAD, "weight"), "the right operand of sum must be a Branch"),
        (lambda: Proxy("average", HEAD), "unknown aggregation 'average'"),
        (lambda: Proxy("mean", "head"), "the body of a proxy must be a Binary or a Branch"),
    ],
)
def test_a_malformed_expression_cannot_be_built(build, message):
    with pytest.raises(LmscoutError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_longest_chain_can_be_built():
    assert len(Branch("head", ("abs",) * MAX_OPERATIONS).chain) == MAX_OPERATIONS


def test_expressions_are_values():
    proxy = Proxy("sum", Binary("difference", HEAD, WEIGHT))
    same = Proxy("sum", Binary("difference", Branch("head", ("abslog",)), WEIGHT))
    assert {proxy: 1}[same] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        proxy.aggregation = "mean"


def test_branches_and_complexity_count_what_is_there():
    both = Proxy("sum", Binary("difference", HEAD, WEIGHT))
    assert branches(both) == (HEAD, WEIGHT)
    assert complexity(both) == 7  # sum, -, abslog, head, sqrt, square, weight
    assert branches(Proxy("sum", HEAD)) == (HEAD,)
    assert complexity(Proxy("sum", HEAD)) == 3


def plain_score(proxy, value, depth):
    """The score of one architecture, by loops; `value(branch, block)` gives block values."""
    operands = branches(proxy)
    if isinstance(proxy.body, Branch):
        per_block = [value(operands[0], block) for block in range(depth)]
    else:
        per_block = []
        for block in range(depth):
            left, right = value(operands[0], block), value(operands[1], block)
            operation = proxy.body.operation
            if operation == "sum":
                per_block.append(left + right)
            elif operation == "difference":
                per_block.append(left - right)
            else:
                per_block.append(left * right)
        if proxy.body.operation == "matrix_product":
            return sum(per_block)
    if any(math.isnan(one) for one in per_block):
        return math.nan
    if proxy.aggregation == "mean":
        return sum(per_block) / depth
    return {"sum": sum, "max": max, "min": min}[proxy.aggregation](per_block)


@given(
    proxy=proxies(),
    depths=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
    beyond=st.sampled_from([math.nan, 1e300, math.inf, 0.0]),
    hole=st.booleans(),
)
@settings(max_examples=100)
def test_evaluate_is_the_plain_loop(proxy, depths, seed, beyond, hole):
    rng = np.random.default_rng(seed)
    tables = {}

    def lookup(name, chain):
        if (name, chain) not in tables:
            values = rng.normal(size=(len(depths), 5))
            if hole:
                values[0, 0] = math.nan
            for row, depth in enumerate(depths):
                values[row, depth:] = beyond
            tables[name, chain] = values
        return tables[name, chain]

    got = evaluate(proxy, lookup, np.array(depths))
    want = [
        plain_score(proxy, lambda branch, b, row=row: tables[branch.input, branch.chain][row, b], d)
        for row, d in enumerate(depths)
    ]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert math.isnan(got[0]) == hole


def test_matrix_product_is_the_inner_product_whatever_the_aggregation():
    table = {"head": [[1.0, 2.0, 3.0]], "weight": [[4.0, 5.0, math.nan]]}
    for aggregation in ("mean", "sum", "max", "min"):
        proxy = Proxy(aggregation, Binary("matrix_product", HEAD, WEIGHT))
        assert evaluate(proxy, lambda name, _: table[name], [2]) == 14.0


def test_evaluate_computes_in_double_precision():
    small = np.array([[1e-8, 1.0]], dtype=np.float32)
    got = evaluate(Proxy("sum", HEAD), lambda *_: small, [2])
    assert got[0] == float(small[0, 0]) + 1.0


def test_infinite_block_values_are_values_and_their_difference_is_none():
    table = {"head": [[math.inf], [math.inf]], "weight": [[1.0], [math.inf]]}
    got = evaluate(
        Proxy("mean", Binary("difference", HEAD, WEIGHT)), lambda name, _: table[name], [1, 1]
    )
    assert got[0] == math.inf
    assert math.isnan(got[1])


@pytest.mark.parametrize(
    ("values", "depths", "message"),
    [
        (np.ones(3), [1], r"have shape \(3,\) beside \(1,\) depths"),
        (np.ones((3, 2)), [1, 2], r"have shape \(3, 2\) beside \(2,\) depths"),
        (np.ones((2, 2)), [1, 3], "depths from 1 to 3 do not fit"),
        (np.ones((2, 2)), [0, 2], "depths from 0 to 2 do not fit"),
    ],
)
def test_depths_that_do_not_fit_are_one_clear_line(values, depths, message):
    with pytest.raises(LmscoutError, match=message):
        evaluate(Proxy("mean", HEAD), lambda *_: values, depths)
