import math
import re
from dataclasses import replace

import pytest
import torch
from tiny_transformer import TinyTransformer, batch, read

from lmscout.architectures import FlexibertBlock, FlexibertSpec
from lmscout.errors import LmscoutError
from lmscout.proxies.catalog import CATALOG, CATALOG_ENTRY, Entry, resolve
from lmscout.proxies.champions import CHAMPIONS
from lmscout.proxies.deep import SPEC_LEAVES, format_node
from lmscout.proxies.deep import parse as parse_deep
from lmscout.proxies.deep.members import MEMBERS, as_tree
from lmscout.proxies.expression import evaluate
from lmscout.proxies.handmade import snip
from lmscout.proxies.operators import reduce
from lmscout.proxies.text import format_proxy, parse
from lmscout.statistics import Batch, full_reading
from lmscout.statistics.deep_values import full_score
from lmscout.statistics.scoring import score

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
    assert format_proxy(CATALOG_ENTRY["lpzero-flexibert"].proxy) == (
        "mean(square(negate(head)) + logsoftmax(frobenius(act)))"
    )
    assert format_proxy(CATALOG_ENTRY["lpzero-gpt2"].proxy) == (
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
    branch = CATALOG_ENTRY["lpzero-flexibert"].proxy.body.right
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
        elif entry.tree:
            score = full_score(entry.tree, reading, {"depth": 2, "width": 8, "params": 1000})
        else:
            score = float(evaluate(entry.proxy, lookup, [2])[0])
        assert isinstance(score, float)
        assert math.isfinite(score)
        assert score != 0


def test_an_entry_has_one_form_and_not_two():
    forms = {
        "proxy": parse("sum(abs(act))"),
        "function": snip,
        "tree": parse_deep("sum(total(act))"),
    }
    for name, form in forms.items():
        Entry("name", "paper", "definition", **{name: form})
    for without in forms:
        given = {name: form for name, form in forms.items() if name != without}
        with pytest.raises(LmscoutError, match="give an expression, a function or a deep"):
            Entry("name", "paper", "definition", **given)
    with pytest.raises(LmscoutError, match="give an expression, a function or a deep"):
        Entry("name", "paper", "definition")


def test_a_champion_is_scored_as_its_tree():
    tree = parse_deep("sum(total(abs(mul(weight, grad)))) / params")
    champion = Entry("champion", "here", "found", tree=tree)
    spec = FlexibertSpec(
        width=8,
        blocks=(FlexibertBlock(mixer="SDP", heads=2, feed_forward=16, stack=1),),
        embedding_width=8,
        vocabulary=40,
        max_length=16,
    )
    model_reading = full_reading(spec.build(0), Batch(2, 8).tokens(spec), spec.parameters())
    assert score(champion, model_reading, spec) == score(tree, model_reading, spec) != 0
    assert as_tree(champion) is tree
    assert tree not in MEMBERS.values()


@pytest.mark.parametrize("champion", CHAMPIONS, ids=lambda one: one.name)
def test_a_shipped_champion_is_a_tree_and_says_how_it_was_found(champion):
    entry = CATALOG_ENTRY[champion.name]
    assert format_node(entry.tree) == champion.text
    assert entry.source == f"{champion.command} (lmscout at {champion.revision})"
    assert re.fullmatch("[0-9a-f]{7,40}", champion.revision)
    (benchmarks,) = re.findall(r"^lmscout discover (\S+) --space deep ", champion.command)
    assert tuple(benchmarks.split(",")) == entry.found_on
    reads_configuration = bool(entry.tree.leaves & set(SPEC_LEAVES))
    assert reads_configuration == ("--no-spec-leaves" not in champion.command)


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
    assert resolve(text) == parse_deep(text)
    assert resolve(format_node(resolve(text))) == resolve(text)


def test_an_expression_of_the_configuration_that_goes_wrong_is_told_by_its_column():
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
