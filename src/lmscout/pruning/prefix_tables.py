"""Block values of subnetworks by look-up, from one pass of the dense model.

A plan keeps the first units of every tensor of a trained model whose units are sorted, and
gradients are those of the dense loss.  So a block value depends on one number of a plan only.
Most operations are sums over elements, and one cumulative sum gives them for every prefix;
others are computed by definition for each number of units that a plan keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.proxies import Expression
from lmscout.proxies.primitives import ELEMENTWISE, STACKS, TENSOR_JOINS, UNARY_OPERATION
from lmscout.pruning.families import (
    ATTENTION,
    KINDS,
    MLP,
    Affine,
    Attention,
    Family,
    Mixture,
    Mlp,
    Sublayer,
)
from lmscout.pruning.importance import loss_scale
from lmscout.pruning.plan import Floats, Rows, Shape, dense_row
from lmscout.statistics.deep_values import full_tensor, reduced
from lmscout.statistics.single_pass import train_only

BLOCK = "block"  # kind of a tensor without units: it exists while its block does
_EPS = 1e-9  # as in the published operations
_MEANS = {"identity": "identity", "mean": "identity", "meansum": "identity", "l1": "abs"}
_PARTS = {"mixer": ATTENTION, "mlp": MLP}  # stack -> part of the linear stack
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Place:
    """Tensors of one shape in one place of a block."""

    block: int  # its number
    kind: str  # "attention", "mlp", or "block" for tensors without units
    stack: str  # of `proxies.primitives.STACKS`: "linear", "act", "hidden", "head", "softmax"
    tensors: Tensors  # by leaf, in the model's dtype; gradients of a float16 model in float32
    axis: int  # of the units
    units: int  # their number; 1 for tensors without units

    def first(self, count: int) -> dict[str, Tensor]:
        """The tensors of the first units, in float32 or wider.

        In float16 the 1e-9 that formulas add is 0.
        """
        return {
            name: (
                one
                if self.kind == BLOCK
                else one.narrow(self.axis, 0, one.shape[self.axis] // self.units * count)
            ).to(torch.promote_types(one.dtype, torch.float32))
            for name, one in self.tensors.items()
        }


Visit = Callable[[Place], None]


def visit_tensors(model: PreTrainedModel, family: Family, tokens: Tensor, visit: Visit) -> None:
    """Run one forward and one backward pass and visit every tensor that a proxy may use.

    The loss is the mean next-token cross-entropy of tokens [B, T].  A gradient is dropped after
    its visit; the model is unchanged afterwards.

    Raises:
        LmscoutError: the loss is not finite, or a gradient overflows in float16.
    """
    tokens = tokens.to(model.device)
    scale = loss_scale(model.dtype, tokens[:, 1:].numel())
    finite: list[Tensor] = []  # read at the end only, so that a GPU need not wait

    def of_loss(gradient: Tensor) -> Tensor:
        if scale == 1:
            return gradient
        finite.append(torch.isfinite(gradient).all())
        return gradient.float() / scale

    def watch(tensor: Tensor, place: Place, name: str) -> None:
        """Visit a place when the gradient of a tensor is there."""

        def arrived(gradient: Tensor) -> None:
            visit(replace(place, tensors={**place.tensors, name: of_loss(gradient.detach())}))

        tensor.register_hook(arrived)  # type: ignore[no-untyped-call]

    def leaf(block: int, kind: str, units: int, axis: int, affine: Affine) -> Affine:
        """A map with the same weight, whose gradient is visited and dropped."""

        def arrived(weight: Tensor) -> None:
            if weight.grad is not None:
                tensors = {"weight": weight.detach(), "grad": of_loss(weight.grad)}
                visit(Place(block, kind, "linear", tensors, axis, units))
                weight.grad = None

        weight = affine.weight.detach().requires_grad_()
        weight.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]
        return replace(affine, weight=weight)

    def leaves(block: int, kind: str, part: Sublayer) -> list[Affine]:
        rows = partial(leaf, block, kind, part.units, 0)
        return [*map(rows, part.inputs), leaf(block, kind, part.units, 1, part.output)]

    def attended(index: int, part: Attention, hidden: Tensor, context: object) -> Tensor:
        own, hidden = part.with_maps(leaves(index, ATTENTION, part)), hidden.to(part.device)
        with torch.no_grad():
            normed = own.norm(hidden)
            heads = [("head", one.apply(normed), 2) for one in part.inputs]
            heads.append(("softmax", part.probabilities(normed, context), 1))
            for name, tensor, axis in heads:
                visit(Place(index, ATTENTION, name, {name: tensor}, axis, part.units))
        return own.step(hidden, context)

    def fed(index: int, part: Mlp | Mixture, hidden: Tensor) -> Tensor:
        if isinstance(part, Mixture):
            raise LmscoutError(
                "a proxy has no values of experts: leave out the objective or the feature"
            )
        own, hidden = part.with_maps(leaves(index, MLP, part)), hidden.to(part.device)
        normed = own.norm(hidden)
        act = own.activated(normed)
        watch(act, Place(index, MLP, "act", {"act": act.detach()}, 2, act.shape[2]), "act_grad")
        return hidden + own.added(own.output.apply(own.gated(act, normed)))

    with train_only(model, ()), torch.enable_grad():
        hidden = family.embed(model, tokens).detach().requires_grad_()
        context = family.context(model, hidden)
        for index, parts in enumerate(family.all_parts(model)):
            watch(hidden, Place(index, BLOCK, "hidden", {}, 0, 1), "jacob")
            if parts.attention.units:
                hidden = attended(index, parts.attention, hidden, context)
            if parts.mlp.units:
                hidden = fed(index, parts.mlp, hidden)
        loss = _loss(model, family, hidden, tokens)
        torch.autograd.backward(loss * scale)
    if not all(map(bool, finite)):
        raise LmscoutError(
            "the model's gradients overflow in float16: load it in bfloat16 or float32 (dtype)"
        )


def _loss(model: PreTrainedModel, family: Family, hidden: Tensor, tokens: Tensor) -> Tensor:
    """The mean next-token cross-entropy of last hidden states; LmscoutError if it is not finite."""
    logits = family.logits(model, hidden)[:, :-1].flatten(0, 1)
    loss = functional.cross_entropy(logits.float(), tokens[:, 1:].flatten().to(logits.device))
    if not torch.isfinite(loss):
        raise LmscoutError(
            f"the model's loss on calibration text is {loss.item()}: is the model sound?"
        )
    return loss


@torch.no_grad()
def prefix_means(tensor: Tensor, axis: int, units: int, operations: Sequence[str]) -> Floats:
    """Means of unary operations of the first units of a finite tensor, by the number of units.

    A unit is an equal run of entries of `axis`.

    Returns:
        [operations, units + 1] float64; 0 for no unit.
    """
    prefixes = _Prefixes(tensor, axis, units)
    return np.array([np.append(0.0, prefixes.of(name)) for name in operations])


class _Prefixes:
    """One tensor, and sums that its operations share; every result is [units]."""

    def __init__(self, tensor: Tensor, axis: int, units: int) -> None:
        self._tensor, self._axis, self._units = tensor, axis, units
        self._by_unit = tensor.movedim(axis, 0).reshape(units, -1)
        numbers = np.arange(1, units + 1)
        self._count = numbers * self._by_unit.shape[1]
        rows = tensor.shape[0]
        self._rows = numbers * (rows // units) if axis == 0 else np.full(units, rows)
        self._mean = _sums(self._by_unit) / self._count

    def of(self, name: str) -> Floats:  # noqa: PLR0911 - one an operation
        """Means of one operation."""
        if name == "normalize":
            return np.zeros(self._units)
        if name == "softmax":
            return 1.0 / self._rows
        if name == "logsoftmax":
            return np.where(self._rows > 1, self._mean - self._log_sum_exp(), 0.0)
        if name == "minmax":
            low = np.minimum.accumulate(_numbers(self._by_unit.amin(1)))
            high = np.maximum.accumulate(_numbers(self._by_unit.amax(1)))
            return np.asarray((self._mean - low) / (high - low + _EPS))
        if name == "frobenius":
            return np.sqrt(_sums(self._by_unit.double().square()))
        if name == "std":
            # About a centre near all of the means, so that little cancels.
            centre = self._mean[-1]
            squares = _sums((self._by_unit.double() - centre).square())
            squares -= self._count * (self._mean - centre) ** 2
            return np.sqrt(np.maximum(squares, 0.0) / np.maximum(self._count - 1, 1))
        formula = UNARY_OPERATION[_MEANS.get(name, name)].formula
        return _sums(formula(self._by_unit)) / self._count

    def _log_sum_exp(self) -> Floats:
        """Mean over columns of the logarithm of the sum of exponentials over rows."""
        tensor = self._tensor
        if self._axis == 0:
            each = tensor.shape[0] // self._units
            last = tensor.flatten(1).double().logcumsumexp(0)[each - 1 :: each]
            return _numbers(last.mean(1))
        columns = tensor.logsumexp(0).movedim(self._axis - 1, 0).reshape(self._units, -1)
        return _sums(columns) / (np.arange(1, self._units + 1) * columns.shape[1])


def _sums(by_unit: Tensor) -> Floats:
    """Sums over the first units of [units, n]."""
    return np.cumsum(_numbers(by_unit.sum(1, dtype=torch.float64)))


def _numbers(tensor: Tensor) -> Floats:
    return np.asarray(tensor.double().cpu().numpy(), np.float64)


Definition = Callable[[Place, int], float]


class BlockTable:
    """One block value for every number of units that a block may keep."""

    def __init__(self, shape: Shape, *, mean: bool, definition: Definition) -> None:
        """Start without tensors.

        A block's value is the mean or the sum over its tensors; `definition` computes that of the
        first units of a place.
        """
        self._depth, self._mean, self._define = shape.depth, mean, definition
        units = dense_row(shape)
        self._starts = np.cumsum([0, *(units[:-1] + 1)])
        self._values = np.zeros(int((units + 1).sum()))
        self._column = np.repeat(np.arange(len(units)), units + 1)
        self._unknown = np.zeros(len(self._values), np.bool_)
        self._places: dict[int, list[Place]] = {}
        self._whole = np.zeros(shape.depth)  # of tensors without units
        self._counts = np.zeros((3, shape.depth))  # of tensors: attention, MLP, neither

    def add(self, place: Place, values: Floats | None) -> None:
        """Add the tensors of a place, by their values [units + 1], the first 0.

        Without values each is computed on demand, from copies of all tensors but weights.
        """
        if place.kind == BLOCK:
            self._counts[2, place.block] += 1
            self._whole[place.block] += self._define(place, 1) if values is None else values[1]
            return
        sublayer = KINDS.index(place.kind)
        self._counts[sublayer, place.block] += 1
        column = sublayer * self._depth + place.block
        entries = slice(self._starts[column], self._starts[column] + place.units + 1)
        if values is not None:
            self._values[entries] += values
            return
        own = {
            name: one if name == "weight" else one.detach().clone()
            for name, one in place.tensors.items()
        }
        self._places.setdefault(column, []).append(replace(place, tensors=own))
        self._unknown[entries][1:] = True

    def block_values(self, rows: Rows) -> Floats:
        """Values of plans, [n, 2L] to [n, L]; 0 for a block without tensors."""
        index = rows + self._starts
        for entry in np.unique(index[self._unknown[index]]):
            column = int(self._column[entry])
            count = int(entry - self._starts[column])
            self._values[entry] += sum(self._define(one, count) for one in self._places[column])
            self._unknown[entry] = False
        kept = (rows > 0).reshape(len(rows), 2, self._depth)
        exists = kept.any(axis=1)
        total = self._values[index].reshape(kept.shape).sum(axis=1) + exists * self._whole
        if not self._mean:
            return np.asarray(total)
        counts = (kept * self._counts[:2]).sum(axis=1) + exists * self._counts[2]
        return np.asarray(total / np.maximum(counts, 1))


def tabulate(
    model: PreTrainedModel,
    family: Family,
    shape: Shape,
    tokens: Tensor,
    reductions: Collection[Expression],
) -> dict[Expression, BlockTable]:
    """Tabulate block values in one pass, see `visit_tensors`.

    `reductions` are trees that are an `average` or a `total` of tensors.
    """
    tables = {
        node: BlockTable(shape, mean=node.name == "average", definition=partial(_value, node))
        for node in reductions
    }
    summed = {node: _summed(node) for node in tables}

    def visit(place: Place) -> None:
        mine = [node for node in tables if _uses(node, place)]
        tensors = _named(place.first(place.units), mine)
        by_inner: dict[Expression, list[tuple[Expression, str]]] = {}
        for node in mine:
            if (split := summed[node]) is None:
                tables[node].add(place, None)
            else:
                by_inner.setdefault(split[0], []).append((node, split[1]))
        for inner, same in by_inner.items():
            values = _prefix_values(full_tensor(inner, tensors), place, same)
            for (node, _), row in zip(same, values, strict=True):
                tables[node].add(place, row)

    visit_tensors(model, family, tokens, visit)
    return tables


def _prefix_values(
    tensor: Tensor, place: Place, nodes: Sequence[tuple[Expression, str]]
) -> Iterable[Floats | None]:
    """Values of reductions of one tensor; None if it is not finite: some prefixes may be."""
    if not bool(torch.isfinite(tensor).all()):
        return [None] * len(nodes)
    means = prefix_means(tensor, place.axis, place.units, [operation for _, operation in nodes])
    count = np.arange(place.units + 1) * (tensor.numel() // place.units)
    return [
        row * count if node.name == "total" and not UNARY_OPERATION[operation].scalar else row
        for (node, operation), row in zip(nodes, means, strict=True)
    ]


def _summed(node: Expression) -> tuple[Expression, str] | None:
    """An elementwise tree and the operation on it, if prefix sums give the reduction."""
    (operand,) = node.operands
    if _elementwise(operand):
        return operand, "identity"
    if operand.name in UNARY_OPERATION and _elementwise(operand.operands[0]):
        return operand.operands[0], operand.name
    return None


def _elementwise(node: Expression) -> bool:
    joins = node.name in ELEMENTWISE or node.name in TENSOR_JOINS
    return not node.operands or (joins and all(map(_elementwise, node.operands)))


def _uses(node: Expression, place: Place) -> bool:
    stack = node.operands[0].type
    if stack in _PARTS:
        return place.stack == "linear" and place.kind == _PARTS[stack]
    return place.stack == stack


def _named(tensors: Tensors, nodes: Iterable[Expression]) -> dict[str, Tensor]:
    """Tensors by the names of their leaves in all stacks of the nodes."""
    named = dict(tensors)
    for stack in {node.operands[0].type for node in nodes} & _PARTS.keys():
        named |= dict(zip(STACKS[stack], (tensors["weight"], tensors["grad"]), strict=True))
    return named


@torch.no_grad()
def _value(node: Expression, place: Place, count: int) -> float:
    """A reduction by its definition."""
    tensors = _named(place.first(count), [node])
    return reduced(node.name, [full_tensor(node.operands[0], tensors)])
