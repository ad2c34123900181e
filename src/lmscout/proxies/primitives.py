"""The primitives of the proxy language, as tables with their types.

A *tensor* of a block belongs to a stack: tensors of one stack have the same shape, place by place,
so that they can be joined element by element.  A *block value* is one number a block, a *score* one
number an architecture.  A reduction makes a block value of a stack's tensors, an aggregation a
score of block values.  A number is a score that is the same for every architecture.

The six inputs, the twenty unary operations and the binary ones are LPZero's (Dong et al., arXiv
2410.04808, Table 1); names, guards and definitions here are lmscout's and exact.

The formulas in torch are the reference for faster implementations.  None modifies its input.  An
elementwise formula works in the tensor's own precision; sums accumulate in float64 and are rounded
back once.  `UnaryOperation.apply` handles tensors that hold a NaN or an infinity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

TENSOR, BLOCK, SCORE = "tensor", "block", "score"

EPSILON = 1e-9
"""Added to denominators, as in LPZero."""


def all_finite(x: Tensor) -> bool:
    """Whether a tensor of any shape holds neither a NaN nor an infinity."""
    # A sum takes a fiftieth of the time, and is not finite if an element is not.
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def positive_or_one(x: Tensor) -> Tensor:
    """All but positive numbers replaced by 1, as their roots and logarithms are slow."""
    positive: Tensor = torch.threshold(x, 0.0, 1.0)  # `where` is slow too
    return positive


def without_noise(value: Tensor, size: Tensor) -> Tensor:
    """A sum or mean; 0 if it is below 1e-9 of that of the absolute terms, as those cancel.

    The gradient that enters a block of GPT-2 sums to 0, as all after it are norms.
    """
    return torch.where(value.abs() < 1e-9 * size, 0.0, value)


def log(x: Tensor) -> Tensor:
    """Natural logarithm where x > 0, else 0."""
    return positive_or_one(x).log_()


def abslog(x: Tensor) -> Tensor:
    """Natural logarithm of |x|, 0 where x = 0."""
    return positive_or_one(x.abs()).log_()


def absolute(x: Tensor) -> Tensor:
    """|x|."""
    return x.abs()


def square(x: Tensor) -> Tensor:
    """The square of x."""
    return x * x


def exp(x: Tensor) -> Tensor:
    """The exponential of x; overflows to infinity."""
    return torch.exp(x)


def normalize(x: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-9)."""
    return (x - mean(x)) / (std(x) + EPSILON)


def relu(x: Tensor) -> Tensor:
    """The larger of x and 0."""
    return torch.relu(x)


def invert(x: Tensor) -> Tensor:
    """1 / (x + 1e-9), 0 where that denominator is 0."""
    shifted = x + EPSILON
    return shifted.reciprocal().masked_fill_(shifted == 0, 0.0)


def frobenius(x: Tensor) -> Tensor:
    """Square root of the sum of squares."""
    return x.double().square().sum().sqrt().to(x.dtype)


def meansum(x: Tensor) -> Tensor:
    """Sum of the elements divided by their number."""
    return mean(x)


