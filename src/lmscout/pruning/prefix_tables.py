"""Block values of any plan from one pass of the dense model: prefixes, tabulated.

One forward and one backward through a trained model, shown tensor by tensor.

What a proxy reads of an untrained architecture, here of the model whose units are sorted: each
tensor comes with the axis along which it follows units, so that a prefix of it is what a plan
keeps of it.

Means of every prefix of a tensor's units, all at once.

What a plan keeps of a tensor is its first units.  A sum over elements is then a sum over units,
and one cumulative sum gives it for every plan; so with norms and deviations, which are sums of
squares, with extremes, which accumulate, and with the two softmaxes, of which the mean needs the
number of rows or the logarithm of a cumulative sum.  `proxies.primitives` has the definitions.

Block values of subnetworks: one pass of the dense model, then look-ups for any number of plans.

A subnetwork is read at the dense model: its tensors are the first units of the dense ones, its
gradients those that the dense loss has there.  So what a plan keeps of a tensor depends on one
of its numbers alone, and a block value has as many values as a block has units.  Most are sums,
and all prefixes of them are tabulated while the pass runs; the others are computed by their
definition, once for each number of units that a plan asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.proxies import Expression
from lmscout.proxies.primitives import ELEMENTWISE, STACKS, TENSOR_JOINS, UNARY_OPERATION
from lmscout.pruning.families import ATTENTION, KINDS, MLP, Affine, Family, Sublayer
from lmscout.pruning.importance import loss_scale
from lmscout.pruning.plan import Floats, Rows, Shape, dense_row
from lmscout.statistics.deep_values import full_tensor, reduced
from lmscout.statistics.single_pass import train_only

BLOCK = "block"  # of a tensor that follows no units: it stays while anything of its block does


@dataclass(frozen=True)
class Place:
    """Tensors of one shape that stand in one place of a block.

    Attributes:
        block: which block.
        kind: "attention", "mlp", or "block" where the tensors follow no units.
        stack: of `proxies.primitives.STACKS`: "linear", "act", "hidden", "head" or "softmax".
        tensors: by leaf: "weight" and "grad", "act" and "act_grad", "jacob", "head", "softmax";
            in the model's dtype, but gradients of a float16 model, which are float32.
        axis: along which they follow units.
        units: how many there are; 1 where they follow none.
    """

    block: int
    kind: str
    stack: str
    tensors: Mapping[str, Tensor]
    axis: int
    units: int

    def first(self, count: int) -> dict[str, Tensor]:
        """What stays of the tensors where the first units are kept, as views."""
        if self.kind == BLOCK:
            return dict(self.tensors)
        return {
            name: one.narrow(self.axis, 0, one.shape[self.axis] // self.units * count)
            for name, one in self.tensors.items()
        }


See = Callable[[Place], None]


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in float32 or wider, as formulas want them: in float16 their guard of 1e-9 is 0."""
    return {
        name: one.to(torch.promote_types(one.dtype, torch.float32)) for name, one in tensors.items()
    }


