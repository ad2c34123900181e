"""Every tree of a grammar: each once, none missing."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmscout.proxies.deep import SCORE
from lmscout.proxies.deep.growing import Grammar, canonical, grow
from lmscout.proxies.deep.listing import every_score, trees

SMALL = Grammar(spec_leaves=("depth",), stacks=("act", "softmax"), aggregates=("sum",), largest=5)
LISTED = list(every_score(SMALL))


def test_each_is_there_once_shortest_first_and_of_the_grammar():
    assert max(Counter(map(canonical, LISTED)).values()) == 1
    sizes = [one.size for one in LISTED]
    assert sizes == sorted(sizes)
    assert sizes[-1] == SMALL.largest
    assert all(SMALL.holds(one) for one in LISTED)


@given(st.integers(0, 10**6))
def test_whatever_grows_is_listed(seed):
    node = grow(SMALL, SCORE, 5, np.random.default_rng(seed))
    assert canonical(node) in KNOWN


KNOWN = set(map(canonical, LISTED))


def test_counts_follow_from_the_words():
    leaves, unary = len(list(trees(SMALL, "act", 1))), len(list(trees(SMALL, "softmax", 2)))
    assert leaves == 2  # the activation and its gradient
    assert unary == 18  # of one input, by all operations but two
    assert len(list(trees(SMALL, SCORE, 3))) == 2 * 3 + 10 * 10 + 4
