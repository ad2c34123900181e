import math
import threading
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_specs import EVERY_KIND, llama

from lmscout.errors import LmscoutError
from lmscout.proxies import Expression, format_expression, measures, parse, walk
from lmscout.proxies.primitives import (
    BLOCK,
    PRIMITIVES,
    REDUCTIONS,
    SCORE,
    SPEC_LEAVES,
    STACKS,
    TENSOR_UNARY,
)
from lmscout.proxies.rules import RULES
from lmscout.statistics import Batch, Workers, deep_values, full_reading
from lmscout.statistics.deep_values import DeepEvaluator, full_score
from lmscout.statistics.sketches import collect_sketches, spec_values

BATCH = Batch(size=3, length=6)
SPECS = list(EVERY_KIND.values())
WHOLE = (48, 240)  # no tensor here has more rows or columns


@cache
def reading_of(number):
    spec = SPECS[number]
    return full_reading(spec.build(0).double(), BATCH.tokens(spec), spec.parameters())


def by_definition(node):
    return np.array(
        [
            full_score(node, reading_of(number), spec_values(spec))
            for number, spec in enumerate(SPECS)
        ]
    )


def roughly_by_definition(node, seed):
    """The same where every word's result is off by some last bits."""
    random = torch.Generator().manual_seed(seed)
    tensor, reduced = deep_values.full_tensor, deep_values.reduced

    def rough_tensor(node, leaves):
        exact = tensor(node, leaves)
        return exact * (1 + 1e-15 * torch.randn(exact.shape, generator=random))

    def rough_reduced(name, tensors):
        return reduced(name, tensors) * (1 + 1e-15 * torch.randn((), generator=random).item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep_values, "full_tensor", rough_tensor)
        patch.setattr(deep_values, "reduced", rough_reduced)
        return by_definition(node)


@pytest.fixture(scope="module")
def collect(tmp_path_factory):
    return partial(
        collect_sketches,
        name="tiny",
        folder=tmp_path_factory.mktemp("sketches"),
        batch=BATCH,
        workers=Workers(1),
    )


@pytest.fixture(scope="module")
def whole(collect):
    sketches = collect(SPECS, size=WHOLE)
    for stack in sketches.stacks.values():
        assert (stack.rows <= WHOLE[0]).all()
        assert (stack.columns <= WHOLE[1]).all()
    return sketches


SAID_BY_THE_CATALOG = {
    "sum(total(abs(mul(weight, grad))))": measures.snip,
    "sum(total(frobenius(grad)))": measures.grad_norm,
    "sum(total(abs(mul(mlp_weight, mlp_grad))))": measures.synaptic_saliency,
    "sum(total(abs(mul(mixer_weight, mixer_grad))))": measures.head_importance,
}


@pytest.mark.parametrize("text", SAID_BY_THE_CATALOG)
def test_the_catalogs_functions_as_deep_proxies(text):
    # Of all families; some blocks lack attention, or the MLP.
    for number, spec in enumerate(SPECS):
        expected = SAID_BY_THE_CATALOG[text](reading_of(number))
        got = full_score(parse(text), reading_of(number), spec_values(spec))
        assert got == pytest.approx(expected, rel=1e-8)


def test_reductions_by_hand():
    reading, values = reading_of(list(EVERY_KIND).index("GPT-2 halves")), {"depth": 3}
    assert [len(block) for block in reading.inputs["head"]] == [3, 0, 3]
    heads = reading.inputs["head"]
    means = [np.mean([one.double().mean() for one in block]) if block else 0.0 for block in heads]
    sums = [sum(one.double().sum().item() for one in block) for block in heads]
    for text, expected in {
        "sum(average(head))": sum(means),
        "mean(average(head))": sum(means) / 3,
        "max(average(head))": max(means),
        "min(total(head))": min(sums),
        "sum(total(head)) / depth": sum(sums) / 3,
        "sum(square(total(head)) + average(head))": sum(np.square(sums)) + sum(means),
        "sum(total(mean(head)))": 3 * sum(means),  # one number a tensor: its sum is itself
        "sum(invert(average(head)))": sum(1 / (mean + 1e-9) for mean in means),
    }.items():
        assert full_score(parse(text), reading, values) == pytest.approx(expected, rel=1e-8), text


