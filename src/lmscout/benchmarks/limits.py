"""Limits of an architecture: parameters, multiply-adds, measured latency; mutations within them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import numpy as np
import torch

from lmscout.benchmarks.space import (
    ATTEMPTS,
    GATED,
    GPT2,
    LLAMA,
    Space,
    assembled,
    draw,
    head_sizes,
    mlp_width,
    nothing_meets,
)
from lmscout.errors import LmscoutError, brief, check_whole
from lmscout.models import ArchitectureSpec, Gpt2Spec, LlamaSpec
from lmscout.models.layers import fuse_attention

Cost = Callable[[ArchitectureSpec], float]
Random = np.random.Generator
Cell = tuple[str, int, int]  # family, depth, width

T = TypeVar("T", int, float)
U = TypeVar("U")

PARAMS, MACS, LATENCY = "max_params", "max_macs", "max_latency"
KINDS = 2  # head sizes, and expansions, that an architecture draws
_REPEATS = 7  # timed passes of one architecture
_DRAWS = 20  # from a cell, before its smallest architecture is taken
_WALKS, _STEPS = 20, 8  # mutations in a row, until the limits are kept


def parameters(spec: ArchitectureSpec) -> int:
    """Parameters of an architecture, embeddings included."""
    return spec.parameters()


def multiply_adds(spec: ArchitectureSpec) -> int:
    """Multiply-adds of a token in the blocks."""
    return spec.multiply_adds()


@dataclass(frozen=True)
class Limit:
    """The most that an architecture may cost."""

    name: str  # of the argument: ``max_params``, ``max_macs`` or ``max_latency``
    unit: str  # of its value, in words
    value: float  # the limit
    cost: Cost  # of an architecture, in the same unit

    def keeps(self, spec: ArchitectureSpec) -> bool:
        """Whether an architecture is within the limit."""
        return self.cost(spec) <= self.value

    def shown(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:,} {self.unit}" if isinstance(value, int) else f"{value:,.4g} {self.unit}"

    def __str__(self) -> str:
        return self.shown(self.value)


def limits_of(
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency: float | None = None,
    *,
    device: str = "cpu",
) -> tuple[Limit, ...]:
    """The limits that were given, the cheapest to check first; LmscoutError for one not above 0.

    They are of parameters, embeddings included, of a token's multiply-adds in the blocks
    (`ArchitectureSpec.multiply_adds`), and of milliseconds on a device (`latency_on`).
    """
    found = []
    if max_params is not None:
        check_whole(PARAMS, max_params, 1)
        found.append(Limit(PARAMS, "parameters", max_params, parameters))
    if max_macs is not None:
        check_whole(MACS, max_macs, 1)
        found.append(Limit(MACS, "multiply-adds", max_macs, multiply_adds))
    if max_latency is not None:
        number = isinstance(max_latency, int | float) and not isinstance(max_latency, bool)
        if not number or not 0 < max_latency < math.inf:
            raise LmscoutError(
                f"max_latency: no number of milliseconds above 0 (got {brief(max_latency)})"
            )
        found.append(Limit(LATENCY, "ms", float(max_latency), latency_on(device)))
    return tuple(found)


def keeps_all(limits: Sequence[Limit], spec: ArchitectureSpec) -> bool:
    """Whether an architecture keeps all limits, checked up to the first exceeded."""
    return all(limit.keeps(spec) for limit in limits)


def nothing_within(
    what: str, limits: Sequence[Limit], specs: Sequence[ArchitectureSpec]
) -> LmscoutError:
    """The error that a set of architectures has none within the limits; names the least costs.

    The specs are some of them, among these those of the least costs.
    """
    most = " and ".join(map(str, limits))
    least = " and ".join(one.shown(min(map(one.cost, specs))) for one in limits)
    if len(limits) == 1:
        return LmscoutError(
            f"no architecture of {what} has {most} or fewer: the smallest has {least}"
        )
    return LmscoutError(f"no architecture of {what} is within {most}: the least of each is {least}")


def latency_on(device: str) -> Cost:
    """The milliseconds of an architecture's forward pass; each is measured once.

    The untrained model, with fused attention where it has causal attention, maps one sequence of
    `max_length` tokens to hidden states, without logits.  The median of seven passes counts,
    after one that does not.
    """

    @cache
    @torch.inference_mode()
    def milliseconds(spec: ArchitectureSpec) -> float:
        from lmscout.evaluation.cost import median_seconds  # slow to import

        place = torch.device(device)
        model = spec.build(0).to(place)
        fuse_attention(model)
        tokens = torch.arange(spec.max_length, device=place)[None] % spec.vocabulary
        return 1000 * median_seconds(lambda: model(tokens), place, _REPEATS)

    return milliseconds


@dataclass(frozen=True)
class Form:
    """The choices of a draw, which mean the same at every width."""

    family: str  # ``gpt2`` or ``llama``
    width: int  # size of the hidden state
    group: int  # query heads that share a key-value head
    sizes: tuple[int, ...]  # of each block's heads; 0 for no attention
    expansions: tuple[float, ...]  # of each block's MLP; 0 for none

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.sizes)

    def spec(self, space: Space) -> ArchitectureSpec:
        """The architecture."""
        heads = [self.width // size if size else 0 for size in self.sizes]
        inner = [mlp_width(self.width, e, self.family) if e else 0 for e in self.expansions]
        return assembled(space, self.family, self.width, heads, inner, self.group)


def form_of(space: Space, spec: ArchitectureSpec) -> Form | None:
    """The choices by which the space draws this architecture; None if it never does."""
    if not isinstance(spec, Gpt2Spec | LlamaSpec) or spec.width not in space.widths:
        return None
    family, width = GPT2 if isinstance(spec, Gpt2Spec) else LLAMA, spec.width
    exact = width * (GATED if family == LLAMA else 1.0)

    def rounding(expansion: float) -> float:
        return abs(expansion * exact - mlp_width(width, expansion, family))

    # Of two expansions that are rounded to one width, the nearer one is taken.
    expansion_of = {0: 0.0}
    for one in sorted(space.expansions, key=rounding, reverse=True):
        expansion_of[mlp_width(width, one, family)] = one
    if any(inner not in expansion_of for inner in spec.inner):
        return None
    form = Form(
        family,
        width,
        space.groups[0],
        tuple(width // heads if heads else 0 for heads in spec.heads),
        tuple(expansion_of[inner] for inner in spec.inner),
    )
    forms = (replace(form, group=group) for group in space.groups)
    return next((one for one in forms if allowed(space, one) and one.spec(space) == spec), None)


def allowed(space: Space, form: Form) -> bool:
    """Whether the space can draw the form: some attention, some MLP, no empty block."""
    sizes, expansions = set(form.sizes) - {0}, set(form.expansions) - {0.0}
    blocks = list(zip(form.sizes, form.expansions, strict=True))
    return (
        form.family in space.families
        and form.depth in space.depths
        and form.width in space.widths
        and form.group in space.groups
        and sizes <= set(head_sizes(space, form.width))
        and expansions <= set(space.expansions)
        and 0 < len(sizes) <= KINDS
        and 0 < len(expansions) <= KINDS
        and all(size or expansion for size, expansion in blocks)
        and (all(size and expansion for size, expansion in blocks) or max(space.missing) > 0)
    )


def mutate(space: Space, spec: ArchitectureSpec, rng: Random) -> ArchitectureSpec:
    """A neighbour in the space: the architecture with one thing changed.

    The change is one of: a depth or a width next to its own; the head size, or the expansion,
    of one block or of all that share it; the group; attention or MLP of one block removed or
    restored; the family.  The same architecture if none is so near; ValueError if the space does
    not hold it.
    """
    form = form_of(space, spec)
    if form is None:
        raise ValueError(f"the space {space.name} does not hold {spec}")
    for _ in range(ATTEMPTS):
        changed = _MUTATIONS[rng.integers(len(_MUTATIONS))](space, form, rng)
        if allowed(space, changed) and (found := changed.spec(space)) != spec:
            return found
    return spec


def _depth(space: Space, form: Form, rng: Random) -> Form:
    depth = _adjacent(space.depths, form.depth, rng)
    blocks = list(range(form.depth))
    while len(blocks) < depth:
        place = int(rng.integers(len(blocks)))
        blocks.insert(place, blocks[place])
    while len(blocks) > depth:
        del blocks[int(rng.integers(len(blocks)))]
    return replace(
        form,
        sizes=tuple(form.sizes[block] for block in blocks),
        expansions=tuple(form.expansions[block] for block in blocks),
    )


def _width(space: Space, form: Form, rng: Random) -> Form:
    width = _adjacent(space.widths, form.width, rng)
    possible = head_sizes(space, width)
    nearest = {size: min(possible, key=lambda one: abs(one - size)) for size in set(form.sizes)}
    sizes = tuple(nearest[size] if size else 0 for size in form.sizes)
    return replace(form, width=width, sizes=sizes)


def _head_size(space: Space, form: Form, rng: Random) -> Form:
    return replace(form, sizes=_exchanged(form.sizes, head_sizes(space, form.width), rng))


def _expansion(space: Space, form: Form, rng: Random) -> Form:
    return replace(form, expansions=_exchanged(form.expansions, space.expansions, rng))


def _group(space: Space, form: Form, rng: Random) -> Form:
    return replace(form, group=_one_of(space.groups, rng))


def _sublayer(space: Space, form: Form, rng: Random) -> Form:
    """Remove attention or MLP of one block, or restore it as another block has it."""
    block = int(rng.integers(form.depth))
    if rng.integers(2):
        return replace(form, sizes=_toggled(form.sizes, block, rng))
    return replace(form, expansions=_toggled(form.expansions, block, rng))


def _family(space: Space, form: Form, rng: Random) -> Form:
    return replace(form, family=_one_of(space.families, rng))


_MUTATIONS: tuple[Callable[[Space, Form, Random], Form], ...] = (
    _depth,
    _width,
    _head_size,
    _expansion,
    _group,
    _sublayer,
    _family,
)


def _exchanged(values: tuple[T, ...], possible: Sequence[T], rng: Random) -> tuple[T, ...]:
    """Another value for one block that has any, or for all that have the same."""
    block = int(rng.choice([place for place, value in enumerate(values) if value]))
    new, everywhere = _one_of(possible, rng), bool(rng.integers(2))
    return tuple(
        new if place == block or (everywhere and value == values[block]) else value
        for place, value in enumerate(values)
    )


def _toggled(values: tuple[T, ...], block: int, rng: Random) -> tuple[T, ...]:
    changed = list(values)
    changed[block] = type(values[block])(0)
    if not values[block]:
        changed[block] = _one_of([value for value in values if value], rng)
    return tuple(changed)


def _adjacent(values: Sequence[int], own: int, rng: Random) -> int:
    """The next value above or below."""
    ordered = sorted(set(values))
    place = ordered.index(own)
    return _one_of(
        ordered[max(0, place - 1) : place] + ordered[place + 1 : place + 2] or [own], rng
    )


def _one_of(values: Sequence[U], rng: Random) -> U:
    return values[int(rng.integers(len(values)))]


@dataclass(frozen=True)
class LimitedSpace:
    """The architectures of a space that keep limits, the cheapest to check first.

    Of each family, depth and width that has one within the limits, `smallest` has the one of the
    fewest parameters, or of the fewest multiply-adds if only that is within them; one that was
    drawn, if there are budgets to meet.
    """

    space: Space
    limits: tuple[Limit, ...]
    smallest: Mapping[Cell, ArchitectureSpec]

    def draw(self, rng: Random) -> ArchitectureSpec:
        """An architecture within the limits: families, depths and widths come equally often."""
        cells = list(self.smallest)
        cell = cells[int(rng.integers(len(cells)))]
        drawn = (draw(self.space, *cell, rng) for _ in range(_DRAWS))
        kept = (one for one in drawn if one and keeps_all(self.limits, one))
        return next(kept, self.smallest[cell])

    def mutate(self, spec: ArchitectureSpec, rng: Random) -> ArchitectureSpec:
        """A neighbour within the limits, or a draw if there seems to be none.

        With budgets to meet, it is a draw: hardly a neighbour meets them.
        An architecture that has grown beyond a limit is mutated further until it keeps all, so
        that size can move from one place to another.
        """
        if self.space.budgeted:
            return self.draw(rng)
        for _ in range(_WALKS):
            changed = spec
            for _ in range(_STEPS):
                changed = mutate(self.space, changed, rng)
                if changed != spec and keeps_all(self.limits, changed):
                    return changed
        return self.draw(rng)


def limited(space: Space, limits: tuple[Limit, ...]) -> LimitedSpace:
    """The part of a space within limits, the cheapest to check first.

    LmscoutError if the space holds nothing so small; it names the smallest that it holds.
    """
    cells = [(f, depth, w) for f in space.families for depth in space.depths for w in space.widths]
    if space.budgeted:
        rng = np.random.default_rng(0)
        drawn = {cell: draw(space, *cell, rng) for cell in cells}
        smallest = {cell: [one] for cell, one in drawn.items() if one is not None}
    else:
        costs = [parameters, *[multiply_adds] * any(one.name != PARAMS for one in limits)]
        smallest = {cell: [smallest_of(space, *cell, cost) for cost in costs] for cell in cells}
    kept = {
        cell: next((one for one in ones if keeps_all(limits, one)), None)
        for cell, ones in smallest.items()
    }
    found = {cell: one for cell, one in kept.items() if one is not None}
    if not found:
        every = [one for ones in smallest.values() for one in ones]
        if not every:
            raise nothing_meets(space)
        raise nothing_within(f"the space {space.name}", limits, every)
    return LimitedSpace(space, limits, found)


def smallest_of(
    space: Space, family: str, depth: int, width: int, cost: Cost = parameters
) -> ArchitectureSpec:
    """The architecture of the least cost of a family, a depth and a width.

    If attention or MLP may be missing, every block but the first has the cheaper of the two; the
    first has the other one, or both if it is the only block.
    """
    ones, rest = (True,) * depth, depth - 1
    choices = [(ones, ones)]  # blocks with attention, blocks with an MLP
    if max(space.missing) > 0 and rest:
        first, others = (True, *[False] * rest), (False, *[True] * rest)
        choices = [(first, others), (others, first)]
    forms = (
        Form(
            family,
            width,
            group,
            tuple(size * attends for attends in attention),
            tuple(min(space.expansions) * computes for computes in mlp),
        )
        for attention, mlp in choices
        for size in head_sizes(space, width)
        for group in space.groups
    )
    return min((form.spec(space) for form in forms), key=cost)
