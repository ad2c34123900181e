"""Plans: how many units each block keeps, and what that is in parameters.

Units of a block are sorted by importance once, so that a plan needs no list of which units
stay: it keeps the first ones.
"""

from __future__ import annotations

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

    def uniform(self, keep: float) -> Plan:
        """The plan that keeps the same share in every block, as near to `keep` as it gets.

        Args:
            keep: kept share of the parameters, above 0 and at most 1.

        Groups are few, so their share is rounded block by block with the error carried on,
        and channels make up the rest.
        """
        return self.fit(
            tuple(keep * number for number in self.groups),
            tuple(keep * number for number in self.channels),
            keep,
        )

    def fit(self, attention: tuple[float, ...], mlp: tuple[float, ...], keep: float) -> Plan:
        """The plan nearest to fractional unit counts that keeps a share of the parameters.

        Groups are rounded with the error carried from block to block; channels are then
        shifted by one common share of the room that they have, to meet the budget.

        Args:
            attention: groups wanted, for each block.
            mlp: channels wanted, for each block.
            keep: kept share of the parameters.

        Returns:
            A plan whose share differs from `keep` by less than one channel, wherever the
            groups leave that possible.
        """
        kept_groups = []
        carried = 0.0
        for wanted, most in zip(attention, self.groups, strict=True):
            number = int(np.clip(round(wanted + carried), 0, most))
            carried = float(np.clip(carried + wanted - number, -1.0, 1.0))
            kept_groups.append(number)
        room = keep * self.parameters - sum(
            number * each for number, each in zip(kept_groups, self.group_parameters, strict=True)
        )
        channels = np.array(self.channels, np.float64)
        each = np.array(self.channel_parameters, np.float64)
        wanted_channels = np.clip(np.array(mlp, np.float64), 0, channels)
        gap = room - wanted_channels @ each
        slack = (channels - wanted_channels) if gap > 0 else wanted_channels
        available = slack @ each
        if available > 0:
            wanted_channels = wanted_channels + slack * float(np.clip(gap / available, -1, 1))
        return Plan(tuple(kept_groups), _rounded(wanted_channels, each, room, channels))


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
    def dropped(self) -> tuple[int, ...]:
        """Blocks of which nothing is kept."""
        return tuple(
            block
            for block, kept in enumerate(zip(self.attention, self.mlp, strict=True))
            if kept == (0, 0)
        )

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


def _rounded(
    wanted: npt.NDArray[np.float64],
    each: npt.NDArray[np.float64],
    room: float,
    most: npt.NDArray[np.float64],
) -> tuple[int, ...]:
    """Whole channel counts near the wanted ones that use the room up as far as they can.

    Rounded down first; then the largest remainders get one more while there is room.
    """
    down = np.floor(wanted + 1e-9)
    left = room - down @ each
    for block in np.argsort(-(wanted - down), kind="stable"):
        if down[block] < most[block] and left >= each[block] / 2:
            down[block] += 1
            left -= each[block]
    return tuple(int(number) for number in down)