(FLAT,) = (rule for rule in RULES if rule.name == "flat")


# Trees of every word.  What overflows, or hangs on the last bits, is allowed and dealt with below.
def tensors(stack):
    leaves = st.sampled_from(STACKS[stack]).map(Expression)
    return st.recursive(leaves, partial(grown, "tensor"), max_leaves=4)


def grown(level, below):
    single = [word.name for word in PRIMITIVES if word.takes == (level,) and word.gives == level]
    joined = [word.name for word in PRIMITIVES if word.takes == (level, level)]
    return st.one_of(
        st.builds(lambda name, x: Expression(name, (x,)), st.sampled_from(single), below),
        st.builds(lambda name, x: Expression(name, (x,)), st.sampled_from(single), below),
        st.builds(lambda name, *xs: Expression(name, xs), st.sampled_from(joined), below, below),
    )


reduced = st.builds(
    lambda name, x: Expression(name, (x,)),
    st.sampled_from(["average", "total"]),
    st.one_of([tensors(stack) for stack in STACKS]),
)
blocks = st.one_of(reduced, st.recursive(reduced, partial(grown, BLOCK), max_leaves=2))
aggregated = st.builds(
    lambda name, x: Expression(name, (x,)), st.sampled_from(["sum", "mean", "max", "min"]), blocks
)
spec_leaf = st.sampled_from(SPEC_LEAVES).map(Expression)
scores = st.one_of(
    aggregated,
    st.recursive(st.one_of(aggregated, spec_leaf), partial(grown, SCORE), max_leaves=2),
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(node=scores)
def test_a_sketch_of_everything_gives_the_scores_of_the_definition(whole, node):
    # The mean of what is normalized is rounding noise, and whether it is above 0 is chance.
    assume(not any(FLAT.finds(one, False) for _, one in walk(node)))
    expected = by_definition(node)
    got = DeepEvaluator(whole).scores(node)
    # How much a score owes to the last bits says how well it is determined.
    changed = [roughly_by_definition(node, seed) for seed in (1, 2, 3, 4)]
    with np.errstate(invalid="ignore", over="ignore"):
        spread = np.max([np.abs(one - expected) for one in changed], axis=0)
        settled = np.isfinite(expected) & (spread <= 1e-6 * np.abs(expected))
        settled |= (expected == 0) & (spread == 0)
        assume(settled.any() or not np.isfinite(expected).any())
        error = np.abs(got - expected)
    tolerance = 20 * spread + 1e-8 * np.abs(expected) + 1e-12
    assert (error[settled] <= tolerance[settled]).all(), (format_expression(node), got, expected)
    lost = ~np.isfinite(expected) & ~np.isfinite(np.array(changed)).any(axis=0)
    assert not np.isfinite(got[lost]).any(), (format_expression(node), got, expected)


@pytest.mark.parametrize("inner", ["negate(jacob)", "add(jacob, jacob)", "mul(jacob, std(jacob))"])
@pytest.mark.parametrize("text", ["average({})", "total({})", "average(square(mean({})))"])
def test_terms_that_cancel_sum_to_zero_on_a_sketch_too(whole, text, inner):
    """The gradient that enters a block of GPT-2 sums to 0, up to rounding."""
    node = parse(f"sum(abslog({text.format(inner)}))")
    expected = by_definition(node)
    assert (expected == 0).any()
    np.testing.assert_allclose(DeepEvaluator(whole).scores(node), expected, rtol=1e-8)


WORD_BY_WORD = [
    f"sum({reduction}({name}({leaf})))"
    for leaf in ("weight", "abs(head)", "sub(jacob, std(jacob))", "mean(square(mlp_grad))")
    for name in sorted(TENSOR_UNARY)
    for reduction in ("average", "total")
    # the mean of these is rounding noise, or lost in it
    if not (name == "normalize" or (name in ("mean", "negate") and leaf == "weight"))
]


@pytest.mark.parametrize("text", WORD_BY_WORD)
def test_every_word_gives_the_scores_of_the_definition(whole, text):
    node = parse(text)
    got = DeepEvaluator(whole).scores(node)
    np.testing.assert_allclose(got, by_definition(node), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "text",
    ["3", "0.5 * sum(average(act)) - 2 / (log(depth) + 0.125)", "exp(1000) * sum(average(act))"],
)
def test_numbers_are_what_they_say_for_every_architecture(whole, text):
    node = parse(text)
    got = DeepEvaluator(whole).scores(node)
    assert got.shape == whole.depth.shape
    np.testing.assert_allclose(got, by_definition(node), rtol=1e-8)
    if text == "3":
        np.testing.assert_array_equal(got, 3.0)


@pytest.mark.parametrize(
    "text",
    [
        "sum(average({}(square(exp(exp(exp(exp(exp(abs(head))))))))))",
        "sum(average({}(negate(square(exp(exp(exp(exp(exp(abs(head)))))))))))",
        "sum(average({}(frobenius(exp(exp(exp(exp(exp(abs(head)))))))))) ",
        "sum(average(div(head, {}(exp(exp(exp(exp(exp(abs(head))))))))))",
        "sum(average({}(square(square(square(square(square(square(square(invert(grad)))))))))))",
        "sum({}(average(exp(exp(exp(exp(exp(abs(head))))))))) ",
        "sum({}(exp(exp(exp(exp(total(abs(head))))))))",
    ],
)
@pytest.mark.parametrize("name", ["relu", "sigmoid", "log", "invert", "exp", "sqrt", "negate"])
def test_no_word_makes_a_number_of_what_overflowed(whole, text, name):
    node = parse(text.format(name))
    expected = by_definition(node)
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(np.isnan(DeepEvaluator(whole).scores(node)), np.isnan(expected))


@pytest.mark.parametrize("word", sorted({*TENSOR_UNARY, *REDUCTIONS}))
def test_a_broken_tensor_has_no_value_whatever_word_reads_it(word, collect, monkeypatch):
    spec = llama(heads=(2, 2), key_value_heads=(2, 2), inner=(8 + len(word), 24))
    model = spec.build(0)
    with torch.no_grad():
        model.probe_points()[1].linear[0].weight[0, 0] = -torch.inf
    monkeypatch.setattr(type(spec), "build", lambda *_: model)
    evaluator = DeepEvaluator(collect([spec], name=f"broken-{word}"))
    inner = f"{word}(weight)" if word in ("average", "total") else f"average({word}(weight))"
    assert math.isnan(evaluator.scores(parse(f"sum({inner})"))[0])
    if word not in ("average", "total"):
        twice = parse(f"sum(average(sigmoid(relu({word}(mul(weight, weight))))))")
        assert math.isnan(evaluator.scores(twice)[0])
    assert np.isfinite(evaluator.scores(parse("sum(average(mlp_weight))"))[0])


def test_one_infinite_block_spoils_the_score_and_no_other_architecture(whole):
    node = parse("min(exp(total(abs(weight)) * total(abs(weight))))")
    expected = by_definition(node)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(DeepEvaluator(whole).scores(node), expected, rtol=1e-8)


def test_bare_leaves_are_exact_on_any_sketch(collect):
    evaluator = DeepEvaluator(collect(SPECS, size=(2, 2)))
    for text in (
        "sum(total(frobenius(grad)))",
        "sum(average(l1(act)) * total(std(act_grad)))",
        "sum(total(softmax) + average(mean(head)))",
    ):
        expected = by_definition(parse(text))
        np.testing.assert_allclose(evaluator.scores(parse(text)), expected, rtol=1e-8)


def test_a_sum_that_cancels_is_zero_and_no_rounding_noise(whole):
    # A constant added to the hidden state passes by every LayerNorm, and by no RMSNorm.
    for text in ("sum(abs(total(jacob)))", "sum(average(abs(mean(jacob))))"):
        node, kinds = parse(text), list(EVERY_KIND)
        for scores in (by_definition(node), DeepEvaluator(whole).scores(node)):
            assert scores[kinds.index("GPT-2")] == scores[kinds.index("GPT-2 halves")] == 0
            assert scores[kinds.index("LLaMA")] > 0


def test_samples_estimate_what_the_whole_tensor_says(collect):
    evaluator = DeepEvaluator(collect(SPECS, size=(12, 12)))
    for text in (
        "sum(total(abs(mul(weight, grad))))",
        "sum(total(frobenius(abs(weight))))",
        "sum(total(softmax(abs(weight))))",
        "sum(average(logsoftmax(abs(weight))))",
        "sum(average(minmax(weight)))",
    ):
        expected = by_definition(parse(text))
        np.testing.assert_allclose(evaluator.scores(parse(text)), expected, rtol=0.3)


def test_a_subset_scores_as_it_does_among_all(whole):
    node = parse("sum(average(normalize(abs(weight))) - total(sigmoid(act))) * width")
    chosen = [5, 2, 10]
    got = DeepEvaluator(whole.subset(chosen)).scores(node)
    np.testing.assert_allclose(got, DeepEvaluator(whole).scores(node)[chosen], rtol=1e-6)


def test_what_is_kept_is_bounded_and_changes_no_score(whole):
    texts = [f"sum(average(sigmoid({name}(head))) * total(act))" for name in ("exp", "abs", "log")]
    nodes = [parse(text) for text in texts] * 2
    evaluators = {size: DeepEvaluator(whole, cache_bytes=size) for size in (0, 2000, 1 << 20)}
    for node in nodes:
        fresh = DeepEvaluator(whole).scores(node)
        for size, evaluator in evaluators.items():
            np.testing.assert_array_equal(evaluator.scores(node), fresh)
            assert sum(one.nbytes for one in evaluator._kept.values()) <= size
    assert len(evaluators[1 << 20]._kept) == 3 * 3 + 1


def test_scores_are_the_callers_own(whole):
    evaluator, node = DeepEvaluator(whole), parse("sum(average(head))")
    first = evaluator.scores(node)
    expected = first.copy()
    first += 1
    np.testing.assert_array_equal(evaluator.scores(node), expected)
    depth = evaluator.scores(parse("depth"))
    depth += 1
    assert whole.spec["depth"].tolist() == [spec.depth for spec in SPECS]


def test_leaves_are_never_written_to(whole):
    evaluator = DeepEvaluator(whole)
    before = {
        (stack, number, leaf): (one.clone(), piece.moments[leaf].clone())
        for stack, pieces in evaluator._lists.items()
        for number, piece in enumerate(pieces._pieces)
        for leaf, one in piece.samples.items()
    }
    names = sorted(TENSOR_UNARY)
    for name in names:
        for inner in ("weight", "std(weight)", "mean(frobenius(weight))"):
            evaluator.scores(parse(f"sum(average({name}({name}({inner}))))"))
    for name in ("add", "sub", "mul", "div"):
        evaluator.scores(parse(f"sum(average({name}(mean(weight), grad)))"))
        evaluator.scores(parse(f"sum(average({name}(weight, std(grad))))"))
    for (stack, number, leaf), (sample, moments) in before.items():
        piece = evaluator._lists[stack]._pieces[number]
        assert torch.equal(piece.samples[leaf], sample)
        assert torch.equal(piece.moments[leaf], moments)


def test_several_threads_may_ask_at_once(whole):
    names = ("exp", "abs", "log", "sqrt")
    nodes = [parse(f"sum(average({n}(head)) * average({m}(act)))") for n in names for m in names]
    expected = [DeepEvaluator(whole).scores(node) for node in nodes]
    evaluator = DeepEvaluator(whole, cache_bytes=3000)
    got = {}

    def ask(order):
        for index in order:
            got.setdefault(index, []).append(evaluator.scores(nodes[index]))

    orders = (range(16), range(15, -1, -1))
    threads = [threading.Thread(target=ask, args=(order,)) for order in orders]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for index, answers in got.items():
        assert len(answers) == 2
        for answer in answers:
            np.testing.assert_array_equal(answer, expected[index])


def test_what_gives_no_score_is_refused(whole):
    node = Expression("average", (Expression("head"),))
    with pytest.raises(LmscoutError, match="no score"):
        DeepEvaluator(whole).scores(node)
    with pytest.raises(LmscoutError, match="no score"):
        full_score(node, reading_of(0), {})
