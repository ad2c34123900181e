"""The tensor words of the deep language on samples of many tensors at once.

A tree is compiled once into steps, which then run over pieces of 1 MiB a tensor: what a step
makes stays in a cache, and the next step overwrites it.  What looks at a whole tensor
is estimated from the sample, or exact where it looks at a leaf.

The language's rule, that a tensor with a NaN or an infinity has no value, costs almost
nothing here.  Most words hand an infinity on, so that it shows in the end; before a word that
could swallow one, what may hold one is summed, and only a sum that is not finite is looked into.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmscout.proxies import Expression, simplified
from lmscout.proxies.primitives import EPSILON
from lmscout.statistics.sketches import MOMENTS

_SAFE = (1e-15, 1e15)  # between them lie norms whose squares float32 can sum

# Words that can make a finite number of an infinity.
_SWALLOW = frozenset({"exp", "log", "relu", "invert", "sigmoid", "sqrt", "softmax"})
# Words that make no infinity of finite numbers, and hand one on.
_HAND_ON = frozenset({"abs", "negate", "abslog", "logsoftmax", "minmax"})


@dataclass(frozen=True, eq=False)
class Piece:
    """Some tensors of one stack, sampled in one shape, that are computed together.

    Attributes:
        samples: leaf -> [n, height * width] float32.
        moments: leaf -> [n, 6] float32, as in `sketches.MOMENTS`.
        broken: leaf -> [n] bool, where there are tensors with a NaN or an infinity.
        height: rows of a sample.
        elements: [n] float64, true number of elements.
        share: [n, 1, 1] float32, sampled rows per true row.
    """

    samples: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    broken: Mapping[str, Tensor]
    height: int
    elements: Tensor
    share: Tensor

    def moment(self, leaf: str, name: str) -> Tensor:
        """An exact number of each tensor: [n, 1]."""
        place = MOMENTS.index(name)
        return self.moments[leaf][:, place : place + 1]


Spoilt = list[Tensor]
Run = Callable[[Piece, Spoilt], Tensor]
# (operand, where the result may be written, piece) -> result
Operation = Callable[[Tensor, Tensor, Piece], Tensor]


@dataclass(frozen=True)
class Step:
    """A compiled tree of tensor words.

    Attributes:
        run: gives [n, height * width], or [n, 1] for one number a tensor; appends masks [n]
            of tensors that have no value to the list it is given.
        single: whether it is one number a tensor.
        fresh: whether the result may be overwritten.
        risky: whether it may hold a NaN or an infinity.
    """

    run: Run
    single: bool
    fresh: bool
    risky: bool


@dataclass(frozen=True, eq=False)
class Reduction:
    """A compiled `average(...)` or `total(...)`.

    Attributes:
        run: maps a piece to [n] numbers, NaN or infinite where a tensor has no value.
        of_sample: whether these are sums over the sample, to be divided by its elements.
        of_tensor: whether what comes then is a mean, to be multiplied by the tensor's elements.
    """

    run: Callable[[Piece], Tensor]
    of_sample: bool
    of_tensor: bool


def reduction(node: Expression) -> Reduction:
    """Compile `average(...)` or `total(...)`."""
    (operand,) = simplified(node).operands
    step = None if not operand.operands else compiled(operand)
    single = step is not None and step.single

    def run(piece: Piece) -> Tensor:
        spoilt = [piece.broken[leaf] for leaf in operand.leaves if leaf in piece.broken]
        if step is None:
            sums = piece.moment(operand.name, "mean")[:, 0]
        else:
            sums = _row_sums(step.run(piece, spoilt))
        if spoilt:
            sums = sums.masked_fill(torch.stack(spoilt).any(0), math.nan)
        return sums

    return Reduction(run, step is not None and not single, node.name == "total" and not single)


def compiled(node: Expression) -> Step:
    """Compile a tree of tensor words."""
    if not node.operands:
        return Step(lambda piece, _: piece.samples[node.name], False, False, False)
    if len(node.operands) == 2:
        return _joined(node.name, *map(compiled, node.operands))
    (operand,) = node.operands
    if not operand.operands:
        if node.name in MOMENTS:
            return Step(lambda piece, _: piece.moment(operand.name, node.name), True, False, True)
        if node.name in _FROM_MOMENTS:
            exactly = _FROM_MOMENTS[node.name]
            return Step(lambda piece, _: exactly(piece, operand.name), False, True, True)
    return _unary(node, compiled(operand))


def _unary(node: Expression, inner: Step) -> Step:
    name = node.name
    operation = _OPERATIONS[name]
    looked_into = inner.risky and name in _SWALLOW
    if inner.single and name in _OF_ONE_NUMBER:
        operation = _OF_ONE_NUMBER[name]
        looked_into = inner.risky

    def run(piece: Piece, spoilt: Spoilt) -> Tensor:
        x = inner.run(piece, spoilt)
        if looked_into:
            _look_into(x, spoilt)
        return operation(x, x if inner.fresh else torch.empty_like(x), piece)

    overflows = name == "exp" or (name not in _SWALLOW and name not in _HAND_ON)
    risky = overflows or (inner.risky and name in _HAND_ON)
    return Step(run, node.word.scalar or inner.single, True, risky)


def _joined(name: str, left: Step, right: Step) -> Step:
    single = left.single and right.single
    looked_into = name == "div" and right.risky
    join = _JOINS[name]

    def run(piece: Piece, spoilt: Spoilt) -> Tensor:
        x, y = left.run(piece, spoilt), right.run(piece, spoilt)
        fresh = right.fresh
        if name == "div":
            if looked_into:
                _look_into(y, spoilt)
            y = _invert(y, y if fresh else torch.empty_like(y), piece)
            fresh = True
        if left.fresh and left.single == single:
            return join(x, y, x)
        if fresh and right.single == single:
            return join(x, y, y)
        return join(x, y, torch.empty_like(x if x.shape[1] >= y.shape[1] else y))

    return Step(run, single, True, True)


def _look_into(x: Tensor, spoilt: Spoilt) -> None:
    """Note the tensors that hold a NaN or an infinity."""
    if not math.isfinite(x.sum().item()):
        spoilt.append(~torch.isfinite(x).all(1))


def _row_sums(x: Tensor) -> Tensor:
    """[n] float32, or float64 where float32 does not hold a sum."""
    sums = x.sum(1)
    return sums if math.isfinite(sums.sum().item()) else x.double().sum(1)


def _row_means(x: Tensor) -> Tensor:
    """[n] float64."""
    return _row_sums(x).double() / x.shape[1]


def _row_norms(x: Tensor) -> Tensor:
    """Square roots of the sums of squares: [n] float64."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1)
    if norms.amin().item() < _SAFE[0] or not norms.amax().item() < _SAFE[1]:
        norms = torch.linalg.vector_norm(x.double(), dim=1)
    return norms.double()


