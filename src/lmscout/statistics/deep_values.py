"""Scores of proxies: by definition, from the full tensors of one pass, and on sketches.

`score_proxies` gives those of functions and expressions on full tensors.  `full_score` is the
definition of a deep proxy; `DeepEvaluator` computes the same on sketches, and where a sketch holds
every element, both agree.

At every level an operand with a NaN or an infinity gives NaN: a tensor as a whole, block values and
scores one by one.  A score is infinite only if the last operation made it so.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmscout.models import ArchitectureSpec, LanguageModel
from lmscout.proxies import Entry, Expression, Reading, as_published, evaluate, resolve
from lmscout.proxies.expression import require_score
from lmscout.proxies.primitives import (
    ARITHMETIC,
    NUMBER,
    REDUCTIONS,
    SPEC_LEAVES,
    STACKS,
    TENSOR_ARITHMETIC,
    UNARY_OPERATION,
    all_finite,
    without_noise,
)
from lmscout.statistics.collect import Build, Options, Row, evaluated_rows
from lmscout.statistics.reductions import chain_means
from lmscout.statistics.single_pass import INPUT_NAMES, run_pass
from lmscout.statistics.sketch_operations import Piece, reduction
from lmscout.statistics.sketches import Sketches, StackSketch, spec_values

CACHE_BYTES = 64 << 20
"""Block values and scores that an evaluator keeps."""

# Elements of a sample computed at once: few enough for caches, and enough that two threads seldom
# wait for the interpreter's lock (1 << 16: 1.2 times as fast on two as on one, 1 << 18: 1.5).
_PIECE = 1 << 18

_UNSETTLED = np.uint64((1 << 22) - 1)  # of a float64's 52 mantissa bits
_ROUNDING = np.uint64(1 << 21)


def full_score(
    node: Expression,
    reading: Reading,
    spec_values: Mapping[str, float],
    known: dict[Expression, Tensor] | None = None,
) -> float:
    """Score one model by a deep proxy, from full tensors: the definition.

    The values are those of "depth", "width" and "params".  Block values of subtrees that are known
    are not computed again, and others are added.  NaN if the score is not defined; LmscoutError if
    the tree gives no score.
    """
    require_score(node)
    known = {} if known is None else known
    with torch.no_grad():
        return float(settled(_full_value(node, reading, spec_values, known).numpy()))


def settled(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores of any shape, rounded to 30 significant bits (1e-9): the rest differs between CPUs."""
    bits = (scores + 0.0).view(np.uint64) + _ROUNDING & ~_UNSETTLED
    return np.where(np.isfinite(scores), bits.view(np.float64), scores)


def joined_score(
    node: Expression, parts: Mapping[Expression, npt.ArrayLike]
) -> npt.NDArray[np.float64]:
    """Scores [A] of a tree, from those [A] of subtrees that hold all its leaves."""

    def value(one: Expression) -> Tensor:
        if one in parts:
            return torch.from_numpy(np.asarray(parts[one], np.float64))
        if one.word == NUMBER:
            return number_value(one)
        return raised_value(one, tuple(map(value, one.operands)), torch.ones(0, dtype=torch.bool))

    return settled(value(node).numpy())


def _full_value(
    node: Expression,
    reading: Reading,
    spec_values: Mapping[str, float],
    known: dict[Expression, Tensor],
) -> Tensor:
    """A score [] or block values [L], float64."""
    if node in known:
        return known[node]
    if node.word == NUMBER:
        return number_value(node)
    if node.name in SPEC_LEAVES:
        return torch.tensor(float(spec_values[node.name]), dtype=torch.float64)
    if node.name in REDUCTIONS:
        (operand,) = node.operands
        blocks = _tensors_by_block(operand.type, reading)
        values = [reduced(node.name, [full_tensor(operand, one) for one in b]) for b in blocks]
        known[node] = torch.tensor(values, dtype=torch.float64)
        return known[node]
    operands = tuple(_full_value(one, reading, spec_values, known) for one in node.operands)
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
    """A tree's tensor at one place of a block, from the leaves' tensors there."""
    if not node.operands:
        return leaves[node.name]
    operands = [full_tensor(one, leaves) for one in node.operands]
    if len(operands) == 1:
        return UNARY_OPERATION[node.name].apply(operands[0])
    joined = ARITHMETIC[TENSOR_ARITHMETIC[node.name]](*operands)
    return joined if all(map(all_finite, operands)) else torch.full_like(joined, math.nan)


