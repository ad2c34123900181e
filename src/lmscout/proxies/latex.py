"""Proxies in LaTeX, for papers and for the report.

Angle brackets stand for the mean over the elements of a tensor and over a block's tensors,
which is what makes a block value; l counts the L blocks of an architecture.
"""

from lmscout.proxies.expression import Branch, Proxy
from lmscout.proxies.operators import AGGREGATION, BINARY_OPERATION, INPUT, UNARY_OPERATION


def to_latex(proxy: Proxy) -> str:
    """The proxy as a LaTeX formula, without delimiters."""
    body = proxy.body
    if isinstance(body, Branch):
        return fill(AGGREGATION[proxy.aggregation].latex, _branch(body))
    operation = BINARY_OPERATION[body.operation]
    joined = fill(operation.latex, _branch(body.left), _branch(body.right))
    return joined if operation.gives_score else fill(AGGREGATION[proxy.aggregation].latex, joined)


def _branch(branch: Branch) -> str:
    formula = INPUT[branch.input].latex
    for name in branch.chain:
        formula = fill(UNARY_OPERATION[name].latex, formula)
    return rf"\left\langle {formula} \right\rangle"


def fill(template: str, *operands: str) -> str:
    """A template in which `#1` and `#2` stand for operands, with these in their places."""
    # An operand holds no '#', so one that is already in place is never filled again.
    for number, operand in enumerate(operands, start=1):
        template = template.replace(f"#{number}", operand)
    return template
