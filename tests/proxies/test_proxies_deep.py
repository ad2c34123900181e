"""The deep language: trees, their text, how they grow, and the rules that discard them."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxy_strategies import failure

from lmscout.errors import LmscoutError
from lmscout.proxies.deep import WORDS, Node, format_node, parse, walk
from lmscout.proxies.deep.growing import (
    Grammar,
    canonical,
    cross,
    grow,
    hoist,
    join,
    mutate_point,
    mutate_subtree,
    seedling,
)
from lmscout.proxies.deep.nodes import LARGEST, replaced
from lmscout.proxies.deep.rules import RULES, first_broken, never_negative, never_positive
from lmscout.proxies.deep.words import BLOCK, SCORE, STACKS, as_number, number_text

ANY = Grammar()
BARE = Grammar(spec_leaves=(), stacks=("linear", "act"), aggregates=("sum",), largest=12)


@st.composite
def trees(draw, grammar=ANY):
    return seedling(grammar, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))


@given(trees())
def test_text_and_tree_are_the_same_thing(node):
    assert parse(format_node(node)) == node
    assert parse(re.sub(r"([()*/+,-])", r"  \1 ", format_node(node))) == node


@given(st.floats(0, 1e20))
def test_a_number_is_its_digits(value):
    node = Node(number_text(value))
    assert as_number(node.name) == value
    assert parse(format_node(node)) == node
    assert (node.type, node.size, node.leaves) == (SCORE, 1, frozenset())


def test_numbers_that_are_equal_are_one():
    assert parse("2 * depth") == parse("2.00 * depth") == Node("*", (Node("02"), Node("depth")))
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="finite number"):
            number_text(wrong)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("depth - width - params", "(depth - width) - params"),
        ("depth + width * params", "depth + (width * params)"),
        ("depth / width * params", "(depth / width) * params"),
        ("sum((total(act)))", "sum(total(act))"),
    ],
)
def test_signs_bind_as_in_arithmetic(text, same):
    assert parse(text) == parse(same)


def test_brackets_stay_where_they_are_needed():
    for text in (
        "depth - (width - params)",
        "depth / (width * params)",
        "(depth + width) * params",
    ):
        assert format_node(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "column 1: found the end, expected a word or '('"),
        ("sum(average(act)", "column 17: found the end, expected ')' or a sign"),
        ("sum(average(act)))", "column 18: found ')', expected the end or a sign"),
        ("sum(act)", "column 1: sum takes (block), not (act)"),
        ("sum(average(mul(weight, act)))", "takes (tensor, tensor), not (linear, act); tensors"),
        ("sum(avrage(act))", "column 5: unknown word 'avrage'; did you mean 'average'?"),
        ("depth * !", "column 9: found '!', expected a word, a number or one of ( ) + - * / ,"),
        ("depth * 2(width)", "column 9: 2 is a number and takes nothing, not (score)"),
        ("2 3", "column 3: found '3', expected the end or a sign"),
        ("depth * 2.", "column 10: found '.'"),
        ("depth * 1e3", "column 10: found 'e3', expected the end or a sign"),
        ("sum(2)", "column 1: sum takes (block), not (score)"),
        ("sum(average(mul(act)))", "column 13: mul takes (tensor, tensor), not (act)"),
        ("depth @ width", "column 7: found '@'"),
        ("(" * 300 + "depth", "no more than 256 words within each other"),
        ("abs(" * 300 + "depth", "no more than 256 words within each other"),
        ("+".join(["depth"] * 300), "too large: at most 256"),
    ],
)
def test_what_is_no_proxy_is_told_by_its_column(text, said):
    told = failure(parse, text)
    assert said in told
    assert "\n" not in told


def test_a_tree_knows_its_type_size_and_leaves():
    node = parse("sum(total(abs(mul(weight, grad)))) / params")
    assert (node.type, node.size, node.leaves) == (SCORE, 8, {"weight", "grad", "params"})
    kinds = {format_node(one): one.type for _, one in walk(node)}
    assert kinds["abs(mul(weight, grad))"] == "linear"
    assert kinds["total(abs(mul(weight, grad)))"] == BLOCK


def test_a_subtree_is_replaced_at_its_path_alone():
    node = parse("sum(average(act)) + sum(average(act))")
    for path, old in walk(node):
        if old == Node("act"):
            assert format_node(replaced(node, path, Node("act_grad"))).count("act_grad") == 1
    with pytest.raises(LmscoutError, match="average takes"):
        replaced(node, (0, 0, 0), Node("depth"))
    assert LARGEST == 256


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([*STACKS, BLOCK, SCORE]), st.integers(3, 20))
def test_what_grows_is_of_its_type_and_size(seed, kind, size):
    node = grow(ANY, kind, size, np.random.default_rng(seed))
    assert node.type == kind
    assert node.size <= size
    assert node == grow(ANY, kind, size, np.random.default_rng(seed))


@settings(deadline=None)
@pytest.mark.parametrize("grammar", [ANY, BARE], ids=["any", "bare"])
@given(data=st.data())
def test_changes_stay_in_the_grammar(grammar, data):
    node, other = data.draw(trees(grammar)), data.draw(trees(grammar))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    assert grammar.holds(node)
    for change in (mutate_point, mutate_subtree, hoist):
        assert grammar.holds(change(node, grammar, rng))
    assert grammar.holds(cross(node, other, grammar, rng))
    joined = join(node, other, grammar, rng)
    assert grammar.holds(joined)
    assert joined == node or node in joined.operands  # as it is, or with a part of the other
    assert joined == node or {*joined.operands} & {one for _, one in walk(other)}
    assert hoist(node, grammar, rng).size <= node.size
    point = mutate_point(node, grammar, rng)
    assert point.size == node.size


def test_every_word_grows_in_the_end():
    rng = np.random.default_rng(0)
    seen = {one.word for _ in range(4000) for _, one in walk(seedling(ANY, rng))}
    # functions of a whole score come with mutation alone: at the root they keep the order
    missing = {word for word in WORDS if word not in seen}
    assert missing <= {word for word in WORDS if word.takes == (SCORE,)}
    node = parse("sum(average(act)) - depth")
    changed = {mutate_point(parse("abs(sum(total(act)))"), ANY, rng).name for _ in range(300)}
    assert {"log", "sqrt", "exp"} <= changed
    assert node.type == SCORE


@given(trees())
def test_one_order_for_what_commutes(node):
    one = canonical(node)
    assert canonical(one) == one
    assert one.size == node.size

    def swapped(node):
        operands = tuple(swapped(one) for one in node.operands)
        commutes = node.name in ("add", "mul", "+", "*")
        return Node(node.name, operands[::-1] if commutes else operands)

    assert canonical(swapped(node)) == one


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


def test_a_tree_from_another_process_is_the_same_key():
    script = "import pickle, sys; from lmscout.proxies.deep import parse; "
    script += "sys.stdout.buffer.write(pickle.dumps(parse('sum(average(act)) * depth')))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env=environment
    )
    assert pickle.loads(told.stdout) in {parse("sum(average(act)) * depth")}
