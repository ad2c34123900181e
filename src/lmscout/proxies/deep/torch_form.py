"""A deep proxy as a Python module that needs nothing but PyTorch, for pasting into other code.

The operations are the definitions of `proxies.formulas`, taken from its source as they stand, so
that each is said in one place; only those that the tree uses are written.
"""

from __future__ import annotations

import dis
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType, MappingProxyType

from lmscout.errors import LmscoutError
from lmscout.proxies import formulas
from lmscout.proxies.deep.nodes import Node, walk
from lmscout.proxies.deep.text import format_node
from lmscout.proxies.deep.words import (
    NUMBER,
    REDUCTIONS,
    SCORE,
    SPEC_LEAVES,
    STACKS,
    TENSOR_ARITHMETIC,
)
from lmscout.proxies.operators import INPUT, UNARY_OPERATION

WIDTH = 88  # of a line of code, where it can be broken

_JOINS = MappingProxyType({sign: name for name, sign in TENSOR_ARITHMETIC.items()})
_VARIABLE = MappingProxyType({"softmax": "probabilities"})  # the operation has that name
_MEANING: Mapping[str, str] = MappingProxyType(
    {
        **{name: one.definition for name, one in INPUT.items()},
        "mixer_weight": "weight matrices of the linear layers that mix tokens",
        "mixer_grad": "gradients of the weight matrices of the linear layers that mix tokens",
        "mlp_weight": "weight matrices of the MLP's linear layers",
        "mlp_grad": "gradients of the weight matrices of the MLP's linear layers",
        "act_grad": "gradients with respect to act",
        "depth": "number of blocks",
        "width": "size of the hidden state",
        "params": "number of parameters of the whole model",
    }
)

# What is no formula of one tensor; what another word needs is found by its name.
_WRITTEN: Mapping[str, str] = MappingProxyType(
    {
        "add": '''
@guarded
def add(left, right):
    """Sum, element by element."""
    return left + right
''',
        "sub": '''
@guarded
def sub(left, right):
    """Difference, element by element."""
    return left - right
''',
        "mul": '''
@guarded
def mul(left, right):
    """Product, element by element."""
    return left * right
''',
        "div": '''
@guarded
def div(left, right):
    """Quotient, element by element; 0 where there is none."""
    return left * invert(right)
''',
        "average": '''
def average(tensors):
    """Mean over the elements of each tensor, then over the tensors; 0 of none."""
    means = [guarded(torch.mean)(one, dtype=torch.float64) for one in tensors]
    return torch.tensor(math.fsum(means) / max(len(means), 1), dtype=torch.float64)
''',
        "total": '''
def total(tensors):
    """Sum over the elements of all tensors."""
    sums = [guarded(torch.sum)(one, dtype=torch.float64) for one in tensors]
    return torch.tensor(math.fsum(sums), dtype=torch.float64)
''',
        "sum_over_blocks": '''
def sum_over_blocks(values):
    """Sum of the values of all blocks."""
    return guarded(torch.sum)(torch.stack(list(values)))
''',
        "mean_over_blocks": '''
def mean_over_blocks(values):
    """Mean of the values of all blocks."""
    return guarded(torch.mean)(torch.stack(list(values)))
''',
        "max_over_blocks": '''
def max_over_blocks(values):
    """Largest of the values of all blocks."""
    return guarded(torch.amax)(torch.stack(list(values)))
''',
        "min_over_blocks": '''
def min_over_blocks(values):
    """Smallest of the values of all blocks."""
    return guarded(torch.amin)(torch.stack(list(values)))
''',
    }
)

_HEAD = '''"""A zero-cost proxy of untrained language models, in plain PyTorch:

{text}
"""

import torch
'''

_RULE = '''
def guarded(formula):
    """The formula under one rule: what is given a NaN or an infinity gives NaN throughout."""

    def of(*operands, **options):
        result = formula(*operands, **options)
        if all(bool(torch.isfinite(one).all()) for one in operands):
            return result
        return torch.full_like(result, math.nan)

    return of
'''


def to_torch(node: Node) -> str:
    """The source of a module whose `proxy(tensors, spec)` is the tree's score of one model.

    Its `tensors` are leaf -> blocks -> tensors for every tensor leaf of the tree, as lists or
    tuples; its `spec` is "depth", "width" and "params" -> number, of which it reads those that
    the tree does.

    Raises:
        LmscoutError: the tree gives no score.
    """
    if node.type != SCORE:
        raise LmscoutError(f"{format_node(node)} gives no score: aggregate it over the blocks")
    bodies = dict.fromkeys(one.operands[0] for _, one in walk(node) if one.word.aggregates)
    named = {body: f"block_{number}" for number, body in enumerate(bodies, start=1)}
    parts = [_HEAD.format(text=format_node(node))]
    if functions := _functions(node):
        parts[0] = parts[0].replace("import torch\n", "import math\n\nimport torch\n")
        if any(name in _FORMULAS for name in functions):
            parts[0] += "from torch import Tensor\n"
        if any("EPSILON" in _globals(name) for name in functions):
            parts[0] += f"\nEPSILON = {formulas.EPSILON}  # keeps a denominator from zero\n"
        parts += [_RULE, *map(_source, functions)]
    parts += [_block_function(name, body) for body, name in named.items()]
    parts.append(_proxy_function(node, named))
    return "\n\n".join(part.strip("\n") + "\n" for part in parts)


