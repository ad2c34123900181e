"""Expressions: typed trees that cannot be malformed, and their published form."""

import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxy_strategies import proxies, scores

from lmscout.errors import LmscoutError
from lmscout.proxies import (
    LARGEST,
    Branch,
    Expression,
    Published,
    as_published,
    canonical,
    format_expression,
    parse,
    replaced,
    simplified,
    walk,
)
from lmscout.proxies.primitives import BLOCK, SCORE, as_number, number_text

HEAD = Branch("head", ("abslog",))
WEIGHT = Branch("weight", ("square", "sqrt"))


@given(st.floats(0, 1e20))
def test_a_number_is_its_digits(value):
    number = Expression(number_text(value))
    assert as_number(number.name) == value
    assert parse(format_expression(number)) == number
    assert (number.type, number.size, number.leaves) == (SCORE, 1, frozenset())


def test_numbers_that_are_equal_are_one():
    assert Expression("02") == Expression("2.00") == parse("2")
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="finite number"):
            number_text(wrong)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Expression("wieght"), "unknown word 'wieght'; did you mean 'weight'?"),
        (lambda: Expression("sum", (Expression("act"),)), "sum takes (block), not (act)"),
        (lambda: Expression("abs"), "abs takes (tensor) or (block) or (score), not ()"),
        (lambda: Branch("head", ("abs", "frobenious")).expression(), "did you mean 'frobenius'?"),
        (lambda: Branch("head", ("abs",) * 255).expression(), "257 words is too large"),
    ],
)
def test_a_malformed_expression_cannot_be_built(build, message):
    with pytest.raises(LmscoutError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_expression_knows_its_type_size_and_leaves():
    proxy = parse("sum(total(abs(mul(weight, grad)))) / params")
    assert (proxy.type, proxy.size, proxy.leaves) == (SCORE, 8, {"weight", "grad", "params"})
    kinds = {format_expression(one): one.type for _, one in walk(proxy)}
    assert kinds["abs(mul(weight, grad))"] == "linear"
    assert kinds["total(abs(mul(weight, grad)))"] == BLOCK


def test_a_subtree_is_replaced_at_its_path_alone():
    proxy = parse("sum(average(act)) + sum(average(act))")
    gradient = Expression("act_grad")
    for path, old in walk(proxy):
        if old == Expression("act"):
            assert format_expression(replaced(proxy, path, gradient)).count("act_grad") == 1
    with pytest.raises(LmscoutError, match="average takes"):
        replaced(proxy, (0, 0, 0), Expression("depth"))
    assert LARGEST == 256


@given(scores())
@settings(deadline=None)
def test_one_order_for_what_commutes(proxy):
    one = canonical(proxy)
    assert canonical(one) == one
    assert one.size == proxy.size

    def swapped(expression):
        operands = tuple(swapped(one) for one in expression.operands)
        commutes = expression.name in ("add", "mul", "+", "*")
        return Expression(expression.name, operands[::-1] if commutes else operands)

    assert canonical(swapped(proxy)) == one


@pytest.mark.parametrize(
    ("text", "simple"),
    [
        ("sum(identity(act))", "sum(average(act))"),
        ("sum(abs(identity(act)) - meansum(head))", "sum(abs(act) - mean(head))"),
        ("sum(total(identity(identity(act))))", "sum(total(act))"),
        ("sum(abs(act))", "sum(abs(act))"),
    ],
)
def test_simplified_drops_identity_and_meansum(text, simple):
    assert simplified(parse(text)) == parse(simple)


@given(proxies(), st.sampled_from(["depth", "2"]))
def test_the_published_form_is_taken_apart_and_put_together(proxy, other):
    form = as_published(proxy)
    operands = tuple(branch.expression() for branch in form.branches)
    body = Expression(form.sign, operands) if form.sign else operands[0]
    assert Expression(form.aggregation, (body,)) == proxy
    assert as_published(Expression("*", (proxy, Expression(other)))) is None


def test_what_is_of_the_published_form():
    assert as_published(parse("sum(abslog(head) - sqrt(square(weight)))")) == Published(
        "sum", "-", (HEAD, WEIGHT)
    )
    assert as_published(parse("max(average(abslog(head)))")) == Published("max", "", (HEAD,))
    for text in (
        "sum(average(act))",
        "sum(abs(act_grad))",
        "sum(total(abs(act)))",
        "sum(abs(act) / abs(head))",
        "sum(average(abs(mul(weight, grad))))",
        "sum(abs(average(abs(act))))",
        "negate(sum(abs(act)))",
        "depth",
    ):
        assert as_published(parse(text)) is None


def test_an_expression_from_another_process_is_the_same_key():
    script = "import pickle, sys; from lmscout.proxies import parse; "
    script += "sys.stdout.buffer.write(pickle.dumps(parse('sum(average(act)) * depth')))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env=environment
    )
    assert pickle.loads(process.stdout) in {parse("sum(average(act)) * depth")}
