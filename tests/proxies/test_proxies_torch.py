"""The torch form, executed, against the definition on full tensors."""

import ast
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscout.errors import LmscoutError
from lmscout.models import FlexibertBlock, FlexibertSpec, Gpt2Spec
from lmscout.proxies import LITERATURE, Expression, Grammar, format_expression, parse, to_torch
from lmscout.proxies.primitives import PRIMITIVES, SPEC_LEAVES, STACKS
from lmscout.proxies.spaces import random_score
from lmscout.statistics import Batch, full_reading
from lmscout.statistics.deep_values import full_score, settled
from lmscout.statistics.sketches import spec_values

SPECS = (
    Gpt2Spec(  # a block without attention, one without an MLP
        width=16,
        heads=(2, 0, 4),
        inner=(0, 24, 40),
        embedding_width=8,
        vocabulary=50,
        max_length=12,
    ),
    FlexibertSpec(
        width=16,
        blocks=(
            FlexibertBlock(mixer="WMA", heads=2, feed_forward=24, stack=2),
            FlexibertBlock(mixer="DFT", heads=2, feed_forward=24, stack=1),
        ),
        embedding_width=8,
        vocabulary=50,
        max_length=12,
    ),
)


@cache
def reading_of(spec):
    tokens = Batch(size=3, length=6).tokens(spec)
    return full_reading(spec.build(0), tokens, spec.parameters())


def tensors_of(reading):
    """Plain lists of what each leaf of the language stands for."""
    leaves = {name: [list(block) for block in blocks] for name, blocks in reading.inputs.items()}
    leaves["act_grad"] = [list(block) for block in reading.act_grad]
    for name in ("weight", "grad"):
        for stack, wanted in (("mixer", True), ("mlp", False)):
            leaves[f"{stack}_{name}"] = [
                [one for one, mixes in zip(block, mixing, strict=True) if mixes == wanted]
                for block, mixing in zip(leaves[name], reading.mixing, strict=True)
            ]
    assert set(leaves) == {leaf for stack in STACKS.values() for leaf in stack}
    return leaves


def executed(source):
    module = {}
    exec(compile(source, "pasted", "exec"), module)
    return module["proxy"]


def check(node):
    proxy = executed(to_torch(node))
    for spec in SPECS:
        reading, values = reading_of(spec), spec_values(spec)
        leaves = tensors_of(reading)
        given_tensors = {name: leaves[name] for name in node.leaves - set(SPEC_LEAVES)}
        given_values = {name: values[name] for name in node.leaves & set(SPEC_LEAVES)}
        score = proxy(given_tensors, given_values)  # it reads no more than its leaves
        assert isinstance(score, float)
        expected = full_score(node, reading, values)
        got = settled(np.array(score)).item()
        np.testing.assert_equal(got, expected, err_msg=format_expression(node))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_it_gives_the_scores_of_the_definition(seed):
    check(random_score(Grammar(largest=16), np.random.default_rng(seed)))


@pytest.mark.parametrize("name", sorted(w.name for w in PRIMITIVES if w.takes == ("tensor",)
                                        and w.gives == "tensor"))  # fmt: skip
def test_every_operation_of_tensors(name):
    check(parse(f"sum(average({name}(head)) - total({name}(sub(head, std(head)))))"))


@pytest.mark.parametrize("text", [format_expression(node) for node in LITERATURE.values()])
def test_proxies_of_the_literature(text):
    check(parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "sum(average(exp(exp(exp(exp(exp(abs(head))))))))",
        "sum(average(relu(negate(exp(exp(exp(exp(exp(abs(head)))))))))) + depth",
        "max(sigmoid(exp(exp(exp(exp(exp(total(abs(head)))))))))",
        "sigmoid(exp(exp(exp(exp(exp(sum(total(abs(head)))))))))",
        "depth / (width - width)",
    ],
)
def test_what_overflows_is_no_number(text):
    check(parse(text))


@pytest.mark.parametrize(
    "text", ["0.5 * sum(average(head)) - 12.25 / (depth + 3)", "abslog(max(total(head))) - 0", "2"]
)
def test_numbers(text):
    check(parse(text))


def test_it_needs_nothing_but_torch():
    rng = np.random.default_rng(0)
    for _ in range(50):
        tree = ast.parse(to_torch(random_score(Grammar(), rng)))
        roots = set()
        for one in ast.walk(tree):
            if isinstance(one, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in one.names}
            elif isinstance(one, ast.ImportFrom):
                roots.add(one.module.split(".")[0])
        assert roots <= {"math", "torch"}


def test_it_defines_what_it_uses_and_no_more():
    source = to_torch(parse("sum(total(abs(mul(weight, grad)))) / params"))
    defined = [one.name for one in ast.parse(source).body if isinstance(one, ast.FunctionDef)]
    assert defined == [
        *("finite_or_nan", "absolute", "invert", "without_noise", "mul", "div"),
        *("total", "sum_over_blocks", "block_1", "proxy"),
    ]
    assert "EPSILON = 1e-09" in source
    plain = to_torch(parse("params"))
    assert "finite_or_nan" not in plain
    assert "EPSILON" not in plain
    assert executed(plain)({}, {"params": 7}) == 7.0


def test_a_part_that_occurs_twice_is_written_once():
    source = to_torch(parse("sum(total(act)) / max(total(act))"))
    assert source.count("def block_") == 1


def test_lines_are_short_enough_to_read():
    rng = np.random.default_rng(1)
    for _ in range(50):
        lines = to_torch(random_score(Grammar(largest=16), rng)).splitlines()
        code = [line for number, line in enumerate(lines) if number != 2]  # 2 is the proxy's text
        assert max(map(len, code)) <= 120


def test_tensors_that_do_not_match_are_refused():
    proxy = executed(to_torch(parse("sum(total(mul(weight, grad)))")))
    one = torch.ones(2, 2)
    assert proxy({"weight": [[one]], "grad": [[one]]}, {}) == 4.0
    assert math.isnan(proxy({"weight": [[one]], "grad": [[one / 0]]}, {}))
    with pytest.raises(ValueError, match="zip"):
        proxy({"weight": [[one, one]], "grad": [[one]]}, {})
    with pytest.raises(ValueError, match="zip"):
        proxy({"weight": [[one]], "grad": [[one], [one]]}, {})


def test_what_gives_no_score_is_refused():
    with pytest.raises(LmscoutError, match="aggregate it over the blocks"):
        to_torch(Expression("total", (Expression("weight"),)))
