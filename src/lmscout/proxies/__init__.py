"""The proxy language: one typed expression, its notations and spaces, and the literature.

`parse` reads a text such as `sum(abslog(head) - sqrt(weight))`, and `format_expression`, `to_json`,
`from_json`, `to_latex` and `to_torch` give its other forms; `published` and `two_op` number whole
spaces of proxies, which `evaluate` scores from collected statistics; `resolve` finds a measure of
the literature by name.
"""

from lmscout.proxies.expression import (
    LARGEST,
    Branch,
    Expression,
    Published,
    as_published,
    canonical,
    replaced,
    simplified,
    walk,
)
from lmscout.proxies.formats import from_json, to_json, to_latex, to_torch
from lmscout.proxies.literature import (
    CATALOG,
    CATALOG_ENTRY,
    LITERATURE,
    Entry,
    as_expression,
    has_seen,
    resolve,
)
from lmscout.proxies.measures import Model, Reading
from lmscout.proxies.parser import format_expression, parse
from lmscout.proxies.spaces import SPACES, Grammar, Space, evaluate, published, space, two_op

__all__ = [
    "CATALOG",
    "CATALOG_ENTRY",
    "LARGEST",
    "LITERATURE",
    "SPACES",
    "Branch",
    "Entry",
    "Expression",
    "Grammar",
    "Model",
    "Published",
    "Reading",
    "Space",
    "as_expression",
    "as_published",
    "canonical",
    "evaluate",
    "format_expression",
    "from_json",
    "has_seen",
    "parse",
    "published",
    "replaced",
    "resolve",
    "simplified",
    "space",
    "to_json",
    "to_latex",
    "to_torch",
    "two_op",
    "walk",
]
