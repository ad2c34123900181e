"""Hypothesis strategies for expressions and their errors, shared by the tests of this package."""

import numpy as np
from hypothesis import strategies as st

from lmscout.errors import LmscoutError
from lmscout.proxies import Branch, Expression, Grammar
from lmscout.proxies.primitives import AGGREGATIONS, INPUTS, UNARY
from lmscout.proxies.spaces import random_score


def names(table):
    return st.sampled_from([entry.name for entry in table])


def branches(max_operations=5):
    chains = st.lists(names(UNARY), min_size=1, max_size=max_operations).map(tuple)
    return st.builds(Branch, names(INPUTS), chains).map(Branch.expression)


def joined(sign, left, right):
    return Expression(sign, (left, right))


def proxies(max_operations=5):
    """Of the published form."""
    operands = branches(max_operations)
    bodies = st.one_of(operands, st.builds(joined, st.sampled_from("+-*"), operands, operands))
    return st.builds(lambda name, body: Expression(name, (body,)), names(AGGREGATIONS), bodies)


def scores(grammar=Grammar()):  # noqa: B008
    """Of the deep space."""
    seeds = st.integers(0, 2**32 - 1)
    return seeds.map(lambda seed: random_score(grammar, np.random.default_rng(seed)))


def failure(function, value):
    """The line of the LmscoutError that the call raises, or None; anything else escapes."""
    try:
        function(value)
    except LmscoutError as error:
        return str(error)
    return None
