"""What a deep proxy is worth: by definition, of one model, and fast, of all models at once.

`full_score` is the definition, on the full tensors of one reading.  `DeepEvaluator` computes
the same on sketches, for all architectures; where a sketch holds every element, both agree.

One rule holds at every level: what is given a NaN or an infinity gives NaN.  It is a tensor's
as a whole, and that of each block value and score on its own.  So a score may be infinite only
where the last word made it so.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmscout.errors import LmscoutError
from lmscout.proxies import Expression, Reading, format_expression
from lmscout.proxies.primitives import (
    ARITHMETIC,
    NUMBER,
    REDUCTIONS,
    SCORE,
    SPEC_LEAVES,
    STACKS,
    TENSOR_ARITHMETIC,
    UNARY_OPERATION,
)
from lmscout.statistics.sketch_operations import Piece, reduction
from lmscout.statistics.sketches import Sketches, StackSketch

CACHE_BYTES = 64 << 20
"""What an evaluator keeps of block values and scores."""

# Elements of a sample computed at once: few enough for caches, so many that two threads seldom meet
# at the interpreter's lock (1 << 16: 1.2 times as fast on two as on one, 1 << 18: 1.5), and that a
# GPU is filled.
_PIECE, _GPU_PIECE = 1 << 18, 1 << 24


def full_score(node: Expression, reading: Reading, spec_values: Mapping[str, float]) -> float:
    """Score one model by a deep proxy, from full tensors: the definition.

    Args:
        node: a tree that gives a score.
        reading: what one pass left behind.
        spec_values: "depth", "width" and "params" of the configuration.

    Returns:
        The score; NaN where it has none.

    Raises:
        LmscoutError: the tree gives no score.
    """
    _require_score(node)
    with torch.no_grad():
        return float(_full_value(node, reading, spec_values))


def joined_score(
    node: Expression, parts: Mapping[Expression, npt.ArrayLike]
) -> npt.NDArray[np.float64]:
    """Scores of a tree, from those of its parts.

    Args:
        node: a tree that gives a score.
        parts: scores of subtrees, [A] each; words above them are computed.

    Returns:
        [A] float64, the same that the whole tree gives.

    Raises:
        LmscoutError: the tree has another leaf above no part.
    """

    def value(one: Expression) -> Tensor:
        if one in parts:
            return torch.from_numpy(np.asarray(parts[one], np.float64))
        if one.word == NUMBER:
            return number_value(one)
        if one.type != SCORE or not one.operands:
            raise LmscoutError(f"{format_expression(one)} is no part whose scores are known")
        return raised_value(one, tuple(map(value, one.operands)), torch.ones(0, dtype=torch.bool))

    scores: npt.NDArray[np.float64] = value(node).numpy().copy()
    return scores


def _full_value(node: Expression, reading: Reading, spec_values: Mapping[str, float]) -> Tensor:
    """A score [] or block values [L], float64."""
    if node.word == NUMBER:
        return number_value(node)
    if node.name in SPEC_LEAVES:
        return torch.tensor(float(spec_values[node.name]), dtype=torch.float64)
    if node.name in REDUCTIONS:
        (operand,) = node.operands
        blocks = _tensors_by_block(operand.type, reading)
        values = [reduced(node.name, [full_tensor(operand, one) for one in b]) for b in blocks]
        return torch.tensor(values, dtype=torch.float64)
    operands = tuple(_full_value(one, reading, spec_values) for one in node.operands)
    return raised_value(node, operands, torch.ones(len(reading.linears), dtype=torch.bool))


def _tensors_by_block(stack: str, reading: Reading) -> Iterator[list[dict[str, Tensor]]]:
    """For every block its tensors of a stack, each as leaf -> tensor."""
    own = [leaf.removeprefix("mixer_").removeprefix("mlp_") for leaf in STACKS[stack]]
    read = {**reading.inputs, "act_grad": reading.act_grad}
    for block, mixing in enumerate(reading.mixing):
        places = list(zip(*(read[name][block] for name in own), strict=True))
        if stack in ("mixer", "mlp"):
            wanted = stack == "mixer"
            places = [one for one, mixes in zip(places, mixing, strict=True) if mixes == wanted]
        yield [dict(zip(STACKS[stack], one, strict=True)) for one in places]


def full_tensor(node: Expression, leaves: Mapping[str, Tensor]) -> Tensor:
    """A tree's tensor in one place of a block, from its leaves' there."""
    if not node.operands:
        return leaves[node.name]
    operands = [full_tensor(one, leaves) for one in node.operands]
    if len(operands) == 1:
        return UNARY_OPERATION[node.name].apply(operands[0])
    joined = ARITHMETIC[TENSOR_ARITHMETIC[node.name]](*operands)
    if not all(bool(torch.isfinite(one).all()) for one in operands):
        return torch.full_like(joined, math.nan)
    return joined


def reduced(name: str, tensors: list[Tensor]) -> float:
    """Mean of means, or sum of sums; 0 of no tensors."""
    if not all(bool(torch.isfinite(one).all()) for one in tensors):
        return math.nan
    if name == "total":
        return math.fsum(one.sum(dtype=torch.float64).item() for one in tensors)
    means = [one.mean(dtype=torch.float64).item() for one in tensors]
    return math.fsum(means) / max(len(means), 1)


def number_value(node: Expression) -> Tensor:
    """A number's, [] float64: one for all architectures."""
    return torch.tensor(float(node.name), dtype=torch.float64)


