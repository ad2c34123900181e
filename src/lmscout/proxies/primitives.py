"""The primitives of the proxy language, as literal tables with their types.

A value is one of three things.  A *tensor* of a block belongs to a stack: tensors of one stack
have the same shape, place by place, so that they can be joined element by element.  A *block
value* is one number a block, a *score* one number an architecture.  Types only go up: a reduction
makes a block value of a stack's tensors, an aggregation a score of block values.  A number is a
score that is the same for every architecture.

The six inputs, the twenty unary operations and the binary ones are LPZero's (Dong et al., arXiv
2410.04808, Table 1); names, guards and definitions here are lmscout's and exact.

The formulas in torch are what everything faster is checked against, so they are written for
reading.  Each is pure: it never modifies its input.  (LPZero's own code wrote into its input, so
that one operation changed what the next one read.)  An elementwise formula works in the tensor's
own precision; sums accumulate in float64 and are rounded back to it once.  The rule for tensors
that hold a NaN or an infinity is the same for all of them: `UnaryOperation.apply`.
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

from lmscout.proxies.spelling import require_known

TENSOR, BLOCK, SCORE = "tensor", "block", "score"

EPSILON = 1e-9
"""What keeps a denominator from zero, as in LPZero."""


def log(x: Tensor) -> Tensor:
    """Natural logarithm where x > 0, else 0."""
    positive = x > 0
    return torch.log(torch.where(positive, x, 1.0))


def abslog(x: Tensor) -> Tensor:
    """Natural logarithm of |x|, 0 where x = 0."""
    return torch.log(torch.where(x == 0, 1.0, x.abs()))


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
    pole = shifted == 0
    return torch.where(pole, 0.0, 1.0 / torch.where(pole, 1.0, shifted))


def frobenius(x: Tensor) -> Tensor:
    """Square root of the sum of squares."""
    return x.double().square().sum().sqrt().to(x.dtype)


def meansum(x: Tensor) -> Tensor:
    """Sum of the elements divided by their number."""
    return (x.sum(dtype=torch.float64) / x.numel()).to(x.dtype)


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
    return torch.sqrt(x.clamp(min=0))


def negate(x: Tensor) -> Tensor:
    """-x."""
    return -x


def minmax(x: Tensor) -> Tensor:
    """(x - min) / (max - min + 1e-9)."""
    low, high = x.amin(), x.amax()
    return (x - low) / (high - low + EPSILON)


def mean(x: Tensor) -> Tensor:
    """Arithmetic mean."""
    return x.mean(dtype=torch.float64).to(x.dtype)


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
    """A leaf of an expression: something that is read of a model or of its configuration.

    Attributes:
        name: Its name in an expression.
        definition: Which tensors of a block it stands for.
        latex: Its symbol, at block l.
    """

    name: str
    definition: str
    latex: str


@dataclass(frozen=True)
class UnaryOperation:
    """A function of one tensor.

    Attributes:
        name: Its name in an expression.
        upstream: Its name in LPZero's code.
        definition: The formula on a finite tensor of n elements.
        guard: What holds where the bare formula has no value.
        latex: LaTeX, in which `#1` stands for the operand.
        scalar: The result is one number (a 0-dimensional tensor).
        formula: The definition in torch, for a finite tensor with at least one element.
        source: Where it was published.
    """

    name: str
    upstream: str
    definition: str
    guard: str
    latex: str
    scalar: bool
    formula: Callable[[Tensor], Tensor]
    source: str = "LPZero, arXiv 2410.04808; lpzero/operators/unary_ops.py at c43210618e05"

    def apply(self, tensor: Tensor) -> Tensor:
        """The operation on any floating-point tensor; the input is never modified.

        One rule for every operation: a tensor that holds a NaN or an infinity has no value,
        so the result is NaN everywhere (and so is the scalar of an empty tensor).  A finite
        tensor may overflow to infinity.

        Args:
            tensor: Any shape, 0-dimensional included.

        Returns:
            A 0-dimensional tensor for a scalar operation, else one of the input's shape.
        """
        if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
            shape = () if self.scalar else tensor.shape
            return torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)
        return self.formula(tensor)


@dataclass(frozen=True)
class BinaryOperation:
    """A function of two block values, in an enumerated space.

    Attributes:
        name: Its name in tables.
        symbol: Its sign in an expression.
        definition: The formula in words.
        source: Where it was published.
    """

    name: str
    symbol: str
    definition: str
    source: str = "LPZero, arXiv 2410.04808; lpzero/operators/binary_ops.py"


@dataclass(frozen=True)
class Aggregation:
    """A function of the block values of one architecture.

    Attributes:
        name: Its name in an expression.
        definition: The formula in words; only blocks that exist count.
        latex: LaTeX, in which `#1` stands for the value of block l of L.
        source: Where it was published.
    """

    name: str
    definition: str
    latex: str
    source: str = "lmscout; LPZero has only the mean"


@dataclass(frozen=True)
class Primitive:
    """One word of the language: what it takes and what it gives.

    Attributes:
        name: As it is written.
        takes: Types of its operands; "tensor" is a tensor of any stack, all of the same one.
        gives: Its type; "tensor" is that of its operands' stack.
        definition: In words.
        scalar: On tensors: whether the result is one number a tensor.
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

