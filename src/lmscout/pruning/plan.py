"""Plans: the number of units that each block keeps, alone and as rows of one array.

Plans: how many units each block keeps, and what that is in parameters.

Units of a block are sorted by importance once, so that a plan needs no list of which units
stay: it keeps the first ones.

Plans as rows of one integer array, for whatever looks at many of them at once.

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
    """Units of a dense model, block by block, and the parameters that each carries.

    Attributes:
        groups: attention groups (a key-value head with its query heads) of each block.
        channels: MLP channels of each block.
        group_parameters: parameters of one group, for each block.
        channel_parameters: parameters of one channel, for each block.
    """

    groups: tuple[int, ...]
    channels: tuple[int, ...]
    group_parameters: tuple[int, ...]
    channel_parameters: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.groups)

    @property
    def parameters(self) -> int:
        """Parameters that units carry: all of attention and MLP but the output biases."""
        return self.parameters_of(self.dense)

    @property
    def dense(self) -> Plan:
        """The plan that keeps everything."""
        return Plan(self.groups, self.channels)

    def parameters_of(self, plan: Plan) -> int:
        """Parameters in the units that a plan keeps."""
        return sum(
            kept * each
            for kept, each in (
                *zip(plan.attention, self.group_parameters, strict=True),
                *zip(plan.mlp, self.channel_parameters, strict=True),
            )
        )

    def kept_share(self, plan: Plan) -> float:
        """Share of the parameters in units that a plan keeps, from 0 to 1."""
        return self.parameters_of(plan) / self.parameters

    def check(self, plan: Plan) -> None:
        """Refuse a plan that does not fit.

        Raises:
            LmscoutError: it has another depth, or keeps more units than there are.
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
    """How many units each block keeps; a block with none of either is dropped.

    Attributes:
        attention: groups kept, for each block.
        mlp: channels kept, for each block.
    """

    attention: tuple[int, ...]
    mlp: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Number of blocks, dropped ones included."""
        return len(self.attention)

    @property
    def steps(self) -> tuple[int, ...]:
        """Units kept in the order in which a model computes: attention 0, MLP 0, ..."""
        return tuple(kept for both in zip(self.attention, self.mlp, strict=True) for kept in both)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Blocks of which nothing is kept."""
        return tuple(
            block
            for block, kept in enumerate(zip(self.attention, self.mlp, strict=True))
            if kept == (0, 0)
        )

    @property
    def kept(self) -> tuple[int, ...]:
        """Blocks of which something is kept."""
        dropped = set(self.dropped)
        return tuple(block for block in range(self.depth) if block not in dropped)

    def as_dict(self) -> dict[str, int]:
        """Unit counts by name: ``block00.attention``, ``block00.mlp``, ..."""
        named = {}
        for block, (groups, channels) in enumerate(zip(self.attention, self.mlp, strict=True)):
            named[f"block{block:02d}.attention"] = groups
            named[f"block{block:02d}.mlp"] = channels
        return named

    @classmethod
    def from_dict(cls, named: dict[str, int]) -> Plan:
        """The plan of which `as_dict` gave these counts.

        Raises:
            LmscoutError: a name is missing or unknown.
        """
        depth = len(named) // 2
        plan_names = cls((0,) * depth, (0,) * depth).as_dict()
        if set(plan_names) != set(named):
            odd = sorted(set(plan_names) ^ set(named))
            raise LmscoutError(f"plan: {odd[0]} is missing or unknown")
        counts = [int(named[name]) for name in plan_names]
        return cls(tuple(counts[::2]), tuple(counts[1::2]))


Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def as_rows(plans: Sequence[Plan]) -> Rows:
    """Plans of one depth as rows, [n, 2L]; no plans give [0, 0]."""
    if not plans:
        return np.zeros((0, 0), np.int64)
    return np.array([plan.attention + plan.mlp for plan in plans], np.int64)


def as_plans(rows: Rows) -> list[Plan]:
    """The plans of rows [n, 2L]."""
    depth = rows.shape[1] // 2
    return [Plan(tuple(row[:depth]), tuple(row[depth:])) for row in rows.tolist()]


def dense_row(shape: Shape) -> Rows:
    """The units there are, [2L]."""
    return np.array(shape.groups + shape.channels, np.int64)


def unit_parameters(shape: Shape) -> Rows:
    """Parameters of one unit in every column of a row, [2L]."""
    return np.array(shape.group_parameters + shape.channel_parameters, np.int64)


def kept_shares(shape: Shape, rows: Rows) -> Floats:
    """Share of the parameters in units that every row keeps, [n]."""
    kept: Floats = (rows @ unit_parameters(shape)) / shape.parameters
    return kept


def unseen(rows: Rows, seen: set[bytes]) -> list[int]:
    """Places of the rows that were not seen before, each once; they are seen from now on."""
    new = []
    for place, row in enumerate(rows):
        if (key := row.tobytes()) not in seen:
            seen.add(key)
            new.append(place)
    return new


def in_block_order(rows: Rows) -> Rows:
    """Columns as a model computes them: attention 0, MLP 0, attention 1, ..."""
    depth = rows.shape[1] // 2
    return rows.reshape(len(rows), 2, depth).swapaxes(1, 2).reshape(len(rows), 2 * depth)
