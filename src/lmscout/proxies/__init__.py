"""The proxy language: one typed expression, its notations and spaces, and the catalog."""

from lmscout.proxies.expression import (
    LARGEST,
    Branch,
    Expression,
    Published,
    as_published,
    canonical,
    format_expression,
    parse,
    replaced,
    simplified,
    walk,
)
from lmscout.proxies.formats import to_latex, to_torch
from lmscout.proxies.literature import (
    CATALOG,
    CATALOG_ENTRY,
    LITERATURE,
    Entry,
    as_expression,
    has_seen,
    resolve,
)
from lmscout.proxies.measures import Reading
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
    "Published",
    "Reading",
    "Space",
    "as_expression",
    "as_published",
    "canonical",
    "evaluate",
    "format_expression",
    "has_seen",
    "parse",
    "published",
    "replaced",
    "resolve",
    "simplified",
    "space",
    "to_latex",
    "to_torch",
    "two_op",
    "walk",
]