class _Gradients:
    """Gradients of the loss, from those of a multiple of it."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self._finite: list[Tensor] = []

    def of_loss(self, gradient: Tensor) -> Tensor:
        """One of them; what overflowed is told by `finite`, so that no GPU is waited for here."""
        if self.scale == 1:
            return gradient
        self._finite.append(torch.isfinite(gradient).all())
        return gradient.float() / self.scale

    @property
    def finite(self) -> bool:
        """Whether none has overflowed so far."""
        return all(map(bool, self._finite))


def read_trained(model: PreTrainedModel, family: Family, tokens: Tensor, see: See) -> None:
    """Run one forward and one backward and show every tensor that a proxy may read.

    The loss is the mean next-token cross-entropy.  Weights are the model's own, seen through
    the family's views; a gradient is let go of as soon as it was shown, and so is all else
    that `see` does not keep.

    Args:
        model: its units in final order; left as it was found, without gradients.
        family: its family.
        tokens: [B, T] int64, on any device.
        see: called once a place.

    Raises:
        LmscoutError: the loss is not finite, or a gradient is not in float16.
    """
    tokens = tokens.to(model.device)
    gradients = _Gradients(loss_scale(model.dtype, tokens[:, 1:].numel()))
    with train_only(model, ()), torch.enable_grad():
        hidden = family.embed(model, tokens).detach().requires_grad_()
        context = family.context(model, hidden)
        for index, parts in enumerate(family.all_parts(model)):
            _watch(hidden, partial(_see_hidden, see, gradients, index))
            attention = parts.attention.with_maps(
                _learning_maps(see, gradients, index, ATTENTION, parts.attention)
            )
            normed = attention.norm(hidden)
            hidden = hidden + attention.output.apply(attention.inner(normed, context))
            with torch.no_grad():
                for one in parts.attention.inputs:
                    head = {"head": one.apply(normed)}
                    see(Place(index, ATTENTION, "head", head, 2, parts.attention.units))
                softmax = {"softmax": parts.attention.probabilities(normed, context)}
                see(Place(index, ATTENTION, "softmax", softmax, 1, parts.attention.units))
            mlp = parts.mlp.with_maps(_learning_maps(see, gradients, index, MLP, parts.mlp))
            normed = mlp.norm(hidden)
            act = mlp.activated(normed)
            _watch(act, partial(_see_activation, see, gradients, index, act.detach()))
            hidden = hidden + mlp.output.apply(mlp.gated(act, normed))
        logits = family.logits(model, hidden)[:, :-1].flatten(0, 1)
        loss = functional.cross_entropy(logits.float(), tokens[:, 1:].flatten())
        if not torch.isfinite(loss):
            raise LmscoutError(
                f"the model's loss on calibration text is {loss.item()}: is the model sound?"
            )
        torch.autograd.backward(loss * gradients.scale)
    if not gradients.finite:
        raise LmscoutError(
            "the model's gradients overflow in float16: read it in bfloat16 or float32 (--dtype)"
        )


def _watch(tensor: Tensor, see: Callable[[Tensor], None]) -> None:
    """Show a tensor's gradient when it arrives."""
    tensor.register_hook(see)  # type: ignore[no-untyped-call]


def _see_hidden(see: See, gradients: _Gradients, block: int, gradient: Tensor) -> None:
    see(Place(block, BLOCK, "hidden", {"jacob": gradients.of_loss(gradient.detach())}, 0, 1))


def _see_activation(
    see: See, gradients: _Gradients, block: int, act: Tensor, gradient: Tensor
) -> None:
    tensors = {"act": act, "act_grad": gradients.of_loss(gradient.detach())}
    see(Place(block, MLP, "act", tensors, 2, act.shape[2]))


def _learning_maps(
    see: See, gradients: _Gradients, block: int, kind: str, part: Sublayer
) -> list[Affine]:
    """The maps of attention or MLP, in the order of `Sublayer.maps`."""
    rows = partial(_learning, see, gradients, block, kind, 0, part.units)
    columns = partial(_learning, see, gradients, block, kind, 1, part.units)
    return [*map(rows, part.inputs), columns(part.output)]


def _learning(
    see: See,
    gradients: _Gradients,
    block: int,
    kind: str,
    axis: int,
    units: int,
    affine: Affine,
) -> Affine:
    """The same map, its weight a leaf of the graph whose gradient is shown and dropped."""

    def arrived(weight: Tensor) -> None:
        if weight.grad is not None:
            tensors = {"weight": weight.detach(), "grad": gradients.of_loss(weight.grad)}
            see(Place(block, kind, "linear", tensors, axis, units))
            weight.grad = None

    leaf = affine.weight.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]
    return Affine(leaf, affine.bias)


Prefixes = npt.NDArray[np.float64]

_MEANS = {"identity": "identity", "mean": "identity", "meansum": "identity", "l1": "abs"}
_EPS = 1e-9  # as in the published operations


@torch.no_grad()
def prefix_means(tensor: Tensor, axis: int, units: int, operations: Sequence[str]) -> Prefixes:
    """Mean of unary operations of the first units of a tensor, for every number of units.

    Args:
        tensor: finite; at least one element a unit.
        axis: along which it follows units, each an equal run of entries.
        units: how many.
        operations: names of unary operations.

    Returns:
        [operations, units + 1] float64; 0 where no unit is kept.
    """
    means = _Prefixes(tensor, axis, units)
    table = np.zeros((len(operations), units + 1))
    for row, name in enumerate(operations):
        table[row, 1:] = means.of(name)
    return table


