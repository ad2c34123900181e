"""The deep space: typed trees that join tensors before anything is reduced.

`Node` is a tree, `parse` and `format_node` its text, `WORDS` what it is made of.
"""

from lmscout.proxies.deep.nodes import Node, walk
from lmscout.proxies.deep.text import format_node, parse
from lmscout.proxies.deep.words import BLOCK, SCORE, SPEC_LEAVES, STACKS, WORDS, Word

__all__ = [
    "BLOCK",
    "SCORE",
    "SPEC_LEAVES",
    "STACKS",
    "WORDS",
    "Node",
    "Word",
    "format_node",
    "parse",
    "walk",
]