def l1(x: Tensor) -> Tensor:
    """Sum of the absolute elements divided by their number."""
    return (x.abs().sum(dtype=torch.float64) / x.numel()).to(x.dtype)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the first axis; 1 for a scalar."""
    return torch.softmax(x, dim=0)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return torch.sigmoid(x)


def logsoftmax(x: Tensor) -> Tensor:
    """Logarithm of the softmax over the first axis; 0 for a scalar."""
    return torch.log_softmax(x, dim=0)


def sqrt(x: Tensor) -> Tensor:
    """Square root of the larger of x and 0."""
    return positive_or_one(x).sqrt_().mul_(x > 0)


def negate(x: Tensor) -> Tensor:
    """-x."""
    return -x


def minmax(x: Tensor) -> Tensor:
    """(x - min) / (max - min + 1e-9)."""
    low, high = x.amin(), x.amax()
    return (x - low) / (high - low + EPSILON)


def mean(x: Tensor) -> Tensor:
    """Arithmetic mean."""
    value, size = x.mean(dtype=torch.float64), x.abs().mean(dtype=torch.float64)
    return without_noise(value, size).to(x.dtype)


def std(x: Tensor) -> Tensor:
    """Unbiased standard deviation; 0 for one element, where it is not defined."""
    if x.numel() == 1:
        return torch.zeros((), dtype=x.dtype, device=x.device)
    return x.double().std(correction=1).to(x.dtype)


def identity(x: Tensor) -> Tensor:
    """X itself."""
    return x


@dataclass(frozen=True)
class Input:
    """A leaf of an expression."""

    name: str
    definition: str  # tensors of a block, or a number of the configuration
    latex: str  # its symbol, at block l


@dataclass(frozen=True)
class UnaryOperation:
    """A function of one tensor."""

    name: str
    upstream: str  # its name in LPZero's code
    definition: str  # the formula on a finite tensor of n elements
    guard: str  # value where the formula has none
    latex: str  # `#1` is the operand
    formula: Callable[[Tensor], Tensor]  # for a finite tensor with at least one element
    scalar: bool = False  # whether the result is one number (a 0-dimensional tensor)
    source: str = "LPZero, arXiv 2410.04808; lpzero/operators/unary_ops.py at c43210618e05"

    def apply(self, tensor: Tensor) -> Tensor:
        """The operation on a floating-point tensor of any shape: one of that shape, or [].

        If the tensor holds a NaN or an infinity, the result is NaN everywhere; so is the scalar
        of an empty tensor.  A finite tensor may overflow to infinity.
        """
        if tensor.numel() == 0 or not all_finite(tensor):
            shape = () if self.scalar else tensor.shape
            return torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)
        return self.formula(tensor)


@dataclass(frozen=True)
class BinaryOperation:
    """A function of two block values, in an enumerated space."""

    name: str  # in tables
    symbol: str  # in an expression
    definition: str
    source: str = "LPZero, arXiv 2410.04808; lpzero/operators/binary_ops.py"


@dataclass(frozen=True)
class Aggregation:
    """A function of the block values of one architecture; only blocks that exist count."""

    name: str
    definition: str
    latex: str  # `#1` is the value of block l of L
    source: str = "lmscout; LPZero has only the mean"


@dataclass(frozen=True)
class Primitive:
    """A word of the language with one of its signatures."""

    name: str
    takes: tuple[str, ...]  # types of its operands; "tensor" is any stack, all of the same one
    gives: str  # its type; "tensor" is that of its operands' stack
    definition: str
    scalar: bool = False  # on tensors, whether the result is one number a tensor

    @property
    def aggregates(self) -> bool:
        """Whether it makes a score of block values."""
        return self.takes == (BLOCK,) and self.gives == SCORE


_NONE = "none: defined for every number"

# fmt: off
INPUTS: tuple[Input, ...] = (
    Input("act", "output of the MLP's activation function, each where the block stacks several",
          r"A_{\ell}"),
    Input("jacob", "gradient with respect to the hidden state that enters the block",
          r"J_{\ell}"),
    Input("grad", "gradients of the weight matrices of the block's linear layers",
          r"G_{\ell}"),
    Input("head", "outputs of the query, key and value projections (of the mixing projection "
          "where there is no attention)", r"H_{\ell}"),
    Input("weight", "weight matrices of the block's linear layers", r"W_{\ell}"),
    Input("softmax", "attention probabilities (softmax of the mixer's output where there is no "
          "attention)", r"S_{\ell}"),
)

# Parts of the inputs, the gradient of act, and the configuration.
_MORE_LEAVES: tuple[Input, ...] = (
    Input("mixer_weight", "weight matrices of the linear layers that mix tokens",
          r"W^{\mathrm{mixer}}_{\ell}"),
    Input("mixer_grad", "gradients of the weight matrices of the linear layers that mix tokens",
          r"G^{\mathrm{mixer}}_{\ell}"),
    Input("mlp_weight", "weight matrices of the MLP's linear layers",
          r"W^{\mathrm{MLP}}_{\ell}"),
    Input("mlp_grad", "gradients of the weight matrices of the MLP's linear layers",
          r"G^{\mathrm{MLP}}_{\ell}"),
    Input("act_grad", "gradients with respect to act", r"\nabla A_{\ell}"),
    Input("depth", "number of blocks", "L"),
    Input("width", "size of the hidden state", "d"),
    Input("params", "number of parameters of the whole model", "P"),
)

def _function(name: str) -> str:
    return rf"\operatorname{{{name}}}\left(#1\right)"


# name, name in LPZero's code, definition, guard, LaTeX, formula
UNARY: tuple[UnaryOperation, ...] = tuple(UnaryOperation(*row) for row in (
    ("log", "element_wise_log", "ln x", "0 where x <= 0", r"\ln^{+}\left(#1\right)", log),
    ("abslog", "element_wise_abslog", "ln |x|", "0 where x = 0", r"\ln\left|#1\right|", abslog),
    ("abs", "element_wise_abs", "|x|", _NONE, r"\left|#1\right|", absolute),
    ("square", "element_wise_pow", "x^2", _NONE, r"\left(#1\right)^{2}", square),
    ("exp", "element_wise_exp", "e^x", "overflows to infinity", r"\exp\left(#1\right)", exp),
    ("normalize", "normalize", "(x - mean) / (std + 1e-9)",
     "std as in the operation std; 0 for one element", _function("normalize"), normalize),
    ("relu", "element_wise_relu", "max(x, 0)", _NONE, _function("ReLU"), relu),
    ("invert", "element_wise_invert", "1 / (x + 1e-9)", "0 where x + 1e-9 = 0",
     r"\left(#1\right)^{-1}", invert),
    ("frobenius", "frobenius_norm", "sqrt(sum x^2)", _NONE,
     r"\left\lVert #1\right\rVert_{F}", frobenius, True),
    ("meansum", "element_wise_normalized_sum", "(sum x) / n", _NONE,
     r"\frac{1}{n}\sum\left(#1\right)", meansum, True),
    ("l1", "l1_norm", "(sum |x|) / n", _NONE,
     r"\frac{1}{n}\left\lVert #1\right\rVert_{1}", l1, True),
    ("softmax", "softmax", "e^x / sum e^x over the first axis", "1 for a scalar",
     _function("softmax"), softmax),
    ("sigmoid", "sigmoid", "1 / (1 + e^-x)", _NONE, r"\sigma\left(#1\right)", sigmoid),
    ("logsoftmax", "logsoftmax", "x - ln sum e^x over the first axis", "0 for a scalar",
     r"\ln" + _function("softmax"), logsoftmax),
    ("sqrt", "element_wise_sqrt", "sqrt(x)", "0 where x < 0",
     r"\sqrt{\left(#1\right)^{+}}", sqrt),
    ("negate", "element_wise_revert", "-x", _NONE, r"-\left(#1\right)", negate),
    ("minmax", "min_max_normalize", "(x - min) / (max - min + 1e-9)",
     "0 where all elements are equal", _function("minmax"), minmax),
    ("mean", "to_mean_scalar", "mean of the elements", _NONE, _function("mean"), mean, True),
    ("std", "to_std_scalar", "sqrt(sum (x - mean)^2 / (n - 1))", "0 for one element",
     _function("std"), std, True),
    ("identity", "no_op", "x", _NONE, "#1", identity),
))

BINARY: tuple[BinaryOperation, ...] = (
    BinaryOperation("sum", "+", "left + right, block by block"),
    BinaryOperation("difference", "-", "left - right, block by block"),
    BinaryOperation("product", "*", "left * right, block by block"),
    BinaryOperation("matrix_product", "@", "inner product over blocks: sum of left * right"),
)

AGGREGATIONS: tuple[Aggregation, ...] = (
    Aggregation("mean", "mean over the blocks",
                r"\frac{1}{L}\sum_{\ell=1}^{L}\left(#1\right)",
                "LPZero, arXiv 2410.04808; lpzero/structures/tree.py"),
    Aggregation("sum", "sum over the blocks", r"\sum_{\ell=1}^{L}\left(#1\right)"),
    Aggregation("max", "largest over the blocks", r"\max_{\ell}\left(#1\right)"),
    Aggregation("min", "smallest over the blocks", r"\min_{\ell}\left(#1\right)"),
)
# fmt: on

INPUT: Mapping[str, Input] = MappingProxyType({one.name: one for one in INPUTS})
LEAF: Mapping[str, Input] = MappingProxyType({one.name: one for one in (*INPUTS, *_MORE_LEAVES)})
UNARY_OPERATION: Mapping[str, UnaryOperation] = MappingProxyType({one.name: one for one in UNARY})
AGGREGATION: Mapping[str, Aggregation] = MappingProxyType({one.name: one for one in AGGREGATIONS})

# The leaves of each stack, in the order of joins.
STACKS: Mapping[str, tuple[str, ...]] = {
    "linear": ("weight", "grad"),
    "mixer": ("mixer_weight", "mixer_grad"),
    "mlp": ("mlp_weight", "mlp_grad"),
    "act": ("act", "act_grad"),
    "hidden": ("jacob",),
    "head": ("head",),
    "softmax": ("softmax",),
}
SPEC_LEAVES = ("depth", "width", "params")
REDUCTIONS = ("average", "total")

# Unary operations that act element by element, so on a block value or a score as well.
ELEMENTWISE = (
    *("abs", "abslog", "exp", "invert", "log"),
    *("negate", "relu", "sigmoid", "sqrt", "square"),
)
SYNONYMS: Mapping[str, str] = {"identity": "", "meansum": "mean"}
"""Operations of the published space that equal others (or nothing); searches do not draw them."""

COMMUTATIVE = frozenset({"add", "mul", "+", "*"})
ARITHMETIC: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left * invert(right),
}
TENSOR_ARITHMETIC: Mapping[str, str] = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_DEFINITION = {
    "+": "left + right",
    "-": "left - right",
    "*": "left * right",
    "/": "left / (right + 1e-9), 0 where that denominator is 0",
}

PRIMITIVES: tuple[Primitive, ...] = (
    *(
        Primitive(leaf, (), stack, LEAF[leaf].definition)
        for stack, leaves in STACKS.items()
        for leaf in leaves
    ),
    *(Primitive(leaf, (), SCORE, LEAF[leaf].definition) for leaf in SPEC_LEAVES),
    *(Primitive(one.name, (TENSOR,), TENSOR, one.definition, one.scalar) for one in UNARY),
    *(
        Primitive(name, (TENSOR, TENSOR), TENSOR, f"{_DEFINITION[sign]}, element by element")
        for name, sign in TENSOR_ARITHMETIC.items()
    ),
    Primitive("average", (TENSOR,), BLOCK, "mean over the elements, then over the block's tensors"),
    Primitive("total", (TENSOR,), BLOCK, "sum over the elements of all of the block's tensors"),
    *(
        Primitive(name, (level,), level, UNARY_OPERATION[name].definition)
        for level in (BLOCK, SCORE)
        for name in ELEMENTWISE
    ),
    *(
        Primitive(sign, (level, level), level, definition)
        for level in (BLOCK, SCORE)
        for sign, definition in _DEFINITION.items()
    ),
    *(
        Primitive(name, (BLOCK,), SCORE, f"{name} over the blocks that exist")
        for name in ("sum", "mean", "max", "min")
    ),
)
NUMBER = Primitive("number", (), SCORE, "a number, 0 or more, such as 0.5")

# Words of searches; the draws of a seed depend on their order.
SEARCHED = tuple(one for one in PRIMITIVES if one.name not in SYNONYMS)
TENSOR_UNARY = tuple(one.name for one in SEARCHED if (one.takes, one.gives) == ((TENSOR,), TENSOR))
TENSOR_JOINS = tuple(TENSOR_ARITHMETIC)
AGGREGATES = tuple(one.name for one in SEARCHED if one.aggregates)

_DIGITS = re.compile(r"[0-9]+(\.[0-9]+)?")


def number_text(value: float) -> str:
    """The word for a finite number of 0 or more: its shortest digits, without an exponent."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value} is not a finite number of 0 or more")
    return np.format_float_positional(abs(value), trim="-")


def as_number(word: str) -> float | None:
    """The number that a word is; None if it is another word."""
    return float(word) if _DIGITS.fullmatch(word) else None


def reduce(chain: tuple[str, ...], tensor: Tensor) -> float:
    """The mean of a tensor under a chain, innermost first: the definition of a branch.

    The operations work in the tensor's own precision; the last mean accumulates in float64.  NaN
    if the chain has no value.
    """
    value = tensor.detach()
    for name in chain:
        value = UNARY_OPERATION[name].apply(value)
    return float(value.mean(dtype=torch.float64))