def raised_value(node: Expression, operands: tuple[Tensor, ...], exists: Tensor) -> Tensor:
    """A word above the tensors.

    Args:
        node: a word that takes block values or scores.
        operands: block values [..., L] or scores [...], float64.
        exists: [..., L] bool, which blocks there are.
    """
    if node.word.aggregates:
        return _aggregated(node.name, operands[0], exists)
    if node.name in ARITHMETIC:
        value = ARITHMETIC[node.name](*operands)
    else:
        value = UNARY_OPERATION[node.name].formula(operands[0])
    for operand in operands:
        value = torch.where(torch.isfinite(operand), value, math.nan)
    return value


def _aggregated(name: str, values: Tensor, exists: Tensor) -> Tensor:
    defined = (torch.isfinite(values) | ~exists).all(-1)
    if name in ("max", "min"):
        absent = -math.inf if name == "max" else math.inf
        there = torch.where(exists, values, absent)
        result = there.amax(-1) if name == "max" else there.amin(-1)
    else:
        result = torch.where(exists, values, 0.0).sum(-1)
        if name == "mean":
            result = result / exists.sum(-1)
    return torch.where(defined, result, math.nan)


def _require_score(node: Expression) -> None:
    if node.type != SCORE:
        raise LmscoutError(
            f"{format_expression(node)} gives no score: aggregate it over the blocks"
        )


class DeepEvaluator:
    """Scores of deep proxies on sketches, of all architectures at once.

    Block values and scores of subtrees are kept, so that proxies that share parts share their
    cost.  The work is done in the thread that calls; several may call at once.
    """

    def __init__(
        self, sketches: Sketches, cache_bytes: int = CACHE_BYTES, device: str = "cpu"
    ) -> None:
        """Arrange sketches for computing.

        Args:
            sketches: of A architectures; copied.
            cache_bytes: what may be kept of subtrees' values.
            device: where it is computed; on a GPU the last digits differ from call to call.
        """
        depth = torch.from_numpy(sketches.depth).to(device)
        self._exists = torch.arange(int(depth.max()), device=device) < depth[:, None]
        self._spec = {name: torch.from_numpy(one).to(device) for name, one in sketches.spec.items()}
        self._lists: dict[str, _Pieces] = {}
        for name, stack in sketches.stacks.items():
            for part, one in _parts(name, stack):
                self._lists[part] = _Pieces(STACKS[part], one, self._exists)
        self._kept: OrderedDict[Expression, Tensor] = OrderedDict()
        self._room = cache_bytes
        self._lock = threading.Lock()  # of what is kept

    def scores(self, node: Expression) -> npt.NDArray[np.float64]:
        """Scores of every architecture.

        Args:
            node: a tree that gives a score.

        Returns:
            [A] float64, NaN where an architecture has no score.

        Raises:
            LmscoutError: the tree gives no score.
        """
        _require_score(node)
        with torch.no_grad():
            scores: npt.NDArray[np.float64] = self._value(node).cpu().numpy().copy()
        return scores

    def _value(self, node: Expression) -> Tensor:
        """Block values [A, L] or scores [A]."""
        if node.word == NUMBER:  # as many as there are architectures: it may be all of a tree
            return number_value(node).to(self._exists.device).expand(len(self._exists))
        if node.name in SPEC_LEAVES:
            return self._spec[node.name]
        with self._lock:
            if node in self._kept:
                self._kept.move_to_end(node)
                return self._kept[node]
        if node.name in REDUCTIONS:
            value = self._lists[node.operands[0].type].block_values(node)
        else:
            value = raised_value(node, tuple(map(self._value, node.operands)), self._exists)
        self._keep(node, value)
        return value

    def _keep(self, node: Expression, value: Tensor) -> None:
        with self._lock:
            if node in self._kept:  # another thread was faster
                return
            self._kept[node] = value
            self._room -= value.nbytes
            while self._room < 0:
                _, oldest = self._kept.popitem(last=False)
                self._room += oldest.nbytes


