"""The words of the deep language, as one literal table with their types.

A value is one of three things.  A *tensor* of a block belongs to a stack: tensors of one stack
have the same shape, place by place, so that they can be joined element by element.  A *block
value* is one number a block, a *score* one number an architecture.  Types only ever go up:
a reduction makes a block value of a stack's tensors, an aggregation a score of block values.
A number is a score that is the same for every architecture, and a word for itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from torch import Tensor

from lmscout.proxies import formulas
from lmscout.proxies.operators import UNARY, UNARY_OPERATION

TENSOR, BLOCK, SCORE = "tensor", "block", "score"

# What a stack holds of each block, in the order of its leaves.
STACKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "linear": ("weight", "grad"),
        "mixer": ("mixer_weight", "mixer_grad"),
        "mlp": ("mlp_weight", "mlp_grad"),
        "act": ("act", "act_grad"),
        "hidden": ("jacob",),
        "head": ("head",),
        "softmax": ("softmax",),
    }
)
SPEC_LEAVES = ("depth", "width", "params")
AGGREGATES = ("sum", "mean", "max", "min")

# Unary operations that act element by element, so on a block value or a score as well.
ELEMENTWISE = (
    *("abs", "abslog", "exp", "invert", "log"),
    *("negate", "relu", "sigmoid", "sqrt", "square"),
)
COMMUTATIVE = frozenset({"add", "mul", "+", "*"})


@dataclass(frozen=True)
class Word:
    """One word: what it takes and what it gives.

    Attributes:
        name: as it is written.
        takes: types of its operands; "tensor" is a tensor of any stack, all of the same one.
        gives: its type; "tensor" is that of its operands' stack.
        definition: in words.
        scalar: on tensors: whether the result is one number a tensor.
    """

    name: str
    takes: tuple[str, ...]
    gives: str
    definition: str
    scalar: bool = False

    @property
    def aggregates(self) -> bool:
        """Whether it makes a score of block values."""
        return self.takes == (BLOCK,) and self.gives == SCORE


def _divided(left: Tensor, right: Tensor) -> Tensor:
    return left * formulas.invert(right)


ARITHMETIC: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "+": lambda left, right: left + right,
        "-": lambda left, right: left - right,
        "*": lambda left, right: left * right,
        "/": _divided,
    }
)
TENSOR_ARITHMETIC: Mapping[str, str] = MappingProxyType(
    {"add": "+", "sub": "-", "mul": "*", "div": "/"}
)
_SAID = {
    "+": "left + right",
    "-": "left - right",
    "*": "left * right",
    "/": "left / (right + 1e-9), 0 where that denominator is 0",
}

WORDS: tuple[Word, ...] = (
    *(
        Word(leaf, (), stack, f"the {leaf} tensors of a block")
        for stack, leaves in STACKS.items()
        for leaf in leaves
    ),
    *(Word(leaf, (), SCORE, f"the {leaf} of the configuration") for leaf in SPEC_LEAVES),
    *(
        Word(one.name, (TENSOR,), TENSOR, one.definition, one.scalar)
        for one in UNARY
        if one.name not in ("identity", "meansum")  # the operand itself; mean by another name
    ),
    *(
        Word(name, (TENSOR, TENSOR), TENSOR, f"{_SAID[sign]}, element by element")
        for name, sign in TENSOR_ARITHMETIC.items()
    ),
    Word("average", (TENSOR,), BLOCK, "mean over the elements, then over the block's tensors"),
    Word("total", (TENSOR,), BLOCK, "sum over the elements of all of the block's tensors"),
    *(
        Word(name, (level,), level, UNARY_OPERATION[name].definition)
        for level in (BLOCK, SCORE)
        for name in ELEMENTWISE
    ),
    *(
        Word(sign, (level, level), level, said)
        for level in (BLOCK, SCORE)
        for sign, said in _SAID.items()
    ),
    *(Word(name, (BLOCK,), SCORE, f"{name} over the blocks that exist") for name in AGGREGATES),
)

NUMBER = Word("number", (), SCORE, "a number, 0 or more, such as 0.5")
_DIGITS = re.compile(r"[0-9]+(\.[0-9]+)?")

TENSOR_UNARY = tuple(one.name for one in WORDS if (one.takes, one.gives) == ((TENSOR,), TENSOR))
TENSOR_JOINS = tuple(TENSOR_ARITHMETIC)
REDUCTIONS = ("average", "total")


def number_text(value: float) -> str:
    """The word for a number: its shortest digits, without an exponent.

    Args:
        value: finite, and 0 or more; what is negative is taken away by a sign.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value} is not a finite number of 0 or more")
    return np.format_float_positional(abs(value), trim="-")


def as_number(word: str) -> float | None:
    """The number that a word stands for; None where it is another word."""
    return float(word) if _DIGITS.fullmatch(word) else None
