"""Tensor operations of the deep language on samples of many tensors at once.

A tree is compiled into steps, which run over pieces of 2 MiB that stay in the cache.  An operation
that needs the whole tensor is estimated from the sample, or exact on a leaf.

A tensor with a NaN or an infinity has no value.  Most operations propagate an infinity to the
result; before one that could turn it into a finite number, its operand is summed, and searched
only if the sum is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lmscout.proxies import Expression, simplified
from lmscout.proxies.primitives import EPSILON, abslog, log, positive_or_one, without_noise
from lmscout.statistics.sketches import MOMENTS

# Operations that can make a finite number of an infinity.
_SWALLOW = frozenset({"exp", "log", "relu", "invert", "sigmoid", "sqrt", "softmax"})
# Operations that make no infinity of finite numbers, and propagate one.
_PROPAGATE = frozenset({"abs", "negate", "abslog", "logsoftmax", "minmax"})


@dataclass(frozen=True, eq=False)
class Piece:
    """Some tensors of one stack, sampled in one shape, that are computed together."""

    samples: Mapping[str, Tensor]  # leaf -> [n, height * width] float64
    moments: Mapping[str, Tensor]  # leaf -> [n, 6] float64, in the order of `sketches.MOMENTS`
    broken: Mapping[str, Tensor]  # leaf -> [n] bool, if there are tensors that are not finite
    height: int  # rows of a sample
    elements: Tensor  # [n] float64, number of elements of the whole tensor
    share: Tensor  # [n, 1, 1] float64, sampled rows per row

    def moment(self, leaf: str, name: str) -> Tensor:
        """An exact number of each tensor: [n, 1]."""
        place = MOMENTS.index(name)
        return self.moments[leaf][:, place : place + 1]


Broken = list[Tensor]
Run = Callable[[Piece, Broken], Tensor]
Operation = Callable[[Tensor, Piece], Tensor]


@dataclass(frozen=True)
class Step:
    """A compiled tree of tensor operations.

    `run` gives [n, height * width], or [n, 1] for one number per tensor; it appends masks [n] of
    tensors without a value to the list that it is given.
    """

    run: Run
    single: bool  # whether it gives one number per tensor
    risky: bool  # whether it may hold a NaN or an infinity


@dataclass(frozen=True, eq=False)
class Reduction:
    """A compiled `average(...)` or `total(...)`."""

    run: Callable[[Piece], Tensor]  # [n] numbers, not finite for a tensor without a value
    of_sample: bool  # whether these are sums over the sample, to be divided by its elements
    of_tensor: bool  # whether the result is a mean, to be multiplied by the tensor's elements


def reduction(node: Expression) -> Reduction:
    """Compile `average(...)` or `total(...)`."""
    (operand,) = simplified(node).operands
    step = compiled(operand) if operand.operands else None
    single = step is not None and step.single

    def run(piece: Piece) -> Tensor:
        broken = [piece.broken[leaf] for leaf in operand.leaves if leaf in piece.broken]
        if step is None:
            sums = piece.moment(operand.name, "mean")[:, 0]
        else:
            sums = _sums(step.run(piece, broken))[:, 0]
        return sums.masked_fill(torch.stack(broken).any(0), math.nan) if broken else sums

    return Reduction(run, step is not None and not single, node.name == "total" and not single)


@lru_cache(1 << 12)
def compiled(node: Expression) -> Step:
    """Compile a tree of tensor operations."""
    if not node.operands:
        return Step(lambda piece, _: piece.samples[node.name], False, False)
    if len(node.operands) == 2:
        return _binary(node.name, *map(compiled, node.operands))
    (operand,) = node.operands
    if not operand.operands:
        if node.name in MOMENTS:
            return Step(lambda piece, _: piece.moment(operand.name, node.name), True, True)
        if node.name in _FROM_MOMENTS:
            exact = _FROM_MOMENTS[node.name]
            return Step(lambda piece, _: exact(piece, operand.name), False, True)
    return _unary(node, compiled(operand))


def _unary(node: Expression, inner: Step) -> Step:
    name = node.name
    operation, checked = _OPERATIONS[name], inner.risky and name in _SWALLOW
    if inner.single and name in _OF_ONE_NUMBER:
        operation, checked = _OF_ONE_NUMBER[name], inner.risky

    def run(piece: Piece, broken: Broken) -> Tensor:
        x = inner.run(piece, broken)
        if checked:
            _note_broken(x, broken)
        return operation(x, piece)

    overflows = name == "exp" or (name not in _SWALLOW and name not in _PROPAGATE)
    risky = overflows or (inner.risky and name in _PROPAGATE)
    return Step(run, node.word.scalar or inner.single, risky)


def _binary(name: str, left: Step, right: Step) -> Step:
    def run(piece: Piece, broken: Broken) -> Tensor:
        x, y = left.run(piece, broken), right.run(piece, broken)
        if name == "div":
            if right.risky:
                _note_broken(y, broken)
            y = _invert(y, piece)
        return _BINARY[name](x, y)

    return Step(run, left.single and right.single, True)


def _note_broken(x: Tensor, broken: Broken) -> None:
    """Append the mask of the tensors that hold a NaN or an infinity, if there are any."""
    if not math.isfinite(x.sum().item()):
        broken.append(~torch.isfinite(x).all(1))


def _mean(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)


def _sums(x: Tensor) -> Tensor:
    """Sums [n, 1]; 0 where the terms cancel, as in the definition."""
    sums: Tensor = x.sum(1, keepdim=True)
    # By Cauchy and Schwarz, no sum above this bound is noise; few are below it.
    near = (sums.abs() < _norms(x) * (1e-9 * math.sqrt(x.shape[1])))[:, 0]
    if bool(near.any()):
        sums[near] = without_noise(sums[near], x[near].abs().sum(1, keepdim=True))
    return sums


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return norms


def _frobenius(x: Tensor, piece: Piece) -> Tensor:
    return _norms(x) * (piece.elements[:, None] / x.shape[1]).sqrt()


def _centred_std(x: Tensor) -> Tensor:
    """Standard deviation of values from which the mean was subtracted: [n, 1]."""
    n = x.shape[1]
    squares = _norms(x).square() - n * _mean(x).square()  # the mean was rounded
    return (squares.clamp(min=0) / max(n - 1, 1)).sqrt()


def _normalize(x: Tensor, piece: Piece) -> Tensor:
    centred = x - _mean(x)
    return centred.div_(_centred_std(centred) + EPSILON)


def _minmax(x: Tensor, piece: Piece) -> Tensor:
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return (x - low).div_(high - low + EPSILON)


def _normalized_leaf(piece: Piece, leaf: str) -> Tensor:
    x = piece.samples[leaf] - piece.moment(leaf, "mean")
    return x.div_(piece.moment(leaf, "std") + EPSILON)


def _minmax_leaf(piece: Piece, leaf: str) -> Tensor:
    low, high = piece.moment(leaf, "low"), piece.moment(leaf, "high")
    return (piece.samples[leaf] - low).div_(high - low + EPSILON)


def _sqrt(x: Tensor, piece: Piece) -> Tensor:
    positive = torch.gt(x, 0.0, out=torch.empty_like(x))
    return positive_or_one(x).sqrt_().mul_(positive)


def _invert(x: Tensor, piece: Piece) -> Tensor:
    inverse = (x + EPSILON).reciprocal_()
    if not math.isfinite(inverse.sum().item()):
        inverse.masked_fill_(inverse.isinf(), 0.0)  # a pole: the operand is finite
    return inverse


def _softmax(x: Tensor, piece: Piece) -> Tensor:
    columns = x.view(len(x), piece.height, -1)
    return torch.softmax(columns, 1).mul_(piece.share).view(len(x), -1)


def _logsoftmax(x: Tensor, piece: Piece) -> Tensor:
    columns = x.view(len(x), piece.height, -1)
    return torch.log_softmax(columns, 1).add_(piece.share.log()).view(len(x), -1)


def _zero(x: Tensor, piece: Piece) -> Tensor:
    return torch.zeros_like(x)


_BINARY: Mapping[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.mul,  # by the inverse
}
_OPERATIONS: Mapping[str, Operation] = {
    "abs": lambda x, _: x.abs(),
    "abslog": lambda x, _: abslog(x),
    "exp": lambda x, _: x.exp(),
    "frobenius": _frobenius,
    "invert": _invert,
    "l1": lambda x, _: _mean(x.abs()),
    "log": lambda x, _: log(x),
    "logsoftmax": _logsoftmax,
    "mean": lambda x, _: _sums(x) / x.shape[1],
    "minmax": _minmax,
    "negate": lambda x, _: x.neg(),
    "normalize": _normalize,
    "relu": lambda x, _: x.clamp(min=0.0),
    "sigmoid": lambda x, _: x.sigmoid(),
    "softmax": _softmax,
    "sqrt": _sqrt,
    "square": lambda x, _: x * x,
    "std": lambda x, _: _centred_std(x - _mean(x)),
}
# On one number, which is a whole tensor: nothing is estimated.
_OF_ONE_NUMBER: Mapping[str, Operation] = {
    "frobenius": _OPERATIONS["abs"],
    "l1": _OPERATIONS["abs"],
    "logsoftmax": _zero,
    "mean": lambda x, _: x,
    "minmax": _zero,
    "normalize": _zero,
    "softmax": lambda x, _: torch.ones_like(x),
    "std": _zero,
}
_FROM_MOMENTS: Mapping[str, Callable[[Piece, str], Tensor]] = {
    "minmax": _minmax_leaf,
    "normalize": _normalized_leaf,
}
