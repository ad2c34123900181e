"""The proxy language: one typed expression, its notations and spaces, and the catalog."""

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
from lmscout.proxies.formats import to_latex, to_torch
from lmscout.proxies.grammar import Grammar
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
from lmscout.proxies.parser import format_expression, parse
from lmscout.proxies.spaces import SPACES, Space, evaluate, published, space, two_op

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
