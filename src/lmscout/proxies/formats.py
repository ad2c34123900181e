"""Other forms of an expression: JSON, LaTeX, and a module that needs PyTorch alone.

JSON is the tree, with a number for its format:

    {"schema": 1,
     "expression": {"operation": "sum", "operands": [
         {"operation": "average", "operands": [{"operation": "abslog", "operands": ["head"]}]}]}}

A leaf is its name, a number is a number.

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
from dataclasses import dataclass
from typing import Any

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import Expression, walk
from lmscout.proxies.parser import format_expression
from lmscout.proxies.primitives import (
    AGGREGATION,
    EPSILON,
    LEAF,
    NUMBER,
    REDUCTIONS,
    SCORE,
    SPEC_LEAVES,
    STACKS,
    TENSOR_ARITHMETIC,
    UNARY,
    UNARY_OPERATION,
)

SCHEMA = 1
"""Of the JSON form."""

_WIDTH = 88  # of a line of code, where it can be broken


def to_json(expression: Expression) -> dict[str, Any]:
    """The expression as nested dicts, lists and names, ready for `json.dumps`."""
    return {"schema": SCHEMA, "expression": _to_json(expression)}


def _to_json(expression: Expression) -> Any:
    if expression.word == NUMBER:
        return float(expression.name)
    if not expression.operands:
        return expression.name
    return {"operation": expression.name, "operands": list(map(_to_json, expression.operands))}


_REDUCTION = {
    "average": r"\left\langle #1 \right\rangle",
    "total": r"\sum_{i}\left(#1\right)_{i}",
}
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
    {}s = [finite_or_nan(torch.{})(one, dtype=torch.float64) for one in tensors]
    return torch.tensor(math.fsum({}, dtype=torch.float64)
'''
_OVER_BLOCKS = '''
def {}_over_blocks(values):
    """{} of the values of all blocks."""
    return finite_or_nan(torch.{})(torch.stack(list(values)))
'''
# Functions of the module besides the formulas of one tensor.
_WRITTEN = {
    "add": _JOIN.format("add", "Sum, element by element", "+ right"),
    "sub": _JOIN.format("sub", "Difference, element by element", "- right"),
    "mul": _JOIN.format("mul", "Product, element by element", "* right"),
    "div": _JOIN.format(
        "div", "Quotient, element by element; 0 where there is none", "* invert(right)"
    ),
    "average": _REDUCE.format(
        "average",
        "Mean over the elements of each tensor, then over the tensors; 0 of none",
        *("mean", "mean", "means) / max(len(means), 1)"),
    ),
    "total": _REDUCE.format("total", "Sum over the elements of all tensors", "sum", "sum", "sums)"),
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
    if expression.type != SCORE:
        raise LmscoutError(
            f"{format_expression(expression)} gives no score: aggregate it over the blocks"
        )
    bodies = dict.fromkeys(one.operands[0] for _, one in walk(expression) if one.word.aggregates)
    named = {body: f"block_{number}" for number, body in enumerate(bodies, start=1)}
    parts = [_MODULE.format(text=format_expression(expression))]
    if functions := _functions(expression):
        parts[0] = parts[0].replace("import torch\n", "import math\n\nimport torch\n")
        if any(name in _FORMULAS for name in functions):
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
        f"    return {_laid_out(_block_code(body), 4)}\n"
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
    call = _Code("float(", (_score_code(expression, named),), ")")
    return "\n".join((*lines, f"    return {_laid_out(call, 4)}", ""))


def _listed(heading: str, names: list[str]) -> list[str]:
    lines = [f"    {heading}:"]
    for name in names:
        lines += textwrap.wrap(
            f'"{name}": {LEAF[name].definition}',
            _WIDTH,
            initial_indent=" " * 8,
            subsequent_indent=" " * 12,
        )
    return lines


@dataclass(frozen=True)
class _Code:
    """Items between two brackets, which can be broken into lines."""

    opening: str
    items: tuple[_Code | str, ...]
    closing: str
    separator: str = ","


def _score_code(expression: Expression, named: Mapping[Expression, str]) -> _Code | str:
    if expression.word == NUMBER:
        return f"torch.tensor({float(expression.name)!r}, dtype=torch.float64)"
    if not expression.operands:
        return expression.name
    if expression.word.aggregates:
        return f"{_function(expression)}(map({named[expression.operands[0]]}, blocks))"
    return _called(expression, tuple(_score_code(one, named) for one in expression.operands))


def _block_code(expression: Expression) -> _Code | str:
    if expression.name not in REDUCTIONS:
        return _called(expression, tuple(map(_block_code, expression.operands)))
    (operand,) = expression.operands
    leaves = [leaf for leaf in STACKS[operand.type] if leaf in operand.leaves]
    lists = [f'block["{leaf}"]' for leaf in leaves]
    if not operand.operands:
        return _called(expression, (lists[0],))
    source = lists[0] if len(lists) == 1 else f"zip({', '.join(lists)}, strict=True)"
    drawn = f"for {', '.join(_VARIABLE.get(leaf, leaf) for leaf in leaves)} in {source}"
    return _called(expression, (_Code("[", (_tensor_code(operand), drawn), "]", ""),))


def _tensor_code(expression: Expression) -> _Code | str:
    if not expression.operands:
        return _VARIABLE.get(expression.name, expression.name)
    return _called(expression, tuple(map(_tensor_code, expression.operands)))


def _called(expression: Expression, operands: tuple[_Code | str, ...]) -> _Code:
    return _Code(f"{_function(expression)}(", operands, ")")


def _laid_out(code: _Code | str, indent: int) -> str:
    """Source of an expression; broken into lines where one would be too long."""
    flat = _flat(code)
    if isinstance(code, str) or indent + len(flat) <= _WIDTH:
        return flat
    inner = " " * (indent + 4)
    items = (f"{inner}{_laid_out(one, indent + 4)}{code.separator}\n" for one in code.items)
    return f"{code.opening}\n{''.join(items)}{' ' * indent}{code.closing}"


def _flat(code: _Code | str) -> str:
    if isinstance(code, str):
        return code
    return code.opening + f"{code.separator} ".join(map(_flat, code.items)) + code.closing
