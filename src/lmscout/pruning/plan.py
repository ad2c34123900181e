"""Plans: the number of units that each block keeps, alone and as rows of an array.

Units of a block are sorted by importance once, so a plan keeps the first ones and needs no list.
A row is [2L]: the groups that blocks 0 to L-1 keep, then the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.errors import LmscoutError


@dataclass(frozen=True)
class Shape:
    """Units of a dense model by block, and the parameters of one unit."""

    # Attention groups (a key-value head with its query heads) of each block.
    groups: tuple[int, ...]
    channels: tuple[int, ...]  # MLP channels of each block
    group_parameters: tuple[int, ...]  # parameters of one group of each block
    channel_parameters: tuple[int, ...]  # parameters of one channel of each block

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.groups)

    @property
    def parameters(self) -> int:
        """Parameters in all units: attention and MLP without output biases."""
        return self.parameters_of(self.dense)

    @property
    def dense(self) -> Plan:
        """The plan that keeps everything."""
        return Plan(self.groups, self.channels)

    def parameters_of(self, plan: Plan) -> int:
        """Parameters in the units that a plan keeps."""
        kept = plan.attention + plan.mlp
        each = self.group_parameters + self.channel_parameters
        return sum(units * number for units, number in zip(kept, each, strict=True))

    def kept_share(self, plan: Plan) -> float:
        """Share of the parameters in units that a plan keeps, from 0 to 1."""
        return self.parameters_of(plan) / self.parameters

    def check(self, plan: Plan) -> None:
        """Check that a plan fits.

        Raises:
            LmscoutError: it has another depth, or keeps more units than a block has.
        """
        for name, kept, present in (
            ("attention", plan.attention, self.groups),
            ("mlp", plan.mlp, self.channels),
        ):
            if len(kept) != self.depth:
                raise LmscoutError(f"plan: {name} has {len(kept)} blocks, the model {self.depth}")
            for block, (number, most) in enumerate(zip(kept, present, strict=True)):
                if not 0 <= number <= most:
                    raise LmscoutError(
                        f"plan: block {block} keeps {number} units of {name}; it has {most}"
                    )


@dataclass(frozen=True)
class Plan:
    """The units that each block keeps; a block that keeps neither kind is dropped."""

    attention: tuple[int, ...]  # groups kept by each block
    mlp: tuple[int, ...]  # channels kept by each block

    @property
    def depth(self) -> int:
        """Number of blocks, dropped ones included."""
        return len(self.attention)

    @property
    def steps(self) -> tuple[int, ...]:
        """Units kept in the order of computation: attention 0, MLP 0, attention 1, ..."""
        return tuple(kept for both in zip(self.attention, self.mlp, strict=True) for kept in both)

    @property
    def kept(self) -> tuple[int, ...]:
        """Numbers of the blocks that are not dropped."""
        both = zip(self.attention, self.mlp, strict=True)
        return tuple(block for block, units in enumerate(both) if any(units))

    @property
    def dropped(self) -> tuple[int, ...]:
        """Numbers of the blocks that keep nothing."""
        return tuple(sorted(set(range(self.depth)) - set(self.kept)))

    def as_dict(self) -> dict[str, int]:
        """Unit counts by name: ``block00.attention``, ``block00.mlp``, ..."""
        names = [f"block{block:02d}.{kind}" for block in range(self.depth) for kind in _KINDS]
        return dict(zip(names, self.steps, strict=True))

    @classmethod
    def from_dict(cls, named: dict[str, int]) -> Plan:
        """The plan of which `as_dict` gave these counts.

        Raises:
            LmscoutError: a name is missing or unknown.
        """
        depth = len(named) // 2
        names = cls((0,) * depth, (0,) * depth).as_dict().keys()
        if odd := sorted(names ^ named.keys()):
            raise LmscoutError(f"plan: {odd[0]} is missing or unknown")
        counts = [int(named[name]) for name in names]
        return cls(tuple(counts[::2]), tuple(counts[1::2]))


Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_KINDS = ("attention", "mlp")


def as_rows(plans: Sequence[Plan]) -> Rows:
    """Plans of one depth as rows, [n, 2L]; [0, 0] for no plans."""
    if not plans:
        return np.zeros((0, 0), np.int64)
    return np.array([plan.attention + plan.mlp for plan in plans], np.int64)


def as_plans(rows: Rows) -> list[Plan]:
    """The plans of rows [n, 2L]."""
    depth = rows.shape[1] // 2
    return [Plan(tuple(row[:depth]), tuple(row[depth:])) for row in rows.tolist()]


def dense_row(shape: Shape) -> Rows:
    """The row that keeps everything, [2L]."""
    return np.array(shape.groups + shape.channels, np.int64)


def unit_parameters(shape: Shape) -> Rows:
    """Parameters of one unit of each column, [2L]."""
    return np.array(shape.group_parameters + shape.channel_parameters, np.int64)


def kept_shares(shape: Shape, rows: Rows) -> Floats:
    """Share of the parameters in units that every row keeps, [n]."""
    kept: Floats = (rows @ unit_parameters(shape)) / shape.parameters
    return kept


def unseen(rows: Rows, seen: set[bytes]) -> list[int]:
    """Positions of the rows that are not in `seen`, each once; adds them to `seen`."""
    new = []
    for position, row in enumerate(rows):
        if (key := row.tobytes()) not in seen:
            seen.add(key)
            new.append(position)
    return new