class _Pieces:
    """The tensors of one stack, cut into pieces, and the blocks to which they belong."""

    def __init__(self, leaves: tuple[str, ...], stack: StackSketch, exists: Tensor) -> None:
        self._shape, self._device = exists.shape, exists.device
        self._pieces: list[Piece] = []
        orders = [torch.zeros(0, dtype=torch.int64)]
        heights, widths = stack.sampled_sizes()
        for height, width in sorted({*zip(heights.tolist(), widths.tolist(), strict=True)}):
            alike = ((heights == height) & (widths == width)).nonzero()[:, 0]
            orders.append(alike)
            self._pieces += _cut(leaves, stack, alike, (height, width), self._device)
        order = torch.cat(orders)
        segments = (stack.architecture * self._shape[1] + stack.block)[order]
        counts = torch.bincount(segments, minlength=math.prod(self._shape)).clamp(min=1)
        self._segments, self._counts = segments.to(self._device), counts.to(self._device)
        self._sampled = (heights * widths)[order].double().to(self._device)

    def block_values(self, node: Expression) -> Tensor:
        """`average` or `total` of a tree of this stack: [A, L] float64."""
        compiled = reduction(node)
        blocks = torch.zeros(math.prod(self._shape), dtype=torch.float64, device=self._device)
        if self._pieces:
            values = torch.cat([compiled.run(one) for one in self._pieces]).double()
            if compiled.of_sample:
                values /= self._sampled
            if compiled.of_tensor:
                values *= torch.cat([one.elements for one in self._pieces])
            blocks.index_add_(0, self._segments, torch.where(values.isfinite(), values, math.nan))
        if node.name == "average":
            blocks /= self._counts
        return blocks.view(self._shape)


def _cut(
    leaves: tuple[str, ...],
    stack: StackSketch,
    alike: Tensor,
    shape: tuple[int, int],
    device: torch.device,
) -> Iterator[Piece]:
    """Pieces of the tensors whose sample has this height and width, without padding."""
    height, width = shape
    samples = {
        leaf: one[alike, :height, :width].reshape(len(alike), -1).to(device).contiguous()
        for leaf, one in zip(leaves, stack.samples.values(), strict=True)
    }
    moments = {
        leaf: one[alike].to(device)
        for leaf, one in zip(leaves, stack.moments.values(), strict=True)
    }
    rows = stack.rows[alike].double().to(device)
    elements = rows * stack.columns[alike].to(device)
    share = (height / rows).float()[:, None, None]
    room = _PIECE if device.type == "cpu" else _GPU_PIECE
    length = max(1, room // (height * width))
    for start in range(0, len(alike), length):
        here = slice(start, start + length)
        broken = {leaf: one[here, 0].isnan() for leaf, one in moments.items()}
        yield Piece(
            samples=MappingProxyType({leaf: one[here] for leaf, one in samples.items()}),
            moments=MappingProxyType({leaf: one[here] for leaf, one in moments.items()}),
            broken={leaf: mask for leaf, mask in broken.items() if bool(mask.any())},
            height=height,
            elements=elements[here],
            share=share[here],
        )


def _parts(name: str, stack: StackSketch) -> Iterator[tuple[str, StackSketch]]:
    """A stack under its name; of the linear one, those that mix and those of the MLP too."""
    yield name, stack
    if name == "linear":
        yield "mixer", stack.only(stack.mixes)
        yield "mlp", stack.only(~stack.mixes)
