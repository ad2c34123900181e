"""The proxy language: its operations, expressions and forms, and the proxies of the literature.

`parse` reads a text such as `sum(abslog(head) - sqrt(weight))` into a typed expression, and
`format_proxy`, `to_json`, `from_json` and `to_latex` give its other forms; `evaluate` scores
architectures from collected statistics; `published` and `two_op` number whole spaces of
proxies; `resolve` finds a proxy of the literature by name.
"""

from lmscout.proxies.catalog import CATALOG, CATALOG_ENTRY, Entry, has_seen, resolve
from lmscout.proxies.expression import Binary, Branch, Proxy, branches, complexity, evaluate
from lmscout.proxies.json_form import from_json, to_json
from lmscout.proxies.latex import to_latex
from lmscout.proxies.operators import (
    AGGREGATION,
    AGGREGATIONS,
    BINARY,
    BINARY_OPERATION,
    INPUT,
    INPUTS,
    UNARY,
    UNARY_OPERATION,
    Aggregation,
    BinaryOperation,
    Input,
    UnaryOperation,
    reduce,
)
from lmscout.proxies.reading import Model, Reading
from lmscout.proxies.spaces import SPACES, Space, published, space, two_op
from lmscout.proxies.text import format_proxy, parse

__all__ = [
    "AGGREGATION",
    "AGGREGATIONS",
    "BINARY",
    "BINARY_OPERATION",
    "CATALOG",
    "CATALOG_ENTRY",
    "INPUT",
    "INPUTS",
    "SPACES",
    "UNARY",
    "UNARY_OPERATION",
    "Aggregation",
    "Binary",
    "BinaryOperation",
    "Branch",
    "Entry",
    "Input",
    "Model",
    "Proxy",
    "Reading",
    "Space",
    "UnaryOperation",
    "branches",
    "complexity",
    "evaluate",
    "format_proxy",
    "from_json",
    "has_seen",
    "parse",
    "published",
    "reduce",
    "resolve",
    "space",
    "to_json",
    "to_latex",
    "two_op",
]
