r"""Deep proxies in LaTeX.

The symbols are those of the published form: l counts the L blocks of an architecture, angle
brackets are the mean over the elements of a tensor and over a block's tensors (`average`), and
the sum over i is that over all elements of a block's tensors (`total`).  Tensors are multiplied
and divided element by element, by the circled signs.  d is the width, P the number of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lmscout.proxies.deep.nodes import Node
from lmscout.proxies.latex import fill
from lmscout.proxies.operators import AGGREGATION, INPUTS, UNARY_OPERATION

_LEAF: Mapping[str, str] = MappingProxyType(
    {
        **{one.name: one.latex for one in INPUTS},
        "mixer_weight": r"W^{\mathrm{mixer}}_{\ell}",
        "mixer_grad": r"G^{\mathrm{mixer}}_{\ell}",
        "mlp_weight": r"W^{\mathrm{MLP}}_{\ell}",
        "mlp_grad": r"G^{\mathrm{MLP}}_{\ell}",
        "act_grad": r"\nabla A_{\ell}",
        "depth": "L",
        "width": "d",
        "params": "P",
    }
)
_REDUCTION: Mapping[str, str] = MappingProxyType(
    {
        "average": r"\left\langle #1 \right\rangle",
        "total": r"\sum_{i}\left(#1\right)_{i}",
    }
)
# How a sign is written, and how it binds; a fraction needs no brackets, in it or around it.
_JOINED: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "add": ("#1 + #2", 1),
        "sub": ("#1 - #2", 1),
        "mul": (r"#1 \odot #2", 2),
        "div": (r"#1 \oslash #2", 2),
        "+": ("#1 + #2", 1),
        "-": ("#1 - #2", 1),
        "*": (r"#1 \cdot #2", 2),
        "/": (r"\frac{#1}{#2}", 0),
    }
)


def to_latex(node: Node) -> str:
    """A tree as a LaTeX formula, without delimiters."""
    if not node.operands:
        return _LEAF.get(node.name, node.name)  # a number is written as it stands
    if node.name in _JOINED:
        template, binding = _JOINED[node.name]
        left, right = node.operands
        return fill(template, _bracketed(left, binding), _bracketed(right, binding + bool(binding)))
    (formula,) = map(to_latex, node.operands)
    return fill(_template(node), formula)


def _template(node: Node) -> str:
    """LaTeX of a word of one operand."""
    if node.name in _REDUCTION:
        return _REDUCTION[node.name]
    if node.word.aggregates:
        return AGGREGATION[node.name].latex
    return UNARY_OPERATION[node.name].latex


def _bracketed(node: Node, binding: int) -> str:
    """An operand of a sign, in brackets where it binds less, or begins with a minus."""
    formula = to_latex(node)
    own = _JOINED[node.name][1] if node.name in _JOINED else 0
    if 0 < own < binding or (binding and node.name == "negate"):
        return rf"\left({formula}\right)"
    return formula