def reduced(name: str, tensors: list[Tensor]) -> float:
    """Mean of means, or sum of sums; 0 of no tensors."""
    if not all(map(all_finite, tensors)):
        return math.nan
    reduce = torch.sum if name == "total" else torch.mean
    values = [
        without_noise(reduce(one, dtype=torch.float64), reduce(one.abs(), dtype=torch.float64))
        for one in tensors
    ]
    total = sum(one.item() for one in values)
    return total if name == "total" else total / max(len(values), 1)


def number_value(node: Expression) -> Tensor:
    """The value of a number: [] float64."""
    return torch.tensor(float(node.name), dtype=torch.float64)


def raised_value(node: Expression, operands: tuple[Tensor, ...], exists: Tensor) -> Tensor:
    """An operation on block values [..., L] or scores [...]; which blocks exist is [..., L]."""
    if node.word.aggregates:
        return _aggregated(node.name, operands[0], exists)
    if node.name in ARITHMETIC:
        value = ARITHMETIC[node.name](*operands)
    else:
        value = UNARY_OPERATION[node.name].formula(operands[0])
    for operand in operands:
        if not all_finite(operand):
            value = torch.where(torch.isfinite(operand), value, math.nan)
    return value


def _aggregated(name: str, values: Tensor, exists: Tensor) -> Tensor:
    if name == "max":
        result = torch.where(exists, values, -math.inf).amax(-1)
    elif name == "min":
        result = torch.where(exists, values, math.inf).amin(-1)
    else:
        result = torch.where(exists, values, 0.0).sum(-1)
        if name == "mean":
            result = result / exists.sum(-1)
    if all_finite(values):
        return result
    return torch.where((torch.isfinite(values) | ~exists).all(-1), result, math.nan)


class DeepEvaluator:
    """Scores of deep proxies on sketches, of all architectures at once.

    Block values and scores of subtrees are cached: proxies that share parts share their cost.
    Several threads may call at once; each computes its own call.
    """

    def __init__(self, sketches: Sketches, cache_bytes: int = CACHE_BYTES) -> None:
        """Copy the sketches, arranged for computing; keep so many bytes of values of subtrees."""
        depth = torch.from_numpy(sketches.depth)
        self._exists = torch.arange(int(depth.max())) < depth[:, None]
        self._spec = {name: torch.from_numpy(one) for name, one in sketches.spec.items()}
        stacks = dict(sketches.stacks)
        linear = stacks["linear"]
        stacks |= {"mixer": linear.only(linear.mixes), "mlp": linear.only(~linear.mixes)}
        self._lists = {
            name: _Pieces(STACKS[name], one, self._exists) for name, one in stacks.items()
        }
        self._kept: OrderedDict[Expression, Tensor] = OrderedDict()
        self._room = cache_bytes
        self._lock = threading.Lock()  # of the cached values

    def scores(self, node: Expression) -> npt.NDArray[np.float64]:
        """Scores [A] of every architecture; NaN where one is not defined.

        LmscoutError if the tree gives no score.
        """
        require_score(node)
        with torch.no_grad():
            return settled(self._value(node).numpy())

    def _value(self, node: Expression) -> Tensor:
        """Block values [A, L] or scores [A]."""
        if node.word == NUMBER:  # expanded, as it may be the whole tree
            return number_value(node).expand(len(self._exists))
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
        self._shape = exists.shape
        self._pieces: list[Piece] = []
        orders = [torch.zeros(0, dtype=torch.int64)]
        heights, widths = stack.sampled_sizes()
        for height, width in sorted({*zip(heights.tolist(), widths.tolist(), strict=True)}):
            alike = ((heights == height) & (widths == width)).nonzero()[:, 0]
            orders.append(alike)
            self._pieces += _cut(leaves, stack, alike, (height, width))
        order = torch.cat(orders)
        self._segments = (stack.architecture * self._shape[1] + stack.block)[order]
        self._counts = self._segments.bincount(minlength=math.prod(self._shape)).clamp(min=1)
        self._sampled = (heights * widths)[order].double()

    def block_values(self, node: Expression) -> Tensor:
        """`average` or `total` of a tree of this stack: [A, L] float64."""
        compiled = reduction(node)
        blocks = torch.zeros(math.prod(self._shape), dtype=torch.float64)
        if self._pieces:
            values = torch.cat([compiled.run(one) for one in self._pieces])
            if compiled.of_sample:
                values /= self._sampled
            if compiled.of_tensor:
                values *= torch.cat([one.elements for one in self._pieces])
            blocks.index_add_(0, self._segments, torch.where(values.isfinite(), values, math.nan))
        if node.name == "average":
            blocks /= self._counts
        return blocks.view(self._shape)


