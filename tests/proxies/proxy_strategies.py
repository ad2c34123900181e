"""Hypothesis strategies for proxies and their errors, shared by the tests of this room."""

from hypothesis import strategies as st

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import Binary, Branch, Proxy
from lmscout.proxies.operators import AGGREGATIONS, BINARY, INPUTS, UNARY


def names(table):
    return st.sampled_from([entry.name for entry in table])


def branches(max_operations=5):
    chains = st.lists(names(UNARY), min_size=1, max_size=max_operations).map(tuple)
    return st.builds(Branch, names(INPUTS), chains)


def proxies(max_operations=5):
    operands = branches(max_operations)
    bodies = st.one_of(operands, st.builds(Binary, names(BINARY), operands, operands))
    return st.builds(Proxy, names(AGGREGATIONS), bodies)


def failure(function, value):
    """The line of the LmscoutError that the call raises, or None; anything else escapes."""
    try:
        function(value)
    except LmscoutError as error:
        return str(error)
    return None
