"""Budgets: what a plan costs, and the limit that a share of the dense model sets.

Budgets: what a plan costs, and how much it may.

Parameters, multiply-adds, memory and measured latency are all sums over blocks of what the
kept units of either kind cost, so each is a table a block and kind: cost by number of units.

Budgets of a model: a share of what the dense one costs, by a measure that the user names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation import parameter_bytes
from lmscout.pruning.families import Affine, Family
from lmscout.pruning.latency import Latency
from lmscout.pruning.plan import Floats, Rows, Shape, dense_row, unit_parameters

_STEP = 1e-4  # to what shares are rounded up or down
_ROUNDING = 1e-6  # of that: what is off by less is off by the rounding of floats


class Budget(Protocol):
    """What search, proposals and fitting ask of a budget.

    `cost` must not fall where a plan keeps one unit more, and what that adds does not depend
    on what other blocks and kinds keep.
    """

    @property
    def name(self) -> str:
        """What is counted, for messages: ``kept share``."""

    @property
    def limit(self) -> float:
        """The most that a plan may cost."""

    @property
    def slack(self) -> float | None:
        """How far below the limit a plan may stay, or None where that does not matter."""

    def cost(self, rows: Rows) -> Floats:
        """Costs of plans, [n, 2L] to [n]."""

    def least_steps(self) -> Floats:
        """What one unit more of each column costs at least, [2L]."""

    def words(self, cost: float, *, nearer: int = 0) -> str:
        """A cost for messages, its share of the dense model's rounded up (1) or down (-1)."""


@dataclass(frozen=True)
class Unit:
    """In what a cost is told.

    Attributes:
        name: of the unit, plural.
        size: of one, in what the tables count.
    """

    name: str
    size: float


@dataclass(frozen=True, eq=False)
class TableBudget:
    """A budget whose cost is a sum over blocks and kinds.

    Attributes:
        name: what is counted.
        limit: the most that a plan may cost.
        tables: for each column of a row, the cost by number of units kept, [units + 1],
            from 0 up; where a measured table falls, it is held level instead.
        fixed: cost of what is not cut.
        slack: how far below the limit a plan may stay, or None where that does not matter.
        unit: in which costs are told, or None where they are shares of the dense model's.
    """

    name: str
    limit: float
    tables: tuple[Floats, ...]
    fixed: float = 0.0
    slack: float | None = None
    unit: Unit | None = None
    _flat: Floats = field(init=False, repr=False)
    _starts: Rows = field(init=False, repr=False)
    _least: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not all(np.isfinite(table).all() for table in self.tables):
            raise LmscoutError(f"{self.name}: the cost table holds a number that is not finite")
        rising = [np.maximum.accumulate(np.asarray(table, np.float64)) for table in self.tables]
        lengths = [len(table) for table in rising]
        object.__setattr__(self, "_flat", np.concatenate(rising))
        object.__setattr__(self, "_starts", np.cumsum([0, *lengths[:-1]]))
        least = [np.diff(table).min(initial=np.inf) for table in rising]
        object.__setattr__(self, "_least", np.array(least))

    def cost(self, rows: Rows) -> Floats:
        """Costs of plans, [n, 2L] to [n]."""
        total: Floats = self._flat[rows + self._starts].sum(axis=1) + self.fixed
        return total

    def least_steps(self) -> Floats:
        """What one unit more of each column costs at least, [2L]."""
        return self._least

    def at(self, counts: Sequence[Rows]) -> TableBudget:
        """The same for rows that count otherwise.

        Args:
            counts: for each column, how many units a count stands for, from 0 up.
        """
        starts = [*self._starts, len(self._flat)]
        rising = [self._flat[slice(*ends)] for ends in pairwise(starts)]
        tables = tuple(table[some] for table, some in zip(rising, counts, strict=True))
        return replace(self, tables=tables)

    def words(self, cost: float, *, nearer: int = 0) -> str:
        """A cost for messages: ``0.8 (kept share)``, ``9.31 MB (0.62 of the dense model)``.

        Args:
            cost: as the tables count.
            nearer: 1 to round the share up, so that who asks for it gets at least this cost,
                -1 to round it down, 0 to round it.
        """
        whole = sum(float(table.max()) for table in self.tables) + self.fixed
        share = cost if self.unit is None else cost / whole
        if nearer > 0:
            share = math.ceil(share / _STEP - _ROUNDING) * _STEP
        elif nearer < 0:
            share = math.floor(share / _STEP + _ROUNDING) * _STEP
        if self.unit is None:
            return f"{share:.4g} ({self.name})"
        amount = cost / self.unit.size
        number = f"{amount:,.0f}" if amount >= 1000 else f"{amount:.3g}"
        return f"{number} {self.unit.name} ({share:.4g} of the dense model)"