class _Prefixes:
    """One tensor, and what its operations share; every result is [units]."""

    def __init__(self, tensor: Tensor, axis: int, units: int) -> None:
        self._tensor, self._axis, self._units = tensor, axis, units
        self._by_unit = tensor.movedim(axis, 0).reshape(units, -1)
        self._count = np.arange(1, units + 1) * self._by_unit.shape[1]
        rows = tensor.shape[0]
        self._rows = np.full(units, rows)
        if axis == 0:
            self._rows = np.arange(1, units + 1) * (rows // units)
        self._mean = self._sums(self._by_unit) / self._count

    def of(self, name: str) -> Prefixes:
        """Means of one operation."""
        own: dict[str, Callable[[], Prefixes]] = {
            "normalize": lambda: np.zeros(self._units),
            "softmax": lambda: 1.0 / self._rows,
            "logsoftmax": lambda: np.where(self._rows > 1, self._mean - self._log_sum_exp(), 0.0),
            "minmax": self._between_extremes,
            "frobenius": lambda: np.sqrt(self._sums(self._by_unit, power=2)),
            "std": self._deviation,
        }
        if name in own:
            return own[name]()
        formula = UNARY_OPERATION[_MEANS.get(name, name)].formula
        return self._sums(formula(self._by_unit)) / self._count

    def _between_extremes(self) -> Prefixes:
        low = np.minimum.accumulate(_numbers(self._by_unit.amin(1)))
        high = np.maximum.accumulate(_numbers(self._by_unit.amax(1)))
        return np.asarray((self._mean - low) / (high - low + _EPS))

    def _deviation(self) -> Prefixes:
        # About a centre near all of the means, so that little cancels.
        centre = self._mean[-1]
        squares = self._sums(self._by_unit, power=2, less=centre)
        squares -= self._count * (self._mean - centre) ** 2
        return np.sqrt(np.maximum(squares, 0.0) / np.maximum(self._count - 1, 1))

    def _log_sum_exp(self) -> Prefixes:
        """Mean over columns of the logarithm of the sum of exponentials over rows."""
        tensor = self._tensor
        if self._axis == 0:
            each = tensor.shape[0] // self._units
            last = tensor.flatten(1).double().logcumsumexp(0)[each - 1 :: each]
            return _numbers(last.mean(1))
        columns = tensor.logsumexp(0).movedim(self._axis - 1, 0).reshape(self._units, -1)
        return self._sums(columns) / (np.arange(1, self._units + 1) * columns.shape[1])

    def _sums(self, by_unit: Tensor, power: int = 1, less: float = 0.0) -> Prefixes:
        """Sums over the first units of [units, n]."""
        if power == 2:
            by_unit = (by_unit.double() - less).square()
        return np.cumsum(_numbers(by_unit.sum(1, dtype=torch.float64)))


def _numbers(tensor: Tensor) -> Prefixes:
    return np.asarray(tensor.double().cpu().numpy(), np.float64)


Tensors = Mapping[str, Tensor]
ByDefinition = Callable[[Place, int], float]

_PARTS = {"mixer": ATTENTION, "mlp": MLP}  # stacks that are a half of the linear one


class BlockTable:
    """One block value for every number of units that a block may keep."""

    def __init__(self, shape: Shape, *, mean: bool, by_definition: ByDefinition) -> None:
        """Begin with no tensor.

        Args:
            shape: of the dense model.
            mean: whether a block's value is the mean over its tensors, not the sum.
            by_definition: what the first units of a place's tensors are worth.
        """
        self._depth, self._mean, self._define = shape.depth, mean, by_definition
        units = dense_row(shape)
        self._starts = np.cumsum([0, *(units[:-1] + 1)])
        self._values = np.zeros(int((units + 1).sum()))
        self._column = np.repeat(np.arange(len(units)), units + 1)
        self._unknown = np.zeros(len(self._values), np.bool_)
        self._places: dict[int, list[Place]] = {}
        self._whole = np.zeros(shape.depth)  # of tensors that follow no units
        self._counts = np.zeros((3, shape.depth))  # of tensors: attention, MLP, neither

    def add(self, place: Place, values: Floats | None) -> None:
        """Take a place.

        Args:
            place: where they are; copied, where there are no values.
            values: [units + 1] of its tensors by how many units are kept, the first 0; None
                to compute each when it is asked for.
        """
        if place.kind == BLOCK:
            self._counts[2, place.block] += 1
            self._whole[place.block] += (
                self._define(place, 1) if values is None else float(values[1])
            )
            return
        sublayer = KINDS.index(place.kind)
        self._counts[sublayer, place.block] += 1
        column = sublayer * self._depth + place.block
        here = slice(self._starts[column], self._starts[column] + place.units + 1)
        if values is not None:
            self._values[here] += values
            return
        self._places.setdefault(column, []).append(_kept(place))
        self._unknown[here][1:] = True

    def block_values(self, rows: Rows) -> Floats:
        """Values of plans, [n, 2L] to [n, L]; 0 where a block keeps none of the tensors."""
        index = rows + self._starts
        if self._places:
            for entry in np.unique(index[self._unknown[index]]):
                self._compute(int(entry))
        kept = (rows > 0).reshape(len(rows), 2, self._depth)
        there = kept.any(axis=1)
        total = self._values[index].reshape(kept.shape).sum(axis=1) + there * self._whole
        if not self._mean:
            return np.asarray(total)
        counts = (kept * self._counts[:2]).sum(axis=1) + there * self._counts[2]
        return np.asarray(total / np.maximum(counts, 1))

    def _compute(self, entry: int) -> None:
        column = int(self._column[entry])
        count = entry - int(self._starts[column])
        self._values[entry] += sum(self._define(one, count) for one in self._places[column])
        self._unknown[entry] = False


@dataclass(frozen=True)
class _Summed:
    """A reduction of which all prefixes follow from sums: an operation on an elementwise tree."""

    node: Expression
    inner: Expression
    operation: str


def tabulate(
    model: PreTrainedModel,
    family: Family,
    shape: Shape,
    tokens: Tensor,
    reductions: Collection[Expression],
) -> dict[Expression, BlockTable]:
    """Tabulate block values in one pass.

    Args:
        model: the dense model, its units in final order; left as it was found.
        family: its family.
        shape: its units.
        tokens: [B, T] int64.
        reductions: trees that are an `average` or a `total` of tensors.

    Raises:
        LmscoutError: the loss is not finite.
    """
    tables = {
        node: BlockTable(shape, mean=node.name == "average", by_definition=_definition(node))
        for node in reductions
    }

    def see(place: Place) -> None:
        mine = [node for node in tables if _reads(node, place)]
        summed = [one for node in mine if (one := _summed(node)) is not None]
        tensors = _named(widened(place.tensors), mine)
        for inner in dict.fromkeys(one.inner for one in summed):
            tensor = full_tensor(inner, tensors)
            alike = [one for one in summed if one.inner == inner]
            for one, values in zip(alike, _values(tensor, place, alike), strict=True):
                tables[one.node].add(place, values)
        for node in mine:
            if _summed(node) is None:
                tables[node].add(place, None)

    read_trained(model, family, tokens, see)
    return tables


def _values(tensor: Tensor, place: Place, asked: Sequence[_Summed]) -> Iterable[Floats | None]:
    """Tables of one tensor; none where it is not finite, so that some prefixes may be."""
    if not bool(torch.isfinite(tensor).all()):
        return [None] * len(asked)
    names = [one.operation for one in asked]
    means = prefix_means(tensor, place.axis, place.units, names)
    count = np.arange(place.units + 1) * (tensor.numel() // place.units)
    return [
        row * count
        if one.node.name == "total" and not UNARY_OPERATION[one.operation].scalar
        else row
        for one, row in zip(asked, means, strict=True)
    ]


def _summed(node: Expression) -> _Summed | None:
    (operand,) = node.operands
    if _elementwise(operand):
        return _Summed(node, operand, "identity")
    if operand.name in UNARY_OPERATION and _elementwise(operand.operands[0]):
        return _Summed(node, operand.operands[0], operand.name)
    return None


def _elementwise(node: Expression) -> bool:
    if not node.operands:
        return True
    return (node.name in ELEMENTWISE or node.name in TENSOR_JOINS) and all(
        map(_elementwise, node.operands)
    )


def _reads(node: Expression, place: Place) -> bool:
    stack = node.operands[0].type
    if stack in _PARTS:
        return place.stack == "linear" and place.kind == _PARTS[stack]
    return place.stack == stack


def _named(tensors: Tensors, nodes: Iterable[Expression]) -> dict[str, Tensor]:
    """Tensors under the names that their leaves have in any of the stacks asked for."""
    named = dict(tensors)
    for stack in {node.operands[0].type for node in nodes} & _PARTS.keys():
        named |= dict(zip(STACKS[stack], (tensors["weight"], tensors["grad"]), strict=True))
    return named


def _definition(node: Expression) -> ByDefinition:
    (operand,) = node.operands

    def value(place: Place, count: int) -> float:
        with torch.no_grad():
            tensors = _named(widened(place.first(count)), [node])
            return reduced(node.name, [full_tensor(operand, tensors)])

    return value


def _kept(place: Place) -> Place:
    """The same with tensors that outlive the pass: weights stay views, the rest is copied."""
    own = {
        name: one if name == "weight" else one.detach().clone()
        for name, one in place.tensors.items()
    }
    return Place(place.block, place.kind, place.stack, own, place.axis, place.units)
