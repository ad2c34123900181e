import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxy_strategies import failure, proxies

from lmscout.errors import LmscoutError
from lmscout.proxies.json_form import from_json, to_json
from lmscout.proxies.text import parse

GOOD = to_json(parse("sum(abslog(head) - sqrt(square(weight)))"))


def test_the_json_form_is_what_it_says():
    assert GOOD == {
        "aggregation": "sum",
        "body": {
            "operation": "difference",
            "left": {"input": "head", "chain": ["abslog"]},
            "right": {"input": "weight", "chain": ["square", "sqrt"]},
        },
    }
    assert to_json(parse("mean(std(grad))")) == {
        "aggregation": "mean",
        "body": {"input": "grad", "chain": ["std"]},
    }


@given(proxies())
@settings(max_examples=100)
def test_json_survives_the_trip_through_text(proxy):
    assert from_json(json.loads(json.dumps(to_json(proxy)))) == proxy


def changed(path, value):
    copy = json.loads(json.dumps(GOOD))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the proxy: found None, expected an object with aggregation, body"),
        ([GOOD], "the proxy: found [{'aggregation': 'sum'"),
        ({"aggregation": "sum"}, "the proxy: body is missing, expected an object with"),
        (
            GOOD | {"agregation": 1},
            "the proxy: found 'agregation', expected an object with aggregation, body; "
            "did you mean 'aggregation'?",
        ),
        (
            changed(["aggregation"], "summ"),
            "aggregation: found 'summ', expected one of mean, sum, max, min; did you mean 'sum'?",
        ),
        (changed(["body"], 3), "body: found 3, expected an object with operation, left, right"),
        (changed(["body", "operation"], "-"), "body.operation: found '-', expected one of sum,"),
        (changed(["body", "left"], "head"), "body.left: found 'head', expected an object with"),
        (
            changed(["body", "left", "input"], 1.5),
            "body.left.input: found 1.5, expected one of act",
        ),
        (changed(["body", "right", "chain"], []), "body.right.chain: found [], expected a list of"),
        (changed(["body", "right", "chain"], "abs"), "body.right.chain: found 'abs', expected"),
        (
            changed(["body", "right", "chain"], ["abs"] * 65),
            "expected a list of 1 to 64 operations",
        ),
        (
            changed(["body", "right", "chain", 1], "sqr"),
            "body.right.chain[1]: found 'sqr', expected one of log, abslog,",
        ),
        (changed(["body", "right", "chain", 0], None), "body.right.chain[0]: found None, expected"),
    ],
)
def test_an_error_names_the_path(value, message):
    with pytest.raises(LmscoutError) as caught:
        from_json(value)
    assert str(caught.value).startswith("proxy JSON, ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


KEYS = ["aggregation", "body", "operation", "left", "right", "input", "chain"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["sum", "head", "abs", "\n"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(ANYTHING)
def test_any_json_is_a_proxy_or_one_line(value):
    error = failure(from_json, value)
    assert error is None or len(error.splitlines()) == 1
