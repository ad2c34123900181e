"""The text of an expression: what it means in either notation, and what is no proxy."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxy_strategies import failure, joined, proxies, scores

from lmscout.errors import LmscoutError
from lmscout.proxies import LARGEST, Branch, Expression, format_expression, parse
from lmscout.proxies.expression import LONGEST
from lmscout.proxies.primitives import AGGREGATES, UNARY


def branch(name, *chain):
    return Branch(name, chain).expression()


def proxy(aggregation, *branches, sign="+"):
    body = joined(sign, *branches) if len(branches) == 2 else branches[0]
    return Expression(aggregation, (body,))


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        (
            "sum(abslog(head) - sqrt(weight))",
            proxy("sum", branch("head", "abslog"), branch("weight", "sqrt"), sign="-"),
        ),
        (
            "mean(frobenius(sqrt(head)) + l1(minmax(act)))",
            proxy("mean", branch("head", "sqrt", "frobenius"), branch("act", "minmax", "l1")),
        ),
        (
            "min(exp(jacob) * identity(act))",
            proxy("min", branch("jacob", "exp"), branch("act", "identity"), sign="*"),
        ),
        ("sum(frobenius(grad))", proxy("sum", branch("grad", "frobenius"))),
        # One word in each of its roles: types decide.
        ("mean(mean(softmax))", proxy("mean", branch("softmax", "mean"))),
        ("max(softmax(softmax))", proxy("max", branch("softmax", "softmax"))),
    ],
)
def test_the_short_notation_is_what_it_says(text, expression):
    assert parse(text) == expression
    assert format_expression(expression) == text


@pytest.mark.parametrize(
    ("text", "same"),
    [
        # where a block value is expected, a tensor is averaged
        ("sum(abslog(head) - sqrt(weight))", "sum(average(abslog(head)) - average(sqrt(weight)))"),
        ("mean(mean(softmax)) / depth", "mean(average(mean(softmax))) / depth"),
        ("sum(act)", "sum(average(act))"),
        ("sum(mul(weight, grad) / total(act))", "sum(average(mul(weight, grad)) / total(act))"),
        ("mean(abs(act)) * mean(act)", "mean(average(abs(act))) * mean(average(act))"),
        # the inner product over blocks, whatever is around it
        ("mean(abs(weight) @ std(grad))", "sum(abs(weight) * std(grad))"),
        ("max(abs(weight) @ std(grad))", "sum(abs(weight) * std(grad))"),
        ("(abs(weight) @ std(grad)) / depth", "sum(abs(weight) * std(grad)) / depth"),
        # signs bind as in arithmetic
        ("depth - width - params", "(depth - width) - params"),
        ("depth + width * params", "depth + (width * params)"),
        ("depth / width * params", "(depth / width) * params"),
        ("sum((total(act)))", "sum(total(act))"),
        ("2 * depth", "02.00 * depth"),
    ],
)
def test_two_texts_of_one_expression(text, same):
    assert parse(text) == parse(same)


@given(st.one_of(proxies(max_operations=12), scores()))
@example(proxy("sum", branch("act", *["abs"] * 64)))
@settings(max_examples=150, deadline=None)
def test_parse_undoes_format(expression):
    text = format_expression(expression)
    assert parse(text) == expression
    assert parse(re.sub(r"([()*/+,-])", r"  \1 ", text)) == expression


@given(proxies(), st.data())
@settings(max_examples=100)
def test_white_space_is_free_and_formatting_removes_it(expression, data):
    text = format_expression(expression)
    tokens = re.findall(r"\w+|[^\w\s]", text)
    gaps = st.sampled_from(["", " ", "\t", "\n  "])
    loose = "".join(data.draw(gaps) + token for token in tokens) + data.draw(gaps)
    assert format_expression(parse(loose)) == text


def test_brackets_stay_where_they_are_needed():
    for text in (
        "depth - (width - params)",
        "depth / (width * params)",
        "(depth + width) * params",
        "sum(average(act))",  # not of the published form: no operation on the input
        "sum(average(abs(act)) / average(std(head)))",  # nor is this: no such sign
        "sum(average(abs(act_grad)))",
    ):
        assert format_expression(parse(text)) == text


@given(st.text(alphabet="sumeanhdbwight()+-*@,/ 1\n\x00'é", max_size=40))
@settings(max_examples=150)
def test_any_text_is_a_proxy_or_one_line_with_a_column_of_the_text(text):
    error = failure(parse, text)
    if error is not None:
        assert len(error.splitlines()) == 1
        assert 1 <= int(re.search(r"column (\d+): ", error)[1]) <= len(text) + 1


@given(proxies(), st.data())
@settings(max_examples=100)
def test_a_proxy_with_a_token_gone_is_another_one_or_one_line(expression, data):
    text = format_expression(expression)
    gone = data.draw(st.sampled_from(list(re.finditer(r"\w+|[^\w\s]", text))))
    broken = text[: gone.start()] + " " * len(gone.group()) + text[gone.end() :]
    error = failure(parse, broken)
    assert error is None or len(error.splitlines()) == 1
    assert error is not None or parse(broken) != expression


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "column 1: found the end, expected a word, a number or '('"),
        ("  ", "column 3: found the end, expected a word, a number or '('"),
        ("sum", "column 4: found the end, expected '(' after sum"),
        ("sum(", "column 5: found the end, expected a word, a number or '('"),
        ("sum()", "column 5: found ')', expected a word, a number or '('"),
        ("sum(abs(head)", "column 14: found the end, expected ')' to close sum, or a sign"),
        ("sum(abs(head)abs(act))", "column 14: found 'abs', expected ')' to close sum, or a sign"),
        ("sum(average(act)))", "column 18: found ')', expected the end or a sign"),
        ("sum(abs(head)) x", "column 16: found 'x', expected the end or a sign"),
        (
            "abslog(head)",
            "column 1: found a tensor, expected a score: aggregate it over the blocks",
        ),
        ("average(act)", "column 1: found a block value, expected a score: aggregate it over"),
        ("abs(act) + abs(head)", "column 1: found a block value, expected a score: aggregate"),
        ("Mean(abs(head))", "column 1: found 'Mean', expected an operation; did you mean 'mean'?"),
        ("sum(abss(head))", "column 5: found 'abss', expected an operation; did you mean 'abs'?"),
        (
            "sum(element_wise_pow(act))",
            "column 5: found 'element_wise_pow', expected an operation; did you mean 'square'?",
        ),
        ("sum(abs(haed))", "column 9: found 'haed', expected a leaf (act, jacob, grad, head,"),
        ("sum(abs(haed))", "did you mean 'head'?"),
        (
            "sum(weight(grad))",
            "column 5: found 'weight', which takes nothing, expected an operation",
        ),
        ("sum(abs(exp))", "column 12: found ')', expected '(' after exp"),
        ("sum(abs head)", "column 9: found 'head', expected '(' after abs"),
        ("sum(abs(head) − abs(act))", "column 15: found '−', expected a word, a number or one of"),
        ("sum(abs(head);)", "column 14: found ';', expected a word, a number or one of ( ) + - *"),
        ("sum(average(mul(weight, act)))", "takes (tensor, tensor), not (linear, act); tensors"),
        ("sum(average(mul(act)))", "column 13: mul takes (tensor, tensor), not (act)"),
        ("depth * !", "column 9: found '!', expected a word, a number or one of ( ) + - * / @ ,"),
        ("depth * 2(width)", "column 9: 2 is a number and takes nothing, not (score)"),
        ("depth @ width", "column 7: @ takes (block, block)"),
        ("sum(mul(act, act, act))", "column 17: found ',', expected ')' to close mul, or a sign"),
        ("2 3", "column 3: found '3', expected the end or a sign"),
        ("depth * 2.", "column 10: found '.'"),
        ("depth * 1e3", "column 10: found 'e3', expected the end or a sign"),
        ("sum(2)", "column 1: sum takes (block), not (score)"),
        ("sum(sum(average(act)))", "column 1: sum takes (block), not (score)"),
        ("(" * 300 + "depth", "no more than 256 words within each other"),
        ("sum(" + "abs(" * 4_000, "no more than 256 words within each other"),
        ("+".join(["depth"] * 300), "too large: at most 256"),
        ("9" * 400, "has 400 digits: too large"),
    ],
)
def test_an_error_names_the_column(text, line):
    with pytest.raises(LmscoutError) as caught:
        parse(text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_text_too_long_is_refused_before_it_is_read():
    with pytest.raises(
        LmscoutError, match=r"is too long \(got 100,001 characters, expected at most 100,000\)$"
    ):
        parse("x" * (LONGEST + 1))


def test_an_expression_may_be_as_large_as_is_said():
    deepest = "sum(" + "abs(" * (LARGEST - 3) + "act" + ")" * (LARGEST - 2)
    assert parse(deepest).size == LARGEST
    with pytest.raises(LmscoutError, match="too large: at most 256"):
        parse(deepest.replace("act", "abs(act)"))


def test_every_published_operation_is_spelled_as_in_the_tables():
    for name in AGGREGATES:
        for operation in UNARY:
            assert parse(f"{name}({operation.name}(act))").name == name
