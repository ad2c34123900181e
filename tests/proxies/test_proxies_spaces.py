from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import Binary, Branch, Proxy
from lmscout.proxies.spaces import Space, published, space, two_op
from lmscout.proxies.text import parse

SMALL = Space("small", ("head", "act", "grad"), (("abs",), ("log", "std")), ("sum", "min"))
ALL = ("mean", "sum", "max", "min")
LARGE = two_op(ALL)


def test_the_published_space_has_24000_proxies_an_aggregation():
    assert published().size == len(published()) == 24_000
    assert published(ALL).size == 96_000
    assert len(published().pairs) == 15
    assert published().aggregations == ("mean",)
    assert published().shape == (1, 15, 20, 20, 4)


def test_the_two_op_space_has_nine_million_six_hundred_thousand():
    assert two_op().size == 9_600_000
    assert len(two_op().chains) == 400
    assert two_op().chains[20 * 3 + 7] == ("square", "invert")


def test_the_order_is_that_of_nested_loops():
    want = [
        Proxy(aggregation, Binary(binary, Branch(first, left), Branch(second, right)))
        for aggregation, (first, second), left, right, binary in product(
            ("sum", "min"),
            (("head", "act"), ("head", "grad"), ("act", "grad")),
            SMALL.chains,
            SMALL.chains,
            ("sum", "difference", "product", "matrix_product"),
        )
    ]
    assert list(SMALL) == want
    assert [SMALL.index(proxy) for proxy in want] == list(range(SMALL.size))


@given(st.data())
@settings(max_examples=150)
def test_index_and_proxy_undo_each_other(data):
    chosen = data.draw(st.sampled_from([published(("mean", "sum")), LARGE]))
    index = data.draw(st.integers(0, chosen.size - 1))
    proxy = chosen.proxy(index)
    assert chosen.index(proxy) == index
    aggregation, pair, left, right, _ = np.unravel_index(index, chosen.shape)
    assert proxy.aggregation == chosen.aggregations[aggregation]
    assert (proxy.body.left.input, proxy.body.right.input) == chosen.pairs[pair]
    assert proxy.body.left.chain == chosen.chains[left]
    assert proxy.body.right.chain == chosen.chains[right]


@pytest.mark.parametrize("index", [-1, 24_000])
def test_an_index_outside_is_one_clear_line(index):
    with pytest.raises(LmscoutError, match=f"index {index} is outside, give one from 0 to 23999"):
        published().proxy(index)


@pytest.mark.parametrize(
    "text",
    [
        "sum(abs(act) + abs(head))",  # another aggregation
        "mean(abs(head) + abs(act))",  # the pair the other way round
        "mean(abs(act) + abs(act))",  # no pair
        "mean(abs(abs(act)) + abs(head))",  # a longer chain
        "mean(abs(act))",  # a single branch
    ],
)
def test_a_proxy_outside_is_one_clear_line(text):
    with pytest.raises(LmscoutError) as caught:
        published().index(parse(text))
    assert str(caught.value).startswith(f"space published does not hold {text!r}: ")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: published(("mean", "mean")), "aggregations are 'mean, mean', expected 1 or more"),
        (lambda: published(()), "aggregations are '', expected 1 or more, each once"),
        (lambda: published(("average",)), "unknown aggregation 'average'"),
        (lambda: Space("s", ("act",), (("abs",),), ("sum",)), "inputs are 'act', expected 2"),
        (lambda: Space("s", ("act", "x"), (("abs",),), ("sum",)), "unknown input 'x'"),
        (lambda: Space("s", ("act", "head"), (), ("sum",)), "chains are '', expected 1"),
        (lambda: space("two_op"), "unknown space 'two_op'.* did you mean 'two-op'"),
    ],
)
def test_a_malformed_space_is_one_clear_line(build, message):
    with pytest.raises(LmscoutError, match=message):
        build()


def test_spaces_by_name():
    assert space("published") == published()
    assert space("two-op", ("sum", "max")) == two_op(("sum", "max"))