def _function(node: Node) -> str:
    """Name of the function that a word of some operands becomes."""
    if node.word.aggregates:
        return f"{node.name}_over_blocks"
    if node.name in REDUCTIONS:
        return node.name
    if len(node.operands) == 2:
        return _JOINS.get(node.name, node.name)
    return UNARY_OPERATION[node.name].formula.__name__


_FORMULAS = {name: one for name, one in vars(formulas).items() if isinstance(one, FunctionType)}


def _functions(node: Node) -> list[str]:
    """Names of all functions that a tree needs, what others need before them."""
    used = {_function(one) for _, one in walk(node) if one.operands}
    if "div" in used:
        used.add("invert")
    used |= {needed for name in used for needed in _globals(name)}
    return [name for name in (*_FORMULAS, *_WRITTEN) if name in used]


def _globals(name: str) -> set[str]:
    """What a formula reads of the module around it: other formulas, `EPSILON`."""
    if name not in _FORMULAS:
        return set()
    return {one.argval for one in dis.get_instructions(_FORMULAS[name]) if "GLOBAL" in one.opname}


def _source(name: str) -> str:
    return _WRITTEN.get(name) or f"@guarded\n{inspect.getsource(_FORMULAS[name])}"


def _block_function(name: str, body: Node) -> str:
    return (
        f'def {name}(block):\n    """Value of one block: name -> its tensors."""\n'
        f"    return {_laid_out(_block_code(body), 4)}\n"
    )


def _proxy_function(node: Node, named: Mapping[Node, str]) -> str:
    tensors, spec = sorted(node.leaves - set(SPEC_LEAVES)), sorted(node.leaves & set(SPEC_LEAVES))
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
    call = _Code("float(", (_score_code(node, named),), ")")
    return "\n".join((*lines, f"    return {_laid_out(call, 4)}", ""))


def _listed(heading: str, names: list[str]) -> list[str]:
    lines = [f"    {heading}:"]
    for name in names:
        lines += textwrap.wrap(
            f'"{name}": {_MEANING[name]}',
            WIDTH,
            initial_indent=" " * 8,
            subsequent_indent=" " * 12,
        )
    return lines


@dataclass(frozen=True)
class _Code:
    """An expression that can be broken into lines: what is between two brackets."""

    opening: str
    items: tuple[_Code | str, ...]
    closing: str
    separator: str = ","


def _score_code(node: Node, named: Mapping[Node, str]) -> _Code | str:
    if node.word == NUMBER:
        return f"torch.tensor({float(node.name)!r}, dtype=torch.float64)"
    if not node.operands:
        return node.name
    if node.word.aggregates:
        return f"{_function(node)}(map({named[node.operands[0]]}, blocks))"
    return _called(node, tuple(_score_code(one, named) for one in node.operands))


def _block_code(node: Node) -> _Code | str:
    if node.name not in REDUCTIONS:
        return _called(node, tuple(map(_block_code, node.operands)))
    (operand,) = node.operands
    leaves = [leaf for leaf in STACKS[operand.type] if leaf in operand.leaves]
    lists = [f'block["{leaf}"]' for leaf in leaves]
    if not operand.operands:
        return _called(node, (lists[0],))
    source = lists[0] if len(lists) == 1 else f"zip({', '.join(lists)}, strict=True)"
    drawn = f"for {', '.join(_VARIABLE.get(leaf, leaf) for leaf in leaves)} in {source}"
    return _called(node, (_Code("[", (_tensor_code(operand), drawn), "]", ""),))


def _tensor_code(node: Node) -> _Code | str:
    if not node.operands:
        return _VARIABLE.get(node.name, node.name)
    return _called(node, tuple(map(_tensor_code, node.operands)))


def _called(node: Node, operands: tuple[_Code | str, ...]) -> _Code:
    return _Code(f"{_function(node)}(", operands, ")")


def _laid_out(code: _Code | str, indent: int) -> str:
    """Source of an expression; broken into lines where one would be too long."""
    flat = _flat(code)
    if isinstance(code, str) or indent + len(flat) <= WIDTH:
        return flat
    inner = " " * (indent + 4)
    items = (f"{inner}{_laid_out(one, indent + 4)}{code.separator}\n" for one in code.items)
    return f"{code.opening}\n{''.join(items)}{' ' * indent}{code.closing}"


def _flat(code: _Code | str) -> str:
    if isinstance(code, str):
        return code
    return code.opening + f"{code.separator} ".join(map(_flat, code.items)) + code.closing
