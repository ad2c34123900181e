"""Random expressions, and the genetic operators on them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxy_strategies import scores

from lmscout.proxies import Grammar, format_expression, parse, walk
from lmscout.proxies.primitives import BLOCK, SCORE, SEARCHED, STACKS, SYNONYMS
from lmscout.proxies.spaces import (
    crossover,
    hoist_mutation,
    join,
    point_mutation,
    random_expression,
    random_score,
    subtree_mutation,
)

ANY = Grammar()
BARE = Grammar(spec_leaves=(), stacks=("linear", "act"), aggregates=("sum",), largest=12)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([*STACKS, BLOCK, SCORE]), st.integers(3, 20))
def test_a_random_expression_is_of_its_type_and_size(seed, kind, size):
    expression = random_expression(ANY, kind, size, np.random.default_rng(seed))
    assert expression.type == kind
    assert expression.size <= size
    assert expression == random_expression(ANY, kind, size, np.random.default_rng(seed))


@settings(deadline=None)
@pytest.mark.parametrize("grammar", [ANY, BARE], ids=["any", "bare"])
@given(data=st.data())
def test_children_are_of_the_grammar(grammar, data):
    parent, other = data.draw(scores(grammar)), data.draw(scores(grammar))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    assert grammar.holds(parent)
    for mutation in (point_mutation, subtree_mutation, hoist_mutation):
        assert grammar.holds(mutation(parent, grammar, rng))
    assert grammar.holds(crossover(parent, other, grammar, rng))
    joined = join(parent, other, grammar, rng)
    assert grammar.holds(joined)
    assert joined == parent or parent in joined.operands  # as it is, or with a part of the other
    assert joined == parent or {*joined.operands} & {one for _, one in walk(other)}
    assert hoist_mutation(parent, grammar, rng).size <= parent.size
    assert point_mutation(parent, grammar, rng).size == parent.size


def test_every_word_is_drawn_in_the_end():
    rng = np.random.default_rng(0)
    seen = {one.word for _ in range(4000) for _, one in walk(random_score(ANY, rng))}
    # functions of a whole score come with mutation alone: at the root they keep the order
    missing = {word for word in SEARCHED if word not in seen}
    assert missing <= {word for word in SEARCHED if word.takes == (SCORE,)}
    assert not {word.name for word in seen} & set(SYNONYMS)
    changed = {point_mutation(parse("abs(sum(total(act)))"), ANY, rng).name for _ in range(300)}
    assert {"log", "sqrt", "exp"} <= changed


def test_a_seed_gives_what_it_gave():
    """Recorded: a change of these changes every search, and every found formula."""
    rng = np.random.default_rng(3)
    small = Grammar(largest=9)
    drawn = [random_score(small, rng) for _ in range(4)]
    first, second, *_ = drawn
    children = [
        point_mutation(first, small, rng),
        subtree_mutation(first, small, rng),
        hoist_mutation(first, small, rng),
        crossover(first, second, small, rng),
        join(parse("depth"), second, small, rng),
    ]
    assert [format_expression(one) for one in (*drawn, *children)] == [
        "sum(total(head)) - max(average(invert(mlp_grad)))",
        "max(frobenius(head))",
        "max(sigmoid(total(mul(log(add(mixer_weight, mixer_weight)), mixer_grad))))",
        "mean(total(logsoftmax(exp(mixer_weight))))",
        "mean(total(head)) - max(average(invert(mlp_grad)))",
        "sum(total(head)) - max(average(sigmoid(exp(mlp_grad))))",
        "sum(total(head)) - max(average(mlp_grad))",
        "sum(average(frobenius(head))) - max(average(invert(mlp_grad)))",
        "depth - max(average(frobenius(head)))",
    ]
