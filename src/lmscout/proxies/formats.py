"""An expression in LaTeX, and as a module that needs PyTorch alone.

In LaTeX, l counts the L blocks of an architecture, angle brackets are the mean over the elements
of a tensor and over a block's tensors (`average`), and the sum over i is that over all elements of
a block's tensors (`total`).  Tensors are multiplied and divided element by element, by the circled
signs.  d is the width, P the number of parameters.

The module contains the formulas of `primitives` that the expression uses, from their source.
"""

from __future__ import annotations

import dis
import inspect
import textwrap
from collections.abc import Mapping

from lmscout.proxies.expression import Expression, walk
from lmscout.proxies.parser import format_expression, require_score
from lmscout.proxies.primitives import (
    AGGREGATION,
    EPSILON,
    LEAF,
    NUMBER,
    REDUCTIONS,
    SPEC_LEAVES,
    STACKS,
    TENSOR_ARITHMETIC,
    UNARY,
    UNARY_OPERATION,
    positive_or_one,
    without_noise,
)

_WIDTH = 88  # of a line of code, where it can be broken


_REDUCTION = {"average": r"\left\langle #1 \right\rangle", "total": r"\sum_{i}\left(#1\right)_{i}"}
# How a sign is written, and how it binds; a fraction needs no brackets, in it or around it.
_SIGN = {
    "add": ("#1 + #2", 1),
    "sub": ("#1 - #2", 1),
    "mul": (r"#1 \odot #2", 2),
    "div": (r"#1 \oslash #2", 2),
    "+": ("#1 + #2", 1),
    "-": ("#1 - #2", 1),
    "*": (r"#1 \cdot #2", 2),
    "/": (r"\frac{#1}{#2}", 0),
}


def to_latex(expression: Expression) -> str:
    """The expression as a LaTeX formula, without delimiters."""
    name, operands = expression.name, expression.operands
    if not operands:
        return LEAF[name].latex if name in LEAF else name
    if name in _SIGN:
        template, binding = _SIGN[name]
        right = _bracketed(operands[1], binding + bool(binding))
        return _filled(template, _bracketed(operands[0], binding), right)
    if name in REDUCTIONS:
        template = _REDUCTION[name]
    else:
        template = (AGGREGATION if expression.word.aggregates else UNARY_OPERATION)[name].latex
    return _filled(template, to_latex(operands[0]))


def _bracketed(expression: Expression, binding: int) -> str:
    """An operand of a sign, in brackets where it binds less, or begins with a minus."""
    formula = to_latex(expression)
    own = _SIGN[expression.name][1] if expression.name in _SIGN else 0
    if 0 < own < binding or (binding and expression.name == "negate"):
        return rf"\left({formula}\right)"
    return formula


def _filled(template: str, *operands: str) -> str:
    for number, operand in enumerate(operands, start=1):
        template = template.replace(f"#{number}", operand)
    return template


_FORMULAS = {one.formula.__name__: one.formula for one in UNARY}
_JOINS = {sign: name for name, sign in TENSOR_ARITHMETIC.items()}
_VARIABLE = {"softmax": "probabilities"}  # the operation has that name

_JOIN = '''
@finite_or_nan
def {}(left, right):
    """{}."""
    return left {}
'''
_REDUCE = '''
def {}(tensors):
    """{}."""
    values = [
        without_noise(
            finite_or_nan(torch.{})(one, dtype=torch.float64),
            torch.{}(one.abs(), dtype=torch.float64),
        )
        for one in tensors
    ]
    return torch.tensor(sum(map(float, values)){}, dtype=torch.float64)
'''
_OVER_BLOCKS = '''
def {}_over_blocks(values):
    """{} of the values of all blocks."""
    return finite_or_nan(torch.{})(torch.stack(list(values)))
'''
# Functions of the module besides the formulas of one tensor.
_WRITTEN = {
    "positive_or_one": inspect.getsource(positive_or_one),
    "without_noise": inspect.getsource(without_noise),
    "add": _JOIN.format("add", "Sum, element by element", "+ right"),
    "sub": _JOIN.format("sub", "Difference, element by element", "- right"),
    "mul": _JOIN.format("mul", "Product, element by element", "* right"),
    "div": _JOIN.format(
        "div", "Quotient, element by element; 0 where there is none", "* invert(right)"
    ),
    "average": _REDUCE.format(
        "average",
        "Mean over the elements of each tensor, then over the tensors; 0 of none",
        *("mean", "mean", " / max(len(values), 1)"),
    ),
    "total": _REDUCE.format("total", "Sum over the elements of all tensors", "sum", "sum", ""),
    **{
        f"{name}_over_blocks": _OVER_BLOCKS.format(name, definition, function)
        for name, definition, function in (
            ("sum", "Sum", "sum"),
            ("mean", "Mean", "mean"),
            ("max", "Largest", "amax"),
            ("min", "Smallest", "amin"),
        )
    },
}

_MODULE = '''"""A zero-cost proxy of untrained language models, in plain PyTorch:

{text}
"""

import torch
'''

_RULE = '''
def finite_or_nan(formula):
    """The formula, whose result is NaN everywhere if an operand holds a NaN or an infinity."""

    def of(*operands, **options):
        result = formula(*operands, **options)
        if all(bool(torch.isfinite(one).all()) for one in operands):
            return result
        return torch.full_like(result, math.nan)

    return of
'''


