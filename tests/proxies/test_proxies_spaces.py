"""Spaces: numbers of published proxies and their values, and every expression of a grammar."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxy_strategies import joined, proxies

from lmscout.errors import LmscoutError
from lmscout.proxies import (
    Branch,
    Expression,
    Grammar,
    Space,
    as_published,
    canonical,
    evaluate,
    parse,
    published,
    space,
    two_op,
)
from lmscout.proxies.primitives import SCORE
from lmscout.proxies.spaces import every_expression, every_score, random_expression

SMALL = Space("small", ("head", "act", "grad"), (("abs",), ("log", "std")), ("sum", "min"))
ALL = ("mean", "sum", "max", "min")
LARGE = two_op(ALL)


def test_the_published_space_has_24000_proxies_an_aggregation():
    assert published().size == 24_000
    assert published(ALL).size == 96_000
    assert len(published().pairs) == 15
    assert published().aggregations == ("mean",)
    assert published().shape == (1, 15, 20, 20, 4)


def test_the_two_op_space_has_nine_million_six_hundred_thousand():
    assert two_op().size == 9_600_000
    assert len(two_op().chains) == 400
    assert two_op().chains[20 * 3 + 7] == ("square", "invert")


def test_the_order_is_that_of_nested_loops():
    want = []
    for aggregation, (first, second), left, right, sign in product(
        ("sum", "min"),
        (("head", "act"), ("head", "grad"), ("act", "grad")),
        SMALL.chains,
        SMALL.chains,
        "+-*@",
    ):
        operands = Branch(first, left).expression(), Branch(second, right).expression()
        # a matrix product is the sum of the products, whatever the aggregation
        name, operation = ("sum", "*") if sign == "@" else (aggregation, sign)
        want.append(Expression(name, (joined(operation, *operands),)))
    assert [SMALL.proxy(index) for index in range(SMALL.size)] == want


@given(st.data())
@settings(max_examples=150)
def test_an_index_gives_its_place_in_the_order(data):
    chosen = data.draw(st.sampled_from([published(("mean", "sum")), LARGE]))
    index = data.draw(st.integers(0, chosen.size - 1))
    proxy = chosen.proxy(index)
    aggregation, pair, left, right, sign = np.unravel_index(index, chosen.shape)
    form = as_published(proxy)
    first, second = form.branches
    assert (first.input, second.input) == chosen.pairs[pair]
    assert (first.chain, second.chain) == (chosen.chains[left], chosen.chains[right])
    if sign == 3:  # a matrix product is the sum of the products
        assert (form.aggregation, form.sign) == ("sum", "*")
    else:
        assert (form.aggregation, form.sign) == (chosen.aggregations[aggregation], "+-*"[sign])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: published(("mean", "mean")), "aggregations are 'mean, mean', expected 1 or more"),
        (lambda: published(()), "aggregations are '', expected 1 or more, each once"),
        (lambda: published(("average",)), "unknown aggregation 'average'"),
        (lambda: space("two_op"), "unknown space 'two_op'.* did you mean 'two-op'"),
    ],
)
def test_a_malformed_space_is_one_clear_line(build, message):
    with pytest.raises(LmscoutError, match=message):
        build()


def test_spaces_by_name():
    assert space("published") == published()
    assert space("two-op", ("sum", "max")) == two_op(("sum", "max"))


def plain_score(proxy, value, depth):
    """The score of one architecture, by loops; `value(branch, block)` gives block values."""
    form = as_published(proxy)
    join = {
        "": lambda left: left,
        "+": lambda left, right: left + right,
        "-": lambda left, right: left - right,
        "*": lambda left, right: left * right,
    }[form.sign]
    per_block = [join(*(value(one, block) for one in form.branches)) for block in range(depth)]
    if any(math.isnan(one) for one in per_block):
        return math.nan
    if form.aggregation == "mean":
        return sum(per_block) / depth
    return {"sum": sum, "max": max, "min": min}[form.aggregation](per_block)


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
        proxy = parse(f"{aggregation}(abslog(head) @ abslog(weight))")
        assert evaluate(proxy, lambda name, _: table[name], [2]) == 14.0


def test_evaluate_computes_in_double_precision():
    small = np.array([[1e-8, 1.0]], dtype=np.float32)
    got = evaluate(parse("sum(abslog(head))"), lambda *_: small, [2])
    assert got[0] == float(small[0, 0]) + 1.0


def test_infinite_block_values_are_values_and_their_difference_is_none():
    table = {"head": [[math.inf], [math.inf]], "weight": [[1.0], [math.inf]]}
    got = evaluate(parse("mean(abs(head) - abs(weight))"), lambda name, _: table[name], [1, 1])
    assert got[0] == math.inf
    assert math.isnan(got[1])


FEW = Grammar(spec_leaves=("depth",), stacks=("act", "softmax"), aggregates=("sum",), largest=5)
LISTED = list(every_score(FEW))


def test_each_is_there_once_shortest_first_and_of_the_grammar():
    assert max(Counter(map(canonical, LISTED)).values()) == 1
    sizes = [one.size for one in LISTED]
    assert sizes == sorted(sizes)
    assert sizes[-1] == FEW.largest
    assert all(FEW.holds(one) for one in LISTED)


@given(st.integers(0, 10**6))
def test_every_random_expression_is_listed(seed):
    node = random_expression(FEW, SCORE, 5, np.random.default_rng(seed))
    assert canonical(node) in KNOWN


KNOWN = set(map(canonical, LISTED))


def test_counts_follow_from_the_words():
    leaves, unary = (
        len(list(every_expression(FEW, "act", 1))),
        len(list(every_expression(FEW, "softmax", 2))),
    )
    assert leaves == 2  # the activation and its gradient
    assert unary == 18  # of one input, by all operations but two
    assert len(list(every_expression(FEW, SCORE, 3))) == 2 * 3 + 10 * 10 + 4
