import math
import re
from dataclasses import replace

import pytest
import torch
from tiny_transformer import TinyTransformer, batch, read

from lmscout.errors import LmscoutError
from lmscout.models import FlexibertBlock, FlexibertSpec
from lmscout.proxies import (
    CATALOG,
    CATALOG_ENTRY,
    LITERATURE,
    Entry,
    as_expression,
    as_published,
    evaluate,
    format_expression,
    parse,
    resolve,
)
from lmscout.proxies.primitives import SPEC_LEAVES, reduce
from lmscout.statistics import Batch, full_reading
from lmscout.statistics.deep_values import full_score, score

NAMES = [
    "parameters",
    "grad-norm",
    "snip",
    "grasp",
    "fisher",
    "synflow",
    "logsynflow",
    "jacobian-covariance",
    "synaptic-diversity",
    "synaptic-saliency",
    "activation-distance",
    "head-importance",
    "attention-confidence",
    "softmax-confidence",
    "lpzero-flexibert",
    "lpzero-gpt2",
    "champion-encoder",
    "champion-decoder",
    "champion",
]


def test_the_catalog_names_each_proxy_once_with_its_paper():
    assert [entry.name for entry in CATALOG] == NAMES == list(CATALOG_ENTRY)
    for entry in CATALOG:
        assert re.search(r"arXiv \d{4}\.\d{5}", entry.paper)
        assert entry.definition
        assert "\n" not in entry.definition


def test_the_champions_are_expressions():
    assert format_expression(CATALOG_ENTRY["lpzero-flexibert"].expression) == (
        "mean(square(negate(head)) + logsoftmax(frobenius(act)))"
    )
    assert format_expression(CATALOG_ENTRY["lpzero-gpt2"].expression) == (
        "mean(l1(square(weight)) + square(softmax(grad)))"
    )


def test_what_a_function_reads_is_what_changes_its_score():
    reading = read(TinyTransformer(), batch())
    random = torch.Generator().manual_seed(1)

    def others(blocks):
        return tuple(
            tuple(torch.rand(one.shape, generator=random) - 0.4 for one in block)
            for block in blocks
        )

    for entry in CATALOG:
        if entry.function is None or entry.name in ("grasp", "synflow", "logsynflow"):
            assert entry.reads == ()
            continue
        own = entry.function(reading)
        assert entry.function(replace(reading, model=None)) == own
        changed = {
            name: replace(reading, inputs={**reading.inputs, name: others(blocks)})
            for name, blocks in reading.inputs.items()
        }
        changed["act_grad"] = replace(reading, act_grad=others(reading.act_grad))
        assert set(entry.reads) == {
            name for name, one in changed.items() if entry.function(one) != own
        }, entry.name


def test_half_of_the_flexibert_champion_is_a_constant():
    branch = as_published(CATALOG_ENTRY["lpzero-flexibert"].expression).branches[1]
    for seed in range(3):
        tensor = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
        assert reduce(branch.chain, tensor) == 0.0


def test_every_entry_scores_a_real_model():
    reading = read(TinyTransformer(), batch())

    def lookup(name, chain):
        blocks = reading.inputs[name]
        return [[sum(reduce(chain, one) for one in block) / len(block) for block in blocks]]

    for entry in CATALOG:
        if entry.function:
            score = entry.function(reading)
        elif as_published(entry.expression):
            score = float(evaluate(entry.expression, lookup, [2])[0])
        else:
            values = {"depth": 2, "width": 8, "params": 1000}
            score = full_score(entry.expression, reading, values)
        assert isinstance(score, float)
        assert math.isfinite(score)
        assert score != 0


def test_an_entry_with_both_is_one_measure():
    both = [entry for entry in CATALOG if entry.expression and entry.function]
    assert [entry.name for entry in both] == [
        *("parameters", "grad-norm", "snip", "synaptic-saliency", "head-importance")
    ]
    spec = small_spec()
    reading = full_reading(spec.build(0), Batch(2, 8).tokens(spec), spec.parameters())
    for entry in both:
        assert score(entry, reading, spec) == entry.function(reading)
        assert score(entry.expression, reading, spec) == pytest.approx(entry.function(reading))


def small_spec():
    return FlexibertSpec(
        width=8,
        blocks=(FlexibertBlock(mixer="SDP", heads=2, feed_forward=16, stack=1),),
        embedding_width=8,
        vocabulary=40,
        max_length=16,
    )


def test_a_champion_is_scored_as_its_tree():
    tree = parse("sum(total(abs(mul(weight, grad)))) / params")
    champion = Entry("champion", "here", "found", expression=tree, found_on=("pico",))
    spec = small_spec()
    model_reading = full_reading(spec.build(0), Batch(2, 8).tokens(spec), spec.parameters())
    assert score(champion, model_reading, spec) == score(tree, model_reading, spec) != 0
    assert as_expression(champion) == tree
    assert tree not in LITERATURE.values()


@pytest.mark.parametrize("name", ["champion-encoder", "champion-decoder", "champion"])
def test_a_shipped_champion_is_a_tree_and_says_how_it_was_found(name):
    entry = CATALOG_ENTRY[name]
    assert parse(format_expression(entry.expression)) == entry.expression
    command = r"lmscout discover (\S+) --space deep .*\(lmscout at [0-9a-f]{7,40}\)"
    (benchmarks,) = re.fullmatch(command, entry.source).groups()
    assert tuple(benchmarks.split(",")) == entry.found_on
    reads_configuration = bool(entry.expression.leaves & set(SPEC_LEAVES))
    assert reads_configuration == ("--no-spec-leaves" not in entry.source)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_resolves_to_its_entry(name):
    assert resolve(f" {name}\n") is CATALOG_ENTRY[name]


def test_an_expression_resolves_to_its_proxy():
    assert resolve("sum( abs(weight) )") == parse("sum(abs(weight))")
    with pytest.raises(LmscoutError, match="column 5: found 'ab', expected an operation"):
        resolve("sum(ab(weight))")


@pytest.mark.parametrize(
    "text",
    [
        *("params", " depth ", "params / depth", "width*(depth + params)"),
        *("2 * depth", "0.5 * sum(average(act))", "(sum(average(act)) - 3) * 0.25"),
    ],
)
def test_what_begins_with_the_configuration_or_holds_a_number_is_an_expression(text):
    assert resolve(text) == parse(text)
    assert resolve(format_expression(resolve(text))) == resolve(text)


def test_an_error_in_an_expression_of_the_configuration_names_its_column():
    with pytest.raises(LmscoutError, match="column 10: found the end"):
        resolve("params / ")
    with pytest.raises(LmscoutError, match="unknown proxy 'depths'"):
        resolve("depths")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("grad_norm", "unknown proxy 'grad_norm' (did you mean 'grad-norm'?): give an expression"),
        ("LPZero-GPT2", "unknown proxy 'LPZero-GPT2' (did you mean 'lpzero-gpt2'?): give"),
        ("", "unknown proxy '': give an expression such as sum(abs(weight)), or one of param"),
        ("zzzzzz", "unknown proxy 'zzzzzz': give an expression such as sum(abs(weight)), or one"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_names(name, start):
    with pytest.raises(LmscoutError) as caught:
        resolve(name)
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(", ".join(NAMES))
