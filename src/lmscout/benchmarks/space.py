"""Spaces of architectures: drawing from them, and files that define them.

Spaces of architectures to train, and how architectures are drawn from one.

Spaces that people write: a JSON file with the fields of `Space`, checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, Field

from lmscout.benchmarks.benchmark import Row, checked
from lmscout.errors import LmscoutError, brief
from lmscout.models import ArchitectureSpec, Gpt2Spec, LlamaSpec
from lmscout.models.spec import MOST, MOST_BLOCKS, MOST_OTHER
from lmscout.reading import expanded, read_json

GPT2, LLAMA = "gpt2", "llama"

PER_CELL = 8  # architectures of one depth and width, so that they can be compared within it
FEWEST_CELLS = 5
MULTIPLE = 32  # widths of MLPs are multiples of it, where the model is wide enough
GATED = 2 / 3  # a gated MLP has three matrices where a plain one has two
ATTEMPTS = 100  # to draw from a cell what was not drawn before


@dataclass(frozen=True)
class Space:
    """Decoders that may be drawn.

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
        missing: chances with which each half of a block is missing; an architecture draws one.
        vocabulary: number of tokens.
        max_length: number of positions.
    """

    name: str
    families: tuple[str, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    head_sizes: tuple[int, ...]
    expansions: tuple[float, ...]
    groups: tuple[int, ...]
    missing: tuple[float, ...]
    vocabulary: int
    max_length: int


PICO = Space(
    name="pico",
    families=(GPT2, LLAMA),
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
    families=(GPT2, LLAMA),
    depths=(1, 2, 3),
    widths=(16, 32, 48),
    head_sizes=(8, 16),
    expansions=(1.0, 2.0, 4.0),
    groups=(1, 2),
    missing=(0.0, 0.3),
    vocabulary=4096,
    max_length=32,
)

SPACES: tuple[Space, ...] = (PICO, NANO)


def space_of(name: str) -> Space:
    """The space of that name.

    Raises:
        LmscoutError: there is none.
    """
    for space in SPACES:
        if space.name == name:
            return space
    names = ", ".join(space.name for space in SPACES)
    raise LmscoutError(f"unknown space {brief(name)}; there are {names}")


def sample(space: Space, n: int, seed: int) -> tuple[ArchitectureSpec, ...]:
    """Draw architectures, no two alike, spread over the space's sizes.

    Depths and widths are paired as in a Latin square, so that every depth and every width comes
    equally often; there is a pair for each `PER_CELL` architectures, and at least
    `FEWEST_CELLS`.  Within a pair the families take turns.

    Args:
        space: what may be drawn.
        n: how many.
        seed: of the draw.

    Raises:
        LmscoutError: n is not above 0, or the space has too few different architectures.
    """
    if n < 1:
        raise LmscoutError(f"{n} architectures cannot be drawn: give a number above 0")
    rng = np.random.default_rng(seed)
    cells = _cells(space, n, rng)
    drawn: dict[ArchitectureSpec, None] = {}
    for index in range(n):
        turn, place = divmod(index, len(cells))
        family = space.families[(turn + place) % len(space.families)]
        for attempt in range(ATTEMPTS * len(cells)):
            # A cell that seems to be exhausted leaves its turn to the next.
            depth, width = cells[(place + attempt // ATTEMPTS) % len(cells)]
            spec = draw(space, family, depth, width, rng)
            if spec not in drawn:
                drawn[spec] = None
                break
        else:
            raise LmscoutError(
                f"{space.name}: {n} different architectures could not be drawn; ask for fewer"
            )
    return tuple(drawn)


def _cells(space: Space, n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    depths = rng.permutation(space.depths).tolist()
    widths = rng.permutation(space.widths).tolist()
    pairs = [
        (depths[place % len(depths)], widths[(place + turn) % len(widths)])
        for turn in range(len(widths))
        for place in range(len(depths))
    ]
    wanted = max(FEWEST_CELLS, -(-n // PER_CELL))
    return list(dict.fromkeys(pairs))[:wanted]


def draw(
    space: Space, family: str, depth: int, width: int, rng: np.random.Generator
) -> ArchitectureSpec:
    """Draw one architecture of a family, a depth and a width."""
    sizes = rng.choice(head_sizes(space, width), 2)
    expansions = rng.choice(space.expansions, 2)
    group, missing = int(rng.choice(space.groups)), float(rng.choice(space.missing))
    heads = [width // int(size) for size in rng.choice(sizes, depth)]
    inner = [mlp_width(width, float(one), family) for one in rng.choice(expansions, depth)]
    for index in range(depth):
        lost = rng.random(2) < missing
        if lost.all():  # a block keeps one half
            lost[int(rng.integers(2))] = False
        heads[index] *= not lost[0]
        inner[index] *= not lost[1]
    if not any(heads) or not any(inner):  # one that never attends, or never computes
        return draw(space, family, depth, width, rng)
    return assembled(space, family, width, heads, inner, group)


def assembled(
    space: Space, family: str, width: int, heads: Sequence[int], inner: Sequence[int], group: int
) -> ArchitectureSpec:
    """The spec of what was drawn.

    Args:
        space: for the vocabulary and the positions.
        family: of the decoder.
        width: of the hidden state.
        heads: query heads of each block; 0 for no attention.
        inner: width of each block's MLP; 0 for none.
        group: query heads that share a key-value head, where they can be so divided; for LLaMA.
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


