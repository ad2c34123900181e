"""A space under a limit of parameters: what is drawn from it, and changed, stays below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmscout.architectures import ArchitectureSpec
from lmscout.benchmarks.mutation import Form, Random, mutate
from lmscout.benchmarks.space import Space, draw, head_sizes
from lmscout.errors import LmscoutError

Cell = tuple[str, int, int]  # family, depth, width

_DRAWS = 20  # from a cell, before its smallest architecture is taken
_WALKS, _STEPS = 20, 8  # changes in a row, until the limit is kept


@dataclass(frozen=True)
class LimitedSpace:
    """The part of a space that keeps a limit.

    Attributes:
        space: the whole.
        limit: parameters of a model, at most, embeddings and all.
        smallest: for each family, depth and width that has an architecture within the limit,
            the one of the fewest parameters.
    """

    space: Space
    limit: int
    smallest: Mapping[Cell, ArchitectureSpec]

    def draw(self, rng: Random) -> ArchitectureSpec:
        """An architecture within the limit: families, depths and widths come equally often."""
        cells = list(self.smallest)
        cell = cells[int(rng.integers(len(cells)))]
        drawn = (draw(self.space, *cell, rng) for _ in range(_DRAWS))
        within = (one for one in drawn if one.parameters() <= self.limit)
        return next(within, self.smallest[cell])

    def mutate(self, spec: ArchitectureSpec, rng: Random) -> ArchitectureSpec:
        """A neighbour within the limit, or a draw where there seems to be none.

        What has grown beyond the limit is changed further until it keeps it, so that size can
        move from one place to another.
        """
        for _ in range(_WALKS):
            changed = spec
            for _ in range(_STEPS):
                changed = mutate(self.space, changed, rng)
                if changed != spec and changed.parameters() <= self.limit:
                    return changed
        return self.draw(rng)


def limited(space: Space, limit: int) -> LimitedSpace:
    """The part of a space within a limit of parameters.

    Args:
        space: the whole.
        limit: parameters of a model, at most.

    Raises:
        LmscoutError: the space holds nothing so small; names the smallest that it holds.
    """
    cells = [(f, depth, w) for f in space.families for depth in space.depths for w in space.widths]
    smallest = {cell: smallest_of(space, *cell) for cell in cells}
    within = {cell: one for cell, one in smallest.items() if one.parameters() <= limit}
    if not within:
        least = min(one.parameters() for one in smallest.values())
        raise LmscoutError(
            f"no architecture of the space {space.name} has {limit:,} parameters or fewer: the "
            f"smallest has {least:,}"
        )
    return LimitedSpace(space, limit, within)


def smallest_of(space: Space, family: str, depth: int, width: int) -> ArchitectureSpec:
    """The architecture of the fewest parameters of a family, a depth and a width.

    Where halves of blocks may be missing, every block but the first keeps the cheaper half of
    its own; the first keeps the other one, or both if it stands alone.
    """
    expansion = min(space.expansions)
    rest = depth - 1
    if max(space.missing) == 0:
        choices = [((True,) * depth, (True,) * depth)]
    elif rest == 0:
        choices = [((True,), (True,))]
    else:
        choices = [
            ((True,) + (False,) * rest, (False,) + (True,) * rest),
            ((False,) + (True,) * rest, (True,) + (False,) * rest),
        ]
    forms = (
        Form(
            family,
            width,
            group,
            tuple(size * attends for attends in attention),
            tuple(expansion * computes for computes in mlp),
        )
        for attention, mlp in choices
        for size in head_sizes(space, width)
        for group in space.groups
    )
    return min((form.spec(space) for form in forms), key=lambda spec: spec.parameters())
