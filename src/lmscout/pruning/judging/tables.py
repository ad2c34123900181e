"""Block values of subnetworks: one pass of the dense model, then look-ups for any number of plans.

A subnetwork is read at the dense model: its tensors are the first units of the dense ones, its
gradients those that the dense loss has there.  So what a plan keeps of a tensor depends on one
of its numbers alone, and a block value has as many values as a block has units.  Most are sums,
and all prefixes of them are tabulated while the pass runs; the others are computed by their
definition, once for each number of units that a plan asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.proxies import Expression
from lmscout.proxies.primitives import ELEMENTWISE, STACKS, TENSOR_JOINS, UNARY_OPERATION
from lmscout.pruning.families import ATTENTION, KINDS, MLP, Family
from lmscout.pruning.judging.prefixes import prefix_means
from lmscout.pruning.judging.reading import BLOCK, Place, read_trained, widened
from lmscout.pruning.subnetworks.plan import Shape
from lmscout.pruning.subnetworks.plan_arrays import Floats, Rows, dense_row
from lmscout.statistics.deep_values import full_tensor, reduced

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
        half = KINDS.index(place.kind)
        self._counts[half, place.block] += 1
        column = half * self._depth + place.block
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