SUFFIX = ".json"

_LISTS = ("families", "depths", "widths", "head_sizes", "expansions", "groups", "missing")
_MOST_ENTRIES = 256  # of a list
_MOST_FORMS = 200_000  # the smallest of a space is looked for among so many
_MOST = {"depths": MOST_BLOCKS, "widths": MOST["width"], "head_sizes": MOST["width"]}
_MOST_EXPANSION = 1024
_MOST_MISSING = 0.5  # beyond it, hardly a draw attends and computes at all


class SpaceRow(Row):
    """The file: what each field says is at `Space`."""

    # A slip in a field that has a default would be another space, and hours of training.
    model_config = ConfigDict(extra="forbid")

    name: str | None = None  # as a build notes it; the file's name counts
    families: list[str] = Field(default_factory=lambda: [GPT2, LLAMA])
    depths: list[int]
    widths: list[int]
    head_sizes: list[int]
    expansions: list[float]
    groups: list[int] = Field(default_factory=lambda: [1])
    missing: list[float] = Field(default_factory=lambda: [0.0])
    vocabulary: int
    max_length: int


def load_space(name: str) -> Space:
    """The space of a name, or of a file, whose name ends in .json.

    Raises:
        LmscoutError: there is none of that name, or the file is no space.
    """
    return read_space(expanded(name)) if name.endswith(SUFFIX) else space_of(name)


def read_space(path: Path) -> Space:
    """A space from a file, named as the file is.

    Raises:
        LmscoutError: the file cannot be read, or says something that no architecture can have.
    """
    row = checked(SpaceRow, read_json(path), str(path))
    space = Space(
        name=path.stem,
        families=tuple(row.families),
        depths=tuple(row.depths),
        widths=tuple(row.widths),
        head_sizes=tuple(row.head_sizes),
        expansions=tuple(row.expansions),
        groups=tuple(row.groups),
        missing=tuple(row.missing),
        vocabulary=row.vocabulary,
        max_length=row.max_length,
    )
    complaint = next(_complaints(space), None)
    if complaint:
        raise LmscoutError(f"{path}: {complaint}")
    return space


def _complaints(space: Space) -> Iterator[str]:
    """Why no architecture can be of a space; after the first, the others may make no sense."""
    for field in _LISTS:
        if not getattr(space, field):
            yield f"{field}: is empty; give at least one value"
        if len(getattr(space, field)) > _MOST_ENTRIES:
            yield f"{field}: has too many values (more than {_MOST_ENTRIES})"
    for field in ("depths", "widths", "head_sizes", "expansions", "groups"):
        if min(getattr(space, field)) <= 0:
            yield f"{field}: {brief(min(getattr(space, field)))} is not above 0"
    yield from _too_large(space)
    unknown = [one for one in space.families if one not in (GPT2, LLAMA)]
    if unknown:
        yield f"families: {brief(unknown[0])} is unknown; there are {GPT2} and {LLAMA}"
    if not 0 <= min(space.missing) <= max(space.missing) <= _MOST_MISSING:
        yield f"missing: chances go from 0 to {_MOST_MISSING}"
    if min(space.vocabulary, space.max_length) < 2:
        yield "vocabulary and max_length: give at least 2"
    for width in space.widths:
        if not head_sizes(space, width):
            yield f"widths: none of head_sizes divides {width}"
    odd = [size for size in space.head_sizes if size % 2]
    if LLAMA in space.families and odd:
        yield f"head_sizes: {odd[0]} is odd; rotary positions of {LLAMA} need even ones"


def _too_large(space: Space) -> Iterator[str]:
    """Sizes that no architecture has, and more of them than can be looked through."""
    for field in ("depths", "widths", "head_sizes", "groups"):
        largest, most = max(getattr(space, field)), _MOST.get(field, MOST_OTHER)
        if largest > most:
            yield f"{field}: {brief(largest)} is too large; give at most {most:,}"
    if max(space.expansions) > _MOST_EXPANSION:
        yield f"expansions: {max(space.expansions):g} is too large; give at most {_MOST_EXPANSION}"
    for field, most in (("vocabulary", MOST["vocabulary"]), ("max_length", MOST_OTHER)):
        if getattr(space, field) > most:
            yield f"{field}: {brief(getattr(space, field))} is too large; give at most {most:,}"
    blocks = len(space.families) * len(space.widths) * sum(space.depths)
    if blocks * len(space.head_sizes) * len(space.groups) > _MOST_FORMS:
        yield (
            "depths, widths, head_sizes and groups: have too many values together (more than "
            f"{_MOST_FORMS:,} blocks); give fewer"
        )
