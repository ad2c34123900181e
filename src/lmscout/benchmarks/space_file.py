"""Spaces that people write: a JSON file with the fields of `Space`, checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ConfigDict, Field

from lmscout.architectures.spec import MOST, MOST_BLOCKS, MOST_OTHER
from lmscout.benchmarks.rows import Row, checked
from lmscout.benchmarks.space import GPT2, LLAMA, Space, head_sizes, space_of
from lmscout.errors import LmscoutError, brief
from lmscout.reading import expanded, read_json

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