def least_steps(cost: Callable[[Rows], Floats], units: Rows) -> Floats:
    """What one unit more of each column costs at least, where costs are all that is known.

    Args:
        cost: of plans, [n, 2L] to [n].
        units: [2L] of the dense model.

    Returns:
        [2L]; without end where a column has no units.
    """
    steps = np.full(len(units), np.inf)
    for column, most in enumerate(units):
        rows = np.zeros((most + 1, len(units)), np.int64)
        rows[:, column] = np.arange(most + 1)
        steps[column] = np.diff(cost(rows)).min(initial=np.inf)
    return steps


def require_share(keep: float) -> None:
    """Refuse what is no share.

    Args:
        keep: above 0 and at most 1.

    Raises:
        LmscoutError: `keep` is no such share.
    """
    if not 0 < keep <= 1:
        raise LmscoutError(f"keep is {keep:g}: it is a share above 0 and at most 1, such as 0.8")


def keep_budget(shape: Shape, keep: float) -> TableBudget:
    """The kept share of the parameters in attention and MLP, used up: plans are of one size.

    They may stay a thousandth below it, or a channel in models so small that it is more.

    Args:
        shape: of the dense model.
        keep: above 0 and at most 1.

    Raises:
        LmscoutError: `keep` is no such share.
    """
    require_share(keep)
    tables = _linear(shape, unit_parameters(shape) / shape.parameters)
    # Sums of shares are exact to a few 1e-16; a thousandth of a unit is far above that and
    # far below what a unit more would add.
    rounding = 1e-3 * float(unit_parameters(shape).min()) / shape.parameters
    channel = max(shape.channel_parameters) / shape.parameters
    return TableBudget("kept share", keep + rounding, tables, slack=max(1e-3, channel))


def multiply_adds_budget(
    shape: Shape,
    limit: float,
    *,
    window: int,
    group_width: int,
    fixed: float = 0.0,
    group_biases: int = 0,
    channel_biases: int = 0,
) -> TableBudget:
    """Multiply-adds for each token of a window.

    A weight costs one a token.  Attention adds two products a group with the tokens before
    and at each position, (window + 1) / 2 of them on average, `group_width` wide.

    Args:
        shape: of the dense model.
        limit: multiply-adds a token.
        window: tokens.
        group_width: query heads a group times head size.
        fixed: multiply-adds a token outside of units, such as the head's.
        group_biases: parameters of a group that are added, not multiplied.
        channel_biases: the same of a channel.
    """
    each = unit_parameters(shape).astype(np.float64)
    each[: shape.depth] += (window + 1) * group_width - group_biases
    each[shape.depth :] -= channel_biases
    unit = Unit("million multiply-adds a token", 1e6)
    return TableBudget("multiply-adds", limit, _linear(shape, each), fixed, unit=unit)


def memory_budget(
    shape: Shape,
    limit: float,
    *,
    bytes_per_number: float,
    cached_tokens: int = 0,
    head_size: int = 0,
    fixed: float = 0.0,
) -> TableBudget:
    """Bytes of weights, and of the keys and values of cached tokens.

    Args:
        shape: of the dense model.
        limit: bytes.
        bytes_per_number: 2 for bfloat16.
        cached_tokens: tokens whose keys and values are held.
        head_size: numbers in a key, and in a value, of one group.
        fixed: bytes of what is not cut, such as embeddings.
    """
    each = unit_parameters(shape).astype(np.float64)
    each[: shape.depth] += 2 * cached_tokens * head_size
    tables = _linear(shape, each * bytes_per_number)
    return TableBudget("memory", limit, tables, fixed, unit=Unit("MB", 1e6))