def _cut(
    leaves: tuple[str, ...], stack: StackSketch, alike: Tensor, shape: tuple[int, int]
) -> Iterator[Piece]:
    """Pieces of the tensors whose sample has this height and width, without padding."""
    height, width = shape
    samples = {
        leaf: one[alike, :height, :width].reshape(len(alike), -1).contiguous()
        for leaf, one in zip(leaves, stack.samples.values(), strict=True)
    }
    moments = {leaf: one[alike] for leaf, one in zip(leaves, stack.moments.values(), strict=True)}
    rows = stack.rows[alike].double()
    elements = rows * stack.columns[alike]
    share = (height / rows)[:, None, None]
    length = max(1, _PIECE // (height * width))
    for start in range(0, len(alike), length):
        here = slice(start, start + length)
        broken = {leaf: one[here, 0].isnan() for leaf, one in moments.items()}
        yield Piece(
            samples={leaf: one[here] for leaf, one in samples.items()},
            moments={leaf: one[here] for leaf, one in moments.items()},
            broken={leaf: mask for leaf, mask in broken.items() if bool(mask.any())},
            height=height,
            elements=elements[here],
            share=share[here],
        )


def score_proxies(
    specs: Sequence[ArchitectureSpec],
    names: Sequence[str],
    *,
    ones: str = "",
    **options: Unpack[Options],
) -> dict[str, npt.NDArray[np.float64]]:
    """Scores of architectures by a few proxies, see `Options`: name -> [architectures] float64.

    The tensors of an input, or of "act_grad", may be replaced by ones.  Where all proxies are
    functions of the configuration alone, no model is built and no file is written.  LmscoutError if
    a proxy is unknown or malformed, or the folder cannot be written.
    """
    proxies = tuple(map(resolve, names))
    of_specs = {name: _spec_scores(one, specs) for name, one in zip(names, proxies, strict=True)}
    known = {name: one for name, one in of_specs.items() if one is not None}
    if len(known) == len(of_specs):
        if progress := options.get("progress"):
            progress(len(specs), len(specs))
        return known
    options["name"] += "-proxies"
    kind = f"scores with ones for {ones}" if ones else "scores"
    measure = partial(_measure, proxies=proxies, ones=ones)
    # In float64: SynFlow multiplies from layer to layer, and a deep model's is beyond float32.
    store = evaluated_rows(specs, (kind, names), (len(names),), measure, np.float64, **options)
    return {proxy: store.rows[:, column] for column, proxy in enumerate(names)}


def _spec_scores(
    proxy: Entry | Expression, specs: Sequence[ArchitectureSpec]
) -> npt.NDArray[np.float64] | None:
    """Scores [architectures] of a proxy of the configuration alone; None for any other."""
    expression = proxy.expression if isinstance(proxy, Entry) else proxy
    if expression is None or not expression.leaves <= set(SPEC_LEAVES):
        return None
    leaves = {name: Expression(name) for name in expression.leaves}
    values = map(spec_values, specs)
    return np.array(
        [joined_score(expression, {leaves[name]: one[name] for name in leaves}) for one in values]
    )


def _measure(
    build: Build, spec: ArchitectureSpec, *, proxies: tuple[Entry | Expression, ...], ones: str
) -> Row:
    scores: dict[Entry | Expression, float] = {}
    dtypes = sorted({precision(one) for one in proxies}, key=lambda dtype: dtype.itemsize)
    spec.require_memory(dtypes[-1].itemsize)
    model, tokens = build(spec)
    for dtype in dtypes:  # of one draw, the narrow one first
        reading = full_reading(model.to(dtype), tokens, spec.parameters())
        if ones:
            reading = with_ones(reading, ones)
        known: dict[Expression, Tensor] = {}
        here = [one for one in proxies if precision(one) == dtype]
        scores |= {one: score(one, reading, spec, known) for one in here}
        del reading  # before the next one
    return np.array([scores[one] for one in proxies])


def precision(proxy: Entry | Expression) -> torch.dtype:
    """The type of the pass that a proxy reads.

    Float64 for trees of the deep space, so that what a search finds does not depend on the last
    bits of a CPU; float32 for functions and for the published form, as in the literature.
    """
    function = isinstance(proxy, Entry) and proxy.function is not None
    expression = proxy.expression if isinstance(proxy, Entry) else proxy
    deep = not function and expression is not None and as_published(expression) is None
    return torch.float64 if deep else torch.float32


def full_reading(model: LanguageModel, tokens: Tensor, parameters: int) -> Reading:
    """Run one pass over tokens [B, T] int64 and keep a copy of every tensor."""
    points = model.probe_points()
    kept: dict[str, list[dict[int, Tensor]]] = {
        name: [{} for _ in points] for name in (*INPUT_NAMES, "act_grad")
    }

    def keep(name: str, block: int, place: int, tensor: Tensor) -> None:
        kept[name][block][place] = tensor.detach().clone()

    run_pass(model, tokens, keep, act_gradients=True)
    ordered = {
        name: tuple(tuple(block[place] for place in sorted(block)) for block in blocks)
        for name, blocks in kept.items()
    }
    return Reading(
        model=model,
        tokens=tokens,
        inputs={name: ordered[name] for name in INPUT_NAMES},
        act_grad=ordered["act_grad"],
        linears=tuple(point.linear for point in points),
        mixing=tuple(tuple(layer not in point.mlp for layer in point.linear) for point in points),
        parameters=parameters,
        gates=tuple(gate for point in points for gate in point.gate),
    )


def with_ones(reading: Reading, name: str) -> Reading:
    """A reading whose tensors of one input, or of "act_grad", are ones of the same shapes."""
    blocks = reading.act_grad if name == "act_grad" else reading.inputs[name]
    ones = tuple(tuple(torch.ones_like(one) for one in block) for block in blocks)
    if name == "act_grad":
        return replace(reading, act_grad=ones)
    return replace(reading, inputs={**reading.inputs, name: ones})


def score(
    proxy: Entry | Expression,
    reading: Reading,
    spec: ArchitectureSpec,
    known: dict[Expression, Tensor] | None = None,
) -> float:
    """Score one model by one proxy, from the full tensors of a pass.

    Trees of the same pass share what is known, see `full_score`.
    An expression of the published form is computed as the collected statistics are, so that both
    agree; any other one by its definition.
    """
    if isinstance(proxy, Entry) and proxy.function is not None:
        return proxy.function(reading)
    expression = proxy.expression if isinstance(proxy, Entry) else proxy
    assert expression is not None  # an entry has one or the other
    if as_published(expression) is None:
        return full_score(expression, reading, spec_values(spec), known)

    def block_values(name: str, chain: tuple[str, ...]) -> list[list[float]]:
        means = ([chain_means(one, [chain])[0] for one in block] for block in reading.inputs[name])
        return [[np.mean(values).item() if values else 0.0 for values in means]]

    return float(evaluate(expression, block_values, [len(reading.linears)])[0])
