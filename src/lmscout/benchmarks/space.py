"""Spaces of architectures: named ones, files that define them, and drawing from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Annotated, cast

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy.optimize import bisect

from lmscout.benchmarks.benchmark import checked
from lmscout.errors import LmscoutError, brief
from lmscout.models import ArchitectureSpec, Gpt2Spec, LlamaSpec
from lmscout.models.layers import DecoderSpec
from lmscout.models.spec import MOST_BLOCKS, MOST_SIZE, MOST_VOCABULARY, MOST_WIDTH
from lmscout.reading import expanded, read_json_object

GPT2, LLAMA = "gpt2", "llama"
SUFFIX = ".json"

PER_CELL = 8  # architectures of one depth and width, so that they can be compared within it
FEWEST_CELLS = 5
MULTIPLE = 32  # widths of MLPs are multiples of it, where the model is wide enough
FINE = 4  # the same, where they meet a budget
GATED = 2 / 3  # a gated MLP has three matrices where a plain one has two
BUDGET_DRAWS = 50  # until one can meet a budget
NEAREST_OF = 200  # draws that an error names the nearest of
ATTEMPTS = 100  # to draw from a cell what was not drawn before
_MOST_SIZES = 200_000  # of blocks; `smallest_of` tries all of them

_Family = Annotated[str, Field(pattern=f"^({GPT2}|{LLAMA})$")]
_LIST = Field(min_length=1, max_length=256, strict=False)  # JSON has lists for tuples
_Depth = Annotated[int, Field(gt=0, le=MOST_BLOCKS)]
_Width = Annotated[int, Field(gt=0, le=MOST_WIDTH)]
_Size = Annotated[int, Field(gt=0, le=MOST_SIZE)]
_Expansion = Annotated[float, Field(gt=0, le=1024)]
# Above one half, hardly a draw has both attention and an MLP.
_Chance = Annotated[float, Field(ge=0, le=0.5)]


@dataclass(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
)
class Space:
    """Decoders that may be drawn; a file of a space has these fields, less the name.

    An architecture draws two head sizes and two expansions, and each of its blocks one of the
    two: architectures of one depth and width then differ as wholes, not only block by block.

    Attributes:
        name: as a user names it.
        families: ``gpt2`` (Gpt2Spec: learned positions, LayerNorm, GELU) and ``llama``
            (LlamaSpec: rotary positions, RMSNorm, SwiGLU).
        depths: numbers of blocks.
        widths: sizes of the hidden state.
        head_sizes: sizes of a head; those that divide the width.
        expansions: widths of a plain MLP as multiples of the width; a gated one has two thirds.
        groups: query heads that share a key-value head, in LLaMA blocks.
        missing: chances with which the attention, or the MLP, of a block is missing; an
            architecture draws one.
        vocabulary: number of tokens.
        max_length: number of positions.
        params: budget of parameters in the blocks and the final norm, which every architecture
            meets; None for none.
        macs: budget of multiply-adds in the blocks (`ArchitectureSpec.multiply_adds`); None for
            none.
        tolerance: largest relative distance from a budget.
    """

    name: str
    families: Annotated[tuple[_Family, ...], _LIST] = (GPT2, LLAMA)
    depths: Annotated[tuple[_Depth, ...], _LIST]
    widths: Annotated[tuple[_Width, ...], _LIST]
    head_sizes: Annotated[tuple[_Width, ...], _LIST]
    expansions: Annotated[tuple[_Expansion, ...], _LIST]
    groups: Annotated[tuple[_Size, ...], _LIST] = (1,)
    missing: Annotated[tuple[_Chance, ...], _LIST] = (0.0,)
    vocabulary: Annotated[int, Field(ge=2, le=MOST_VOCABULARY)]
    max_length: Annotated[int, Field(ge=2, le=MOST_SIZE)]
    params: Annotated[int, Field(gt=0, le=10**12)] | None = None
    macs: Annotated[int, Field(gt=0, le=10**12)] | None = None
    tolerance: Annotated[float, Field(gt=0, le=0.5)] = 0.005

    @property
    def budgeted(self) -> bool:
        """Whether architectures meet a budget."""
        return self.params is not None or self.macs is not None

    def meets(self, spec: DecoderSpec) -> bool:
        """Whether an architecture meets the budgets."""
        costs = ((self.params, spec.body_parameters()), (self.macs, spec.multiply_adds()))
        return all(
            budget is None or abs(cost / budget - 1) <= self.tolerance for budget, cost in costs
        )


PICO = Space(
    name="pico",
    depths=tuple(range(2, 11)),
    widths=tuple(range(64, 321, 32)),
    head_sizes=(16, 32, 64),
    expansions=(0.5, 1.0, 2.0, 3.0, 4.0),
    groups=(1, 2, 4),
    missing=(0.0, 0.0, 0.15, 0.3),
    vocabulary=4096,
    max_length=128,
)

NANO = Space(
    name="nano",
    depths=(1, 2, 3),
    widths=(16, 32, 48),
    head_sizes=(8, 16),
    expansions=(1.0, 2.0, 4.0),
    groups=(1, 2),
    missing=(0.0, 0.3),
    vocabulary=4096,
    max_length=32,
)

ISO = Space(
    name="iso",
    depths=tuple(range(2, 25)),
    widths=(192, 208, 240, 256, 272, 368, 384, 400),
    head_sizes=(16, 32, 48, 64, 80, 104, 136, 184),
    expansions=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    groups=(1, 2, 4),
    missing=(0.0, 0.15, 0.3, 0.5),
    vocabulary=4096,
    max_length=128,
    params=2_000_000,
    macs=2_100_000,
)
"""Equal in size and in computation; the rest differs.  Widths lie on both sides of the best."""

SPACES: tuple[Space, ...] = (PICO, ISO, NANO)


def load_space(name: str) -> Space:
    """The space of a name, or of a file, whose name ends in .json; LmscoutError if it is none."""
    return read_space(expanded(name)) if name.endswith(SUFFIX) else space_of(name)


def space_of(name: str) -> Space:
    """The space of that name; LmscoutError if there is none."""
    for space in SPACES:
        if space.name == name:
            return space
    names = ", ".join(space.name for space in SPACES)
    raise LmscoutError(f"unknown space {brief(name)}; there are {names}")


def read_space(path: Path) -> Space:
    """A space from a file, named as the file is.

    LmscoutError if the file cannot be read, or no architecture can be of the space.
    """
    space = checked(Space, {**read_json_object(path), "name": path.stem}, str(path))
    for problem in _problems(space):
        raise LmscoutError(f"{path}: {problem}")
    return space


def _problems(space: Space) -> Iterator[str]:
    """Fields that do not fit each other."""
    for width in space.widths:
        if not head_sizes(space, width):
            yield f"widths: none of head_sizes divides {width}"
    if space.params is not None and space.macs is not None and space.macs <= space.params:
        yield (
            f"macs: {space.macs:,} is not above params, {space.params:,}; every parameter of a "
            "matrix costs one multiply-add, and attention adds others"
        )
    odd = [size for size in space.head_sizes if size % 2]
    if LLAMA in space.families and odd:
        yield f"head_sizes: {odd[0]} is odd; rotary positions of {LLAMA} need even ones"
    blocks = len(space.families) * len(space.widths) * sum(space.depths)
    if blocks * len(space.head_sizes) * len(space.groups) > _MOST_SIZES:
        yield (
            "depths, widths, head_sizes and groups: have too many values together (more than "
            f"{_MOST_SIZES:,} blocks); give fewer"
        )


def sample(space: Space, n: int, seed: int) -> tuple[ArchitectureSpec, ...]:
    """Draw distinct architectures, spread over the space's sizes.

    Depths and widths are paired as in a Latin square, so that every depth and every width comes
    equally often; there is a pair for each `PER_CELL` architectures, and at least
    `FEWEST_CELLS`; with budgets, there are all pairs that can meet them.  Within a pair the
    families alternate.  LmscoutError if n is not above 0, or the space has too few different ones.
    """
    if n < 1:
        raise LmscoutError(f"{n} architectures cannot be drawn: give a number above 0")
    rng = np.random.default_rng(seed)
    cells = _cells(space, n, rng)
    if not cells:
        raise nothing_meets(space)
    families = space.families
    if space.budgeted:
        own = np.random.default_rng(seed)
        families = tuple(f for f in families if any(draw(space, f, *cell, own) for cell in cells))
    drawn: dict[ArchitectureSpec, None] = {}
    for index in range(n):
        cycle, place = divmod(index, len(cells))
        family = families[(cycle + place) % len(families)]
        for attempt in range(ATTEMPTS * len(cells)):
            # A cell that seems to be exhausted is followed by the next.
            depth, width = cells[(place + attempt // ATTEMPTS) % len(cells)]
            spec = draw(space, family, depth, width, rng)
            if spec is not None and spec not in drawn:
                drawn[spec] = None
                break
        else:
            raise LmscoutError(
                f"{space.name}: {n} different architectures could not be drawn; ask for fewer"
            )
    return tuple(drawn)


def nothing_meets(space: Space) -> LmscoutError:
    """The error that no architecture meets the budgets; names the nearest of some."""
    free, rng = replace(space, params=None, macs=None), np.random.default_rng(0)
    budgets = {"params": space.params, "macs": space.macs}
    wanted = {name: one for name, one in budgets.items() if one is not None}
    drawn = []
    for _ in range(NEAREST_OF):
        family = str(rng.choice(free.families))
        depth, width = int(rng.choice(free.depths)), int(rng.choice(free.widths))
        spec = draw(free, family, depth, width, rng)
        assert isinstance(spec, DecoderSpec)
        drawn.append({"params": spec.body_parameters(), "macs": spec.multiply_adds()})
    nearest = min(drawn, key=lambda costs: max(abs(costs[one] / wanted[one] - 1) for one in wanted))
    given, had = (" and ".join(f"{one} {of[one]:,}" for one in wanted) for of in (wanted, nearest))
    return LmscoutError(
        f"{space.name}: no architecture that was drawn meets the budget of {given} (the nearest of "
        f"{NEAREST_OF} without a budget has {had}); change it, or give more widths, more "
        "expansions or a larger tolerance"
    )


def _cells(space: Space, n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    depths = rng.permutation(space.depths).tolist()
    widths = rng.permutation(space.widths).tolist()
    pairs = [
        (depths[place % len(depths)], widths[(place + shift) % len(widths)])
        for shift in range(len(widths))
        for place in range(len(depths))
    ]
    pairs = list(dict.fromkeys(pairs))
    if space.budgeted:
        found = (
            [pair for pair in pairs if draw(space, family, *pair, rng)] for family in space.families
        )
        return next(filter(None, found), [])[:n]
    return pairs[: max(FEWEST_CELLS, -(-n // PER_CELL))]


def draw(
    space: Space, family: str, depth: int, width: int, rng: np.random.Generator
) -> ArchitectureSpec | None:
    """Draw one architecture; None if none that was drawn meets the space's budgets."""
    if space.budgeted:
        drawn = (_draw_budgeted(space, family, depth, width, rng) for _ in range(BUDGET_DRAWS))
        return next((one for one in drawn if one is not None), None)
    sizes = rng.choice(head_sizes(space, width), 2)
    expansions = rng.choice(space.expansions, 2)
    group, missing = int(rng.choice(space.groups)), float(rng.choice(space.missing))
    heads = [width // int(size) for size in rng.choice(sizes, depth)]
    inner = [mlp_width(width, float(one), family) for one in rng.choice(expansions, depth)]
    for index in range(depth):
        absent = rng.random(2) < missing
        if absent.all():  # a block keeps one of the two
            absent[int(rng.integers(2))] = False
        heads[index] *= not absent[0]
        inner[index] *= not absent[1]
    if not any(heads) or not any(inner):  # without any attention, or any MLP
        return draw(space, family, depth, width, rng)
    return assembled(space, family, width, heads, inner, group)


def _draw_budgeted(
    space: Space, family: str, depth: int, width: int, rng: np.random.Generator
) -> DecoderSpec | None:
    """One draw: blocks with attention by the multiply-adds, then widths of MLPs by the rest.

    With both budgets, what multiply-adds exceed parameters by are the products of attention,
    which give the number of blocks that have it.
    """
    group, missing = int(rng.choice(space.groups)), float(rng.choice(space.missing))
    sizes, expansions = rng.choice(head_sizes(space, width), 2), rng.choice(space.expansions, 2)
    attends = rng.random(depth) >= missing
    if space.params is not None and space.macs is not None:
        products = space.macs - space.params
        count = round(products / (width * (space.max_length + 1)))
        if not 0 < count <= depth:
            return None
        attends = np.zeros(depth, bool)
        attends[rng.choice(depth, count, replace=False)] = True
    computes = (rng.random(depth) >= missing) | ~attends
    if not attends.any() or not computes.any():
        return None
    sizes_of = rng.choice(sizes, depth).tolist()
    heads = [width // size if one else 0 for size, one in zip(sizes_of, attends, strict=True)]
    relative = rng.choice(expansions, depth) * computes

    def at(scale: float) -> DecoderSpec:
        """The architecture whose MLPs are so many times as wide as drawn."""
        exact = relative * scale * width * (GATED if family == LLAMA else 1.0)
        inner = [max(FINE, round(one / FINE) * FINE) if one else 0 for one in exact.tolist()]
        return assembled(space, family, width, heads, inner, group)

    def excess(logarithm: float) -> float:
        spec = at(exp(logarithm))
        if space.params is not None:
            return spec.body_parameters() - space.params
        return spec.multiply_adds() - cast(int, space.macs)

    drawn = relative[computes]
    low, high = log(min(space.expansions) / drawn.min()), log(max(space.expansions) / drawn.max())
    if low > high or excess(low) > 0 or excess(high) < 0:
        return None  # an MLP would be narrower or wider than the space has them
    spec = at(exp(bisect(excess, low, high, xtol=1e-4, disp=False)))
    return spec if space.meets(spec) else None


def assembled(
    space: Space, family: str, width: int, heads: Sequence[int], inner: Sequence[int], group: int
) -> DecoderSpec:
    """The spec of a draw: query heads and MLP width of each block, 0 where there is none.

    In LLaMA blocks, so many query heads as the group share a key-value head where that divides.
    """
    if family == GPT2:
        return Gpt2Spec(
            width=width,
            heads=tuple(heads),
            inner=tuple(inner),
            embedding_width=width,
            tied=(True,),
            vocabulary=space.vocabulary,
            max_length=space.max_length,
        )
    return LlamaSpec(
        width=width,
        heads=tuple(heads),
        key_value_heads=tuple(_shared(count, group) for count in heads),
        inner=tuple(inner),
        vocabulary=space.vocabulary,
        max_length=space.max_length,
    )


def head_sizes(space: Space, width: int) -> list[int]:
    """The sizes that heads may have at a width."""
    return [size for size in space.head_sizes if width % size == 0]


def mlp_width(width: int, expansion: float, family: str) -> int:
    """Width of the MLP that an expansion means at a width."""
    wanted = width * expansion * (GATED if family == LLAMA else 1.0)
    multiple = min(MULTIPLE, max(1, width // 2))
    return max(multiple, round(wanted / multiple) * multiple)


def _shared(heads: int, group: int) -> int:
    """Key-value heads for query heads in groups of at most that size."""
    largest = min(group, heads)
    return next((heads // size for size in range(largest, 0, -1) if heads % size == 0), 0)