# What an input stands for in part, the gradient beside an input, and the configuration.
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

# name, upstream name, definition, guard, LaTeX, scalar, formula
UNARY: tuple[UnaryOperation, ...] = (
    UnaryOperation("log", "element_wise_log", "ln x", "0 where x <= 0",
                   r"\ln^{+}\left(#1\right)", False, log),
    UnaryOperation("abslog", "element_wise_abslog", "ln |x|", "0 where x = 0",
                   r"\ln\left|#1\right|", False, abslog),
    UnaryOperation("abs", "element_wise_abs", "|x|", _NONE,
                   r"\left|#1\right|", False, absolute),
    UnaryOperation("square", "element_wise_pow", "x^2", _NONE,
                   r"\left(#1\right)^{2}", False, square),
    UnaryOperation("exp", "element_wise_exp", "e^x", "overflows to infinity",
                   r"\exp\left(#1\right)", False, exp),
    UnaryOperation("normalize", "normalize", "(x - mean) / (std + 1e-9)",
                   "std as in the operation std; 0 for one element",
                   r"\operatorname{normalize}\left(#1\right)", False,
                   normalize),
    UnaryOperation("relu", "element_wise_relu", "max(x, 0)", _NONE,
                   r"\operatorname{ReLU}\left(#1\right)", False, relu),
    UnaryOperation("invert", "element_wise_invert", "1 / (x + 1e-9)", "0 where x + 1e-9 = 0",
                   r"\left(#1\right)^{-1}", False, invert),
    UnaryOperation("frobenius", "frobenius_norm", "sqrt(sum x^2)", _NONE,
                   r"\left\lVert #1\right\rVert_{F}", True, frobenius),
    UnaryOperation("meansum", "element_wise_normalized_sum", "(sum x) / n", _NONE,
                   r"\frac{1}{n}\sum\left(#1\right)", True, meansum),
    UnaryOperation("l1", "l1_norm", "(sum |x|) / n", _NONE,
                   r"\frac{1}{n}\left\lVert #1\right\rVert_{1}", True, l1),
    UnaryOperation("softmax", "softmax", "e^x / sum e^x over the first axis", "1 for a scalar",
                   r"\operatorname{softmax}\left(#1\right)", False, softmax),
    UnaryOperation("sigmoid", "sigmoid", "1 / (1 + e^-x)", _NONE,
                   r"\sigma\left(#1\right)", False, sigmoid),
    UnaryOperation("logsoftmax", "logsoftmax", "x - ln sum e^x over the first axis",
                   "0 for a scalar", r"\ln\operatorname{softmax}\left(#1\right)", False,
                   logsoftmax),
    UnaryOperation("sqrt", "element_wise_sqrt", "sqrt(x)", "0 where x < 0",
                   r"\sqrt{\left(#1\right)^{+}}", False, sqrt),
    UnaryOperation("negate", "element_wise_revert", "-x", _NONE,
                   r"-\left(#1\right)", False, negate),
    UnaryOperation("minmax", "min_max_normalize", "(x - min) / (max - min + 1e-9)",
                   "0 where all elements are equal",
                   r"\operatorname{minmax}\left(#1\right)", False, minmax),
    UnaryOperation("mean", "to_mean_scalar", "mean of the elements", _NONE,
                   r"\operatorname{mean}\left(#1\right)", True, mean),
    UnaryOperation("std", "to_std_scalar", "sqrt(sum (x - mean)^2 / (n - 1))",
                   "0 for one element",
                   r"\operatorname{std}\left(#1\right)", True, std),
    UnaryOperation("identity", "no_op", "x", _NONE, "#1", False, identity),
)

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

