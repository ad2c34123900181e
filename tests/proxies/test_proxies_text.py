import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxy_strategies import failure, proxies

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import Binary, Branch, Proxy
from lmscout.proxies.operators import UNARY
from lmscout.proxies.text import format_proxy, parse

OPERATIONS = ", ".join(entry.name for entry in UNARY)
SIGNS = "'+', '-', '*', '@'"


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        (
            "sum(abslog(head) - sqrt(weight))",
            Proxy(
                "sum",
                Binary("difference", Branch("head", ("abslog",)), Branch("weight", ("sqrt",))),
            ),
        ),
        (
            "mean(frobenius(sqrt(head)) + l1(minmax(act)))",
            Proxy(
                "mean",
                Binary(
                    "sum",
                    Branch("head", ("sqrt", "frobenius")),
                    Branch("act", ("minmax", "l1")),
                ),
            ),
        ),
        (
            "mean(abs(weight) @ std(grad))",
            Proxy(
                "mean",
                Binary("matrix_product", Branch("weight", ("abs",)), Branch("grad", ("std",))),
            ),
        ),
        (
            "min(exp(jacob) * identity(act))",
            Proxy(
                "min", Binary("product", Branch("jacob", ("exp",)), Branch("act", ("identity",)))
            ),
        ),
        ("sum(frobenius(grad))", Proxy("sum", Branch("grad", ("frobenius",)))),
        # One word in each of its roles: position decides.
        ("mean(mean(softmax))", Proxy("mean", Branch("softmax", ("mean",)))),
        ("max(softmax(softmax))", Proxy("max", Branch("softmax", ("softmax",)))),
    ],
)
def test_the_text_form_is_what_it_says(text, proxy):
    assert parse(text) == proxy
    assert format_proxy(proxy) == text


@given(proxies(max_operations=12))
@example(Proxy("sum", Branch("act", ("abs",) * 64)))
@settings(max_examples=150)
def test_parse_undoes_format(proxy):
    assert parse(format_proxy(proxy)) == proxy


@given(proxies(), st.data())
@settings(max_examples=100)
def test_white_space_is_free_and_formatting_removes_it(proxy, data):
    canonical = format_proxy(proxy)
    tokens = re.findall(r"\w+|[^\w\s]", canonical)
    gaps = st.sampled_from(["", " ", "\t", "\n  "])
    loose = "".join(data.draw(gaps) + token for token in tokens) + data.draw(gaps)
    assert format_proxy(parse(loose)) == canonical


@given(st.text(alphabet="sumeanhdbwight()+-*@ 1\n\x00'é", max_size=40))
@settings(max_examples=150)
def test_any_text_is_a_proxy_or_one_line_with_a_column_of_the_text(text):
    error = failure(parse, text)
    if error is not None:
        assert len(error.splitlines()) == 1
        assert 1 <= int(re.search(r"column (\d+): found", error)[1]) <= len(text) + 1


