"""The rules that discard expressions by their form alone."""

import pytest

from lmscout.proxies import parse
from lmscout.proxies.rules import RULES, first_broken, never_negative, never_positive

# For every rule a tree that it finds, and what that says in fewer words, or "" where constant.
BROKEN = [
    ("cancels", "sum(average(sub(act, act)))", ""),
    ("cancels", "sum(average(act) / average(act))", ""),
    ("flat", "sum(average(softmax(act)))", ""),
    ("flat", "mean(average(softmax))", ""),
    ("flat", "sum(average(normalize(head)))", ""),
    ("flat", "sum(average(std(l1(head))))", ""),
    ("nothing left", "sum(average(log(logsoftmax(act))))", ""),
    ("nothing left", "sum(average(relu(negate(square(act)))))", ""),
    ("inverse pair", "sum(average(log(exp(act))))", "sum(average(act))"),
    ("inverse pair", "sum(average(sqrt(square(act))))", "sum(average(abs(act)))"),
    ("inverse pair", "sum(average(negate(negate(act))))", "sum(average(act))"),
    ("repeat", "sum(average(relu(relu(act))))", "sum(average(relu(act)))"),
    ("repeat", "sum(average(abs(frobenius(act))))", "sum(average(frobenius(act)))"),
    ("repeat", "sum(average(abs(mul(grad, grad))))", "sum(average(mul(grad, grad)))"),
    ("sign lost", "sum(average(l1(negate(act))))", "sum(average(l1(act)))"),
    ("said already", "sum(average(mean(std(act))))", "sum(average(std(act)))"),
    ("said already", "sum(average(mean(act)))", "sum(average(act))"),
    ("twice", "sum(average(add(act, act)))", "sum(average(act))"),
    ("twice", "sum(average(mul(act, act)))", "sum(average(square(act)))"),
    ("order kept", "exp(sum(average(act)))", "sum(average(act))"),
    ("order kept", "sqrt(sum(average(abs(act))))", "sum(average(abs(act)))"),
    ("reads nothing", "params / width", ""),
]
SOUND = [
    "sum(total(abs(mul(weight, grad))))",
    "sum(total(frobenius(grad)))",
    "mean(average(abslog(head)) - average(sqrt(weight)))",
    "sum(total(square(softmax)))",
    "sum(average(log(act)))",
    "sqrt(sum(average(act))) - depth",
]


@pytest.mark.parametrize(("rule", "text", "_"), BROKEN)
def test_a_rule_finds_what_it_is_for(rule, text, _):
    found = first_broken(parse(text))
    assert found is not None
    assert found.name == rule


def test_every_rule_has_an_example_and_a_reason():
    assert {rule for rule, *_ in BROKEN} == {rule.name for rule in RULES}
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.reason for rule in RULES)


@pytest.mark.parametrize("text", SOUND)
def test_no_rule_discards_what_says_something(text):
    assert first_broken(parse(text)) is None


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("sum(average(square(act)))", 1),
        ("sum(average(mul(act, act)))", 1),
        ("sum(average(softmax)) + depth", 1),
        ("sum(average(logsoftmax(act)))", -1),
        ("sum(average(negate(std(act))))", -1),
        ("sum(average(act))", 0),
        ("depth - width", 0),
    ],
)
def test_signs_that_are_known(text, sign):
    node = parse(text)
    assert (never_negative(node), never_positive(node)) == (sign > 0, sign < 0)