INPUT: Mapping[str, Input] = MappingProxyType({entry.name: entry for entry in INPUTS})
LEAF: Mapping[str, Input] = MappingProxyType(
    {entry.name: entry for entry in (*INPUTS, *_MORE_LEAVES)}
)
UNARY_OPERATION: Mapping[str, UnaryOperation] = MappingProxyType(
    {entry.name: entry for entry in UNARY}
)
AGGREGATION: Mapping[str, Aggregation] = MappingProxyType(
    {entry.name: entry for entry in AGGREGATIONS}
)

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
REDUCTIONS = ("average", "total")

# Unary operations that act element by element, so on a block value or a score as well.
ELEMENTWISE = (
    *("abs", "abslog", "exp", "invert", "log"),
    *("negate", "relu", "sigmoid", "sqrt", "square"),
)
SYNONYMS: Mapping[str, str] = MappingProxyType({"identity": "", "meansum": "mean"})
"""Operations of the published space that say what others say (or nothing), with these: no
search draws them."""

COMMUTATIVE = frozenset({"add", "mul", "+", "*"})
ARITHMETIC: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "+": lambda left, right: left + right,
        "-": lambda left, right: left - right,
        "*": lambda left, right: left * right,
        "/": lambda left, right: left * invert(right),
    }
)
TENSOR_ARITHMETIC: Mapping[str, str] = MappingProxyType(
    {"add": "+", "sub": "-", "mul": "*", "div": "/"}
)
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

# What searches draw from; the order is part of what a seed gives.
SEARCHED = tuple(one for one in PRIMITIVES if one.name not in SYNONYMS)
TENSOR_UNARY = tuple(one.name for one in SEARCHED if (one.takes, one.gives) == ((TENSOR,), TENSOR))
TENSOR_JOINS = tuple(TENSOR_ARITHMETIC)
AGGREGATES = tuple(one.name for one in SEARCHED if one.aggregates)

_DIGITS = re.compile(r"[0-9]+(\.[0-9]+)?")


def number_text(value: float) -> str:
    """The word for a number: its shortest digits, without an exponent.

    Args:
        value: Finite, and 0 or more; a negative number is subtracted.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value} is not a finite number of 0 or more")
    return np.format_float_positional(abs(value), trim="-")


def as_number(word: str) -> float | None:
    """The number that a word stands for; None where it is another word."""
    return float(word) if _DIGITS.fullmatch(word) else None


def reduce(chain: tuple[str, ...], tensor: Tensor) -> float:
    """Apply a chain of unary operations, innermost first, and take the mean of the result.

    This is the plain definition of what a branch of a published proxy reads from one tensor.
    The operations work in the tensor's own precision; the last mean accumulates in float64.

    Args:
        chain: Names of operations.
        tensor: A floating-point tensor of any shape.

    Returns:
        The mean; NaN where the chain has no value.

    Raises:
        LmscoutError: A name is not that of a unary operation.
    """
    value = tensor.detach()
    for name in chain:
        require_known("operation", name, UNARY_OPERATION)
        value = UNARY_OPERATION[name].apply(value)
    return float(value.mean(dtype=torch.float64))