def latency_budget(
    shape: Shape,
    limit: float,
    *,
    attention: Sequence[npt.ArrayLike],
    mlp: Sequence[npt.ArrayLike],
    fixed: float = 0.0,
) -> TableBudget:
    """Seconds, from measured tables.

    Args:
        shape: of the dense model.
        limit: seconds.
        attention: seconds by groups kept, one table a block, or a single one for all.
        mlp: seconds by channels kept, likewise.
        fixed: seconds of what is not cut.

    Raises:
        LmscoutError: a table does not have one entry for each number of units.
    """
    tables = []
    for kind, given, units in (
        ("attention", attention, shape.groups),
        ("mlp", mlp, shape.channels),
    ):
        blocks = list(given) * (shape.depth if len(given) == 1 else 1)
        if len(blocks) != shape.depth:
            raise LmscoutError(
                f"latency: {len(blocks)} {kind} tables for {shape.depth} blocks; give one, or "
                "one a block"
            )
        for block, (table, most) in enumerate(zip(blocks, units, strict=True)):
            numbers = np.asarray(table, np.float64)
            if numbers.shape != (most + 1,):
                raise LmscoutError(
                    f"latency: the {kind} table of block {block} has {numbers.size} entries; it "
                    f"needs {most + 1}, for 0 to {most} units"
                )
            tables.append(numbers)
    return TableBudget("latency", limit, tuple(tables), fixed, unit=Unit("ms", 1e-3))


def _linear(shape: Shape, each: Floats) -> tuple[Floats, ...]:
    return tuple(
        np.arange(units + 1) * float(cost)
        for units, cost in zip(dense_row(shape), each, strict=True)
    )


MEASURES = ("parameters", "multiply-adds", "memory", "latency")

_SHARE_ROUNDING = (
    1e-9  # of a limit, so that plans of one cost are not distinguished by float rounding
)


def budget_of(
    measure: str,
    keep: float,
    model: PreTrainedModel,
    family: Family,
    shape: Shape,
    *,
    window: int,
    latency: Latency | None = None,
) -> TableBudget:
    """The budget of a share of what the dense model costs.

    - "parameters": of those in attention and MLP.
    - "multiply-adds": those of a token in a window, the head's among them.
    - "memory": bytes of all weights in the model's precision, and of the keys and values of
      one window.
    - "latency": seconds of a forward pass, by measured tables.

    Args:
        measure: one of `MEASURES`.
        keep: share of the dense model's cost, above 0 and at most 1.
        model: the dense model.
        family: its family.
        shape: its units.
        window: tokens.
        latency: seconds measured; needed for "latency".

    Raises:
        LmscoutError: there is no such measure, `keep` is no such share, or the seconds were
            measured on a model of other sizes.
    """
    require_share(keep)
    if measure == "parameters":
        return keep_budget(shape, keep)
    if measure == "multiply-adds":
        budget = _multiply_adds(model, family, shape, window)
    elif measure == "memory":
        budget = _memory(model, family, shape, window)
    elif measure == "latency":
        if latency is None:
            raise ValueError("a budget of latency needs measured seconds")
        budget = latency_budget(
            shape,
            0.0,
            attention=[one.table() for one in latency.attention],
            mlp=[one.table() for one in latency.mlp],
            fixed=latency.fixed,
        )
    else:
        raise LmscoutError(f"unknown measure {measure!r}: expected {', '.join(MEASURES)}")
    dense = float(budget.cost(dense_row(shape)[None])[0])
    return dataclasses.replace(budget, limit=keep * dense * (1 + _SHARE_ROUNDING))


def _multiply_adds(
    model: PreTrainedModel, family: Family, shape: Shape, window: int
) -> TableBudget:
    parts = family.parts(family.blocks(model)[0])
    attention = parts.attention
    return multiply_adds_budget(
        shape,
        0.0,
        window=window,
        group_width=attention.output.weight.shape[1] // attention.units,
        fixed=float(cast(Any, model).get_output_embeddings().weight.numel()),
        group_biases=_biases(attention.inputs) // attention.units,
        channel_biases=_biases(parts.mlp.inputs) // parts.mlp.units,
    )


def _memory(model: PreTrainedModel, family: Family, shape: Shape, window: int) -> TableBudget:
    width = model.dtype.itemsize
    return memory_budget(
        shape,
        0.0,
        bytes_per_number=width,
        cached_tokens=window,
        head_size=family.parts(family.blocks(model)[0]).attention.head_size,
        fixed=float(parameter_bytes(model) - shape.parameters * width),
    )


def _biases(maps: Sequence[Affine]) -> int:
    return sum(one.bias.numel() for one in maps if one.bias is not None)