def to_torch(expression: Expression) -> str:
    """The source of a module whose `proxy(tensors, spec)` is the expression's score of one model.

    `tensors` is leaf -> blocks -> tensors for every tensor leaf of the expression, as lists or
    tuples; `spec` is leaf -> number for its leaves "depth", "width" and "params".

    Raises:
        LmscoutError: The expression gives no score.
    """
    require_score(expression)
    bodies = dict.fromkeys(one.operands[0] for _, one in walk(expression) if one.word.aggregates)
    named = {body: f"block_{number}" for number, body in enumerate(bodies, start=1)}
    parts = [_MODULE.format(text=format_expression(expression))]
    if functions := _functions(expression):
        parts[0] = parts[0].replace("import torch\n", "import math\n\nimport torch\n")
        if any(": Tensor" in _source(name) for name in functions):
            parts[0] += "from torch import Tensor\n"
        if any("EPSILON" in _globals(name) for name in functions):
            parts[0] += f"\nEPSILON = {EPSILON}  # keeps a denominator from zero\n"
        parts += [_RULE, *map(_source, functions)]
    parts += [_block_function(name, body) for body, name in named.items()]
    parts.append(_proxy_function(expression, named))
    return "\n\n".join(part.strip("\n") + "\n" for part in parts)


def _function(expression: Expression) -> str:
    """Name of the function that a word of some operands becomes."""
    if expression.word.aggregates:
        return f"{expression.name}_over_blocks"
    if expression.name in REDUCTIONS:
        return expression.name
    if len(expression.operands) == 2:
        return _JOINS.get(expression.name, expression.name)
    return UNARY_OPERATION[expression.name].formula.__name__


def _functions(expression: Expression) -> list[str]:
    """Names of all functions of a tree, each before its users."""
    used = {_function(one) for _, one in walk(expression) if one.operands}
    if "div" in used:
        used.add("invert")
    used |= {"without_noise"} if used & set(REDUCTIONS) else set()
    used |= {needed for name in used for needed in _globals(name)}
    return [name for name in (*_FORMULAS, *_WRITTEN) if name in used]


def _globals(name: str) -> set[str]:
    """Global names in a formula: other formulas, `EPSILON`."""
    if name not in _FORMULAS:
        return set()
    return {one.argval for one in dis.get_instructions(_FORMULAS[name]) if "GLOBAL" in one.opname}


def _source(name: str) -> str:
    return _WRITTEN.get(name) or f"@finite_or_nan\n{inspect.getsource(_FORMULAS[name])}"


def _block_function(name: str, body: Expression) -> str:
    return (
        f'def {name}(block):\n    """Value of one block: name -> its tensors."""\n'
        f"{_wrapped(_code(body, {}))}\n"
    )


def _proxy_function(expression: Expression, named: Mapping[Expression, str]) -> str:
    spec = sorted(expression.leaves & set(SPEC_LEAVES))
    tensors = sorted(expression.leaves - set(SPEC_LEAVES))
    lines = ["@torch.no_grad()", "def proxy(tensors, spec):", '    """Score one model.', ""]
    if tensors:
        lines += _listed("tensors: name -> for every block a list of its tensors", tensors)
    if len(tensors) > 1:
        lines += ["    Tensors that are joined stand at the same places of their lists.", ""]
    lines += _listed("spec: name -> number", spec) if spec else ["    spec: not read."]
    lines.append('    """')
    lines += [
        f'    {one} = torch.tensor(float(spec["{one}"]), dtype=torch.float64)' for one in spec
    ]
    if tensors:
        names = ", ".join(f'"{one}"' for one in tensors)
        lines += [
            f"    names = [{names}]",
            "    by_block = zip(*(tensors[name] for name in names), strict=True)",
            "    blocks = [dict(zip(names, one, strict=True)) for one in by_block]",
        ]
    scores = {}
    for one in dict.fromkeys(node for _, node in walk(expression) if node.word.aggregates):
        block = named[one.operands[0]]
        scores[one] = block.replace("block", one.name)
        lines.append(f"    {scores[one]} = {_function(one)}(map({block}, blocks))")
    return "\n".join((*lines, _wrapped(f"float( {_code(expression, scores)})"), ""))


def _listed(heading: str, names: list[str]) -> list[str]:
    texts = (f'"{name}": {LEAF[name].definition}' for name in names)
    return [f"    {heading}:", *(line for one in texts for line in _lines(one, 8))]


def _code(expression: Expression, named: Mapping[Expression, str]) -> str:
    """Source of an expression, parts of which have a name, with a space where a line may end."""
    if expression in named:
        return named[expression]
    if expression.word == NUMBER:
        return f"torch.tensor({float(expression.name)!r}, dtype=torch.float64)"
    if not expression.operands:
        return _VARIABLE.get(expression.name, expression.name)
    if expression.name in REDUCTIONS:
        operands = _tensors_code(expression.operands[0])
    else:
        operands = ", ".join(_code(one, named) for one in expression.operands)
    return f"{_function(expression)}( {operands})"


def _tensors_code(operand: Expression) -> str:
    leaves = [leaf for leaf in STACKS[operand.type] if leaf in operand.leaves]
    lists = [f'block["{leaf}"]' for leaf in leaves]
    if not operand.operands:
        return lists[0]
    source = lists[0] if len(lists) == 1 else f"zip({', '.join(lists)}, strict=True)"
    drawn = ", ".join(_VARIABLE.get(leaf, leaf) for leaf in leaves)
    return f"[{_code(operand, {})} for {drawn} in {source}]"


def _wrapped(code: str) -> str:
    return "\n".join(_lines(f"return {code}", 4)).replace("( ", "(")


def _lines(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 4),
        break_on_hyphens=False,
    )