@given(proxies(), st.data())
@settings(max_examples=100)
def test_a_proxy_with_a_token_gone_is_reported_within_reach_of_the_gap(proxy, data):
    text = format_proxy(proxy)
    tokens = list(re.finditer(r"\w+|[^\w\s]", text))
    gone = data.draw(st.sampled_from(tokens))
    broken = text[: gone.start()] + " " * len(gone.group()) + text[gone.end() :]
    with pytest.raises(LmscoutError) as caught:
        parse(broken)
    column = int(re.search(r"column (\d+)", str(caught.value))[1])
    # Nothing before the token that lost its neighbour can be at fault.
    before = tokens[tokens.index(gone) - 1].start() if tokens.index(gone) else 0
    assert column >= before + 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "column 1: found the end, expected an aggregation (mean, sum, max, min)"),
        ("  ", "column 3: found the end, expected an aggregation (mean, sum, max, min)"),
        ("sum", "column 4: found the end, expected '(' after the aggregation sum"),
        ("sum(", "column 5: found the end, expected an operation, as in abs(weight)"),
        ("sum()", "column 5: found ')', expected an operation, as in abs(weight)"),
        (
            "sum(head)",
            "column 5: found 'head', expected an operation around the input, as in identity(head)",
        ),
        (
            "mean(softmax)",
            "column 6: found 'softmax', expected an operation around the input, "
            "as in identity(softmax)",
        ),
        (
            "sum(abs(head)",
            f"column 14: found the end, expected {SIGNS} or ')' to close sum",
        ),
        (
            "sum(abs(head)abs(act))",
            f"column 14: found 'abs', expected {SIGNS} or ')' to close sum",
        ),
        ("sum(abs(head)) x", "column 16: found 'x', expected the end of the proxy"),
        (
            "sum(abs(head) + abs(act) - abs(act))",
            "column 26: found '-', expected ')': a proxy joins two branches, not more",
        ),
        (
            "sum(abs(head) + abs(act)",
            "column 25: found the end, expected ')' to close sum",
        ),
        (
            "abslog(head)",
            "column 1: found 'abslog', which is an operation, "
            "expected an aggregation (mean, sum, max, min)",
        ),
        (
            "Mean(abs(head))",
            "column 1: found 'Mean', expected an aggregation (mean, sum, max, min); "
            "did you mean 'mean'?",
        ),
        (
            "sum(abss(head))",
            f"column 5: found 'abss', expected an operation ({OPERATIONS}); did you mean 'abs'?",
        ),
        (
            "sum(element_wise_pow(act))",
            f"column 5: found 'element_wise_pow', expected an operation ({OPERATIONS}); "
            "did you mean 'square'?",
        ),
        (
            "sum(abs(haed))",
            "column 9: found 'haed', expected an input (act, jacob, grad, head, weight, softmax); "
            "did you mean 'head'?",
        ),
        (
            "sum(weight(grad))",
            f"column 5: found 'weight', which is an input, expected an operation ({OPERATIONS})",
        ),
        (
            "sum(abs(exp))",
            "column 9: found 'exp', which is an operation, "
            "expected an input (act, jacob, grad, head, weight, softmax)",
        ),
        (
            "sum(abs(mean))",
            "column 9: found 'mean', which is an aggregation and an operation, "
            "expected an input (act, jacob, grad, head, weight, softmax)",
        ),
        ("sum(abs)", "column 8: found ')', expected '(' after the operation abs"),
        ("sum(abs head)", "column 9: found 'head', expected '(' after the operation abs"),
        (
            "sum(hed + abs(act))",
            "column 5: found 'hed', expected an operation, as in abs(weight); "
            "did you mean 'identity(head)'?",
        ),
        (
            "sum(abs())",
            "column 9: found ')', expected an operation or an input "
            "(act, jacob, grad, head, weight, softmax)",
        ),
        (
            "sum(abs(head) − abs(act))",
            "column 15: found '−', expected a name or one of ( ) + - * @",
        ),
        ("sum(abs(2))", "column 9: found '2', expected a name or one of ( ) + - * @"),
        ("sum(abs(head);)", "column 14: found ';', expected a name or one of ( ) + - * @"),
    ],
)
def test_an_error_names_the_column_what_was_found_and_what_was_expected(text, line):
    with pytest.raises(LmscoutError) as caught:
        parse(text)
    assert str(caught.value) == f"proxy {text!r}, {line}"


def test_nesting_is_bounded_with_a_clear_line():
    with pytest.raises(LmscoutError) as caught:
        parse("sum(" + "abs(" * 65 + "act" + ")" * 66)
    assert str(caught.value).endswith(
        f"column {5 + 64 * 4}: found 'abs', expected an input: no more than 64 operations "
        "are nested"
    )


def test_absurd_depth_is_the_same_line_and_no_stack_overflow():
    with pytest.raises(LmscoutError, match="no more than 64 operations are nested"):
        parse("sum(" + "abs(" * 20_000)


def test_a_long_text_is_cut_in_the_message():
    with pytest.raises(LmscoutError) as caught:
        parse("sum(" + "x" * 10_000 + "(head))")
    assert len(str(caught.value)) < 500