def _mean(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    return _row_means(x).float()[:, None]


def _l1(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    return _row_means(torch.abs(x, out=out)).float()[:, None]


def _frobenius(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    return (_row_norms(x) * (piece.elements / x.shape[1]).sqrt()).float()[:, None]


def _centred_std(x: Tensor) -> Tensor:
    """Standard deviation of what the mean was taken from: [n, 1]."""
    n = x.shape[1]
    rest = _row_means(x)  # the mean was rounded
    squares = _row_norms(x).square() - n * rest.square()
    return (squares.clamp(min=0) / max(n - 1, 1)).sqrt().float()[:, None]


def _std(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    return _centred_std(torch.sub(x, _mean(x, out, piece), out=out))


def _normalize(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    torch.sub(x, _mean(x, out, piece), out=out)
    return out.div_(_centred_std(out) + EPSILON)


def _minmax(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return torch.sub(x, low, out=out).div_(high - low + EPSILON)


def _normalized_leaf(piece: Piece, leaf: str) -> Tensor:
    x = piece.samples[leaf] - piece.moment(leaf, "mean")
    return x.div_(piece.moment(leaf, "std") + EPSILON)


def _minmax_leaf(piece: Piece, leaf: str) -> Tensor:
    low, high = piece.moment(leaf, "low"), piece.moment(leaf, "high")
    return (piece.samples[leaf] - low).div_(high - low + EPSILON)


def _positive(x: Tensor) -> Tensor:
    """The number where it is positive, else 1: logarithms and roots of others are slow."""
    positive: Tensor = torch.threshold(x, 0.0, 1.0)  # `where` is slow too
    return positive


def _log(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    return _positive(x).log_()


def _abslog(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    return _positive(torch.abs(x, out=out)).log_()


def _sqrt(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    positive = torch.gt(x, 0.0, out=torch.empty_like(x))
    return _positive(x).sqrt_().mul_(positive)


def _invert(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    torch.add(x, EPSILON, out=out).reciprocal_()
    if not math.isfinite(out.sum().item()):
        out.masked_fill_(out.isinf(), 0.0)  # a pole: the operand is finite
    return out


def _softmax(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    columns = x.view(len(x), piece.height, -1)
    return torch.softmax(columns, 1).mul_(piece.share).view(len(x), -1)


def _logsoftmax(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    columns = x.view(len(x), piece.height, -1)
    return torch.log_softmax(columns, 1).add_(piece.share.log()).view(len(x), -1)


def _zero(x: Tensor, out: Tensor, piece: Piece) -> Tensor:
    return out.zero_()


_JOINS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "add": lambda x, y, out: torch.add(x, y, out=out),
    "sub": lambda x, y, out: torch.sub(x, y, out=out),
    "mul": lambda x, y, out: torch.mul(x, y, out=out),
    "div": lambda x, y, out: torch.mul(x, y, out=out),  # y is inverted already
}
_OPERATIONS: Mapping[str, Operation] = {
    "abs": lambda x, out, _: torch.abs(x, out=out),
    "abslog": _abslog,
    "exp": lambda x, out, _: torch.exp(x, out=out),
    "frobenius": _frobenius,
    "invert": _invert,
    "l1": _l1,
    "log": _log,
    "logsoftmax": _logsoftmax,
    "mean": _mean,
    "minmax": _minmax,
    "negate": lambda x, out, _: torch.neg(x, out=out),
    "normalize": _normalize,
    "relu": lambda x, out, _: torch.clamp(x, min=0.0, out=out),
    "sigmoid": lambda x, out, _: torch.sigmoid(x, out=out),
    "softmax": _softmax,
    "sqrt": _sqrt,
    "square": lambda x, out, _: torch.mul(x, x, out=out),
    "std": _std,
}
# On one number, which is a whole tensor: there is nothing to estimate.
_OF_ONE_NUMBER: Mapping[str, Operation] = {
    "frobenius": _OPERATIONS["abs"],
    "l1": _OPERATIONS["abs"],
    "logsoftmax": _zero,
    "mean": lambda x, out, _: out.copy_(x),
    "minmax": _zero,
    "normalize": _zero,
    "softmax": lambda x, out, _: out.fill_(1.0),
    "std": _zero,
}
_FROM_MOMENTS: Mapping[str, Callable[[Piece, str], Tensor]] = {
    "minmax": _minmax_leaf,
    "normalize": _normalized_leaf,
}
