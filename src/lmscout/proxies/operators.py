"""The words of the proxy language: inputs, operations and aggregations, as literal tables.

The inputs, the twenty unary operations and the binary ones are LPZero's (Dong et al., arXiv
2410.04808, Table 1); names, guards and definitions here are lmscout's and exact.  A unary
operation acts on a tensor, the result of a chain of them is reduced to its mean, a binary
operation joins two such block values, and an aggregation over blocks makes the score.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmscout.proxies import formulas
from lmscout.proxies.spelling import require_known

Values = NDArray[np.float64]

_LPZERO = "LPZero, arXiv 2410.04808; lpzero/operators/unary_ops.py at c43210618e05"
_LPZERO_BINARY = "LPZero, arXiv 2410.04808; lpzero/operators/binary_ops.py"
_BLOCKS_MEAN = "LPZero, arXiv 2410.04808; lpzero/structures/tree.py"
_BLOCKS = "lmscout; LPZero has only the mean"
_NONE = "none: defined for every number"


@dataclass(frozen=True)
class Input:
    """One of the things that a proxy reads, block by block.

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
        source: Where it was published.
        scalar: The result is one number (a 0-dimensional tensor).
        formula: The definition in torch, for a finite tensor with at least one element.
    """

    name: str
    upstream: str
    definition: str
    guard: str
    latex: str
    source: str
    scalar: bool
    formula: Callable[[Tensor], Tensor]

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
    """A function of two block values.

    Attributes:
        name: Its name in JSON.
        symbol: Its sign in an expression.
        definition: The formula in words.
        latex: LaTeX, in which `#1` and `#2` stand for the operands.
        source: Where it was published.
        gives_score: The values are summed over blocks to the score itself, so that an
            aggregation has nothing left to do.
        apply: The function, elementwise on arrays of block values.
    """

    name: str
    symbol: str
    definition: str
    latex: str
    source: str
    gives_score: bool
    apply: Callable[[Values, Values], Values]


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
    source: str


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

# name, upstream name, definition, guard, LaTeX, source, scalar, formula
UNARY: tuple[UnaryOperation, ...] = (
    UnaryOperation("log", "element_wise_log", "ln x", "0 where x <= 0",
                   r"\ln^{+}\left(#1\right)", _LPZERO, False, formulas.log),
    UnaryOperation("abslog", "element_wise_abslog", "ln |x|", "0 where x = 0",
                   r"\ln\left|#1\right|", _LPZERO, False, formulas.abslog),
    UnaryOperation("abs", "element_wise_abs", "|x|", _NONE,
                   r"\left|#1\right|", _LPZERO, False, formulas.absolute),
    UnaryOperation("square", "element_wise_pow", "x^2", _NONE,
                   r"\left(#1\right)^{2}", _LPZERO, False, formulas.square),
    UnaryOperation("exp", "element_wise_exp", "e^x", "overflows to infinity",
                   r"\exp\left(#1\right)", _LPZERO, False, formulas.exp),
    UnaryOperation("normalize", "normalize", "(x - mean) / (std + 1e-9)",
                   "std as in the operation std; 0 for one element",
                   r"\operatorname{normalize}\left(#1\right)", _LPZERO, False,
                   formulas.normalize),
    UnaryOperation("relu", "element_wise_relu", "max(x, 0)", _NONE,
                   r"\operatorname{ReLU}\left(#1\right)", _LPZERO, False, formulas.relu),
    UnaryOperation("invert", "element_wise_invert", "1 / (x + 1e-9)", "0 where x + 1e-9 = 0",
                   r"\left(#1\right)^{-1}", _LPZERO, False, formulas.invert),
    UnaryOperation("frobenius", "frobenius_norm", "sqrt(sum x^2)", _NONE,
                   r"\left\lVert #1\right\rVert_{F}", _LPZERO, True, formulas.frobenius),
    UnaryOperation("meansum", "element_wise_normalized_sum", "(sum x) / n", _NONE,
                   r"\frac{1}{n}\sum\left(#1\right)", _LPZERO, True, formulas.meansum),
    UnaryOperation("l1", "l1_norm", "(sum |x|) / n", _NONE,
                   r"\frac{1}{n}\left\lVert #1\right\rVert_{1}", _LPZERO, True, formulas.l1),
    UnaryOperation("softmax", "softmax", "e^x / sum e^x over the first axis", "1 for a scalar",
                   r"\operatorname{softmax}\left(#1\right)", _LPZERO, False, formulas.softmax),
    UnaryOperation("sigmoid", "sigmoid", "1 / (1 + e^-x)", _NONE,
                   r"\sigma\left(#1\right)", _LPZERO, False, formulas.sigmoid),
    UnaryOperation("logsoftmax", "logsoftmax", "x - ln sum e^x over the first axis",
                   "0 for a scalar", r"\ln\operatorname{softmax}\left(#1\right)", _LPZERO, False,
                   formulas.logsoftmax),
    UnaryOperation("sqrt", "element_wise_sqrt", "sqrt(x)", "0 where x < 0",
                   r"\sqrt{\left(#1\right)^{+}}", _LPZERO, False, formulas.sqrt),
    UnaryOperation("negate", "element_wise_revert", "-x", _NONE,
                   r"-\left(#1\right)", _LPZERO, False, formulas.negate),
    UnaryOperation("minmax", "min_max_normalize", "(x - min) / (max - min + 1e-9)",
                   "0 where all elements are equal",
                   r"\operatorname{minmax}\left(#1\right)", _LPZERO, False, formulas.minmax),
    UnaryOperation("mean", "to_mean_scalar", "mean of the elements", _NONE,
                   r"\operatorname{mean}\left(#1\right)", _LPZERO, True, formulas.mean),
    UnaryOperation("std", "to_std_scalar", "sqrt(sum (x - mean)^2 / (n - 1))",
                   "0 for one element",
                   r"\operatorname{std}\left(#1\right)", _LPZERO, True, formulas.std),
    UnaryOperation("identity", "no_op", "x", _NONE, "#1", _LPZERO, False, formulas.identity),
)

BINARY: tuple[BinaryOperation, ...] = (
    BinaryOperation("sum", "+", "left + right, block by block", "#1 + #2",
                    _LPZERO_BINARY, False, np.add),
    BinaryOperation("difference", "-", "left - right, block by block", "#1 - #2",
                    _LPZERO_BINARY, False, np.subtract),
    BinaryOperation("product", "*", "left * right, block by block", r"#1 \cdot #2",
                    _LPZERO_BINARY, False, np.multiply),
    BinaryOperation("matrix_product", "@", "inner product over blocks: sum of left * right",
                    r"\sum_{\ell=1}^{L} #1 \cdot #2", _LPZERO_BINARY, True, np.multiply),
)

AGGREGATIONS: tuple[Aggregation, ...] = (
    Aggregation("mean", "mean over the blocks",
                r"\frac{1}{L}\sum_{\ell=1}^{L}\left(#1\right)", _BLOCKS_MEAN),
    Aggregation("sum", "sum over the blocks", r"\sum_{\ell=1}^{L}\left(#1\right)", _BLOCKS),
    Aggregation("max", "largest over the blocks", r"\max_{\ell}\left(#1\right)", _BLOCKS),
    Aggregation("min", "smallest over the blocks", r"\min_{\ell}\left(#1\right)", _BLOCKS),
)
# fmt: on

INPUT: Mapping[str, Input] = MappingProxyType({entry.name: entry for entry in INPUTS})
UNARY_OPERATION: Mapping[str, UnaryOperation] = MappingProxyType(
    {entry.name: entry for entry in UNARY}
)
BINARY_OPERATION: Mapping[str, BinaryOperation] = MappingProxyType(
    {entry.name: entry for entry in BINARY}
)
AGGREGATION: Mapping[str, Aggregation] = MappingProxyType(
    {entry.name: entry for entry in AGGREGATIONS}
)


def reduce(chain: tuple[str, ...], tensor: Tensor) -> float:
    """Apply a chain of unary operations, innermost first, and take the mean of the result.

    This is the plain definition of what a branch of a proxy reads from one tensor.  The
    operations work in the tensor's own precision; the last mean accumulates in float64.

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
