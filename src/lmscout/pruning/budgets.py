"""Budgets: the cost of a plan as a sum over blocks and sublayers, and its limit.

A process that proposes plans imports this module, so it imports neither PyTorch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from lmscout.errors import LmscoutError
from lmscout.pruning.plan import Floats, Rows, Shape, dense_row, unit_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lmscout.pruning.families import Affine, Family
    from lmscout.pruning.latency import Latency

MEASURES = ("parameters", "multiply-adds", "memory", "latency")

_SHARE_STEP = 1e-4  # to which shares in messages are rounded up
_SHARE_ROUNDING = 1e-6  # of that step: smaller differences are float rounding
_LIMIT_ROUNDING = 1e-9  # of a limit: plans of equal cost meet it, whatever the order of their sums


@dataclass(frozen=True, eq=False)
class Budget:
    """A limit of a cost that is a sum over the columns of a row.

    Costs without a unit are shares of the dense model's.
    """

    name: str  # what is counted, such as ``kept share``
    limit: float  # the most that a plan may cost
    # For each column, the cost by number of units kept, [units + 1], which does not decrease.
    tables: tuple[Floats, ...]
    fixed: float = 0.0  # cost of what is not pruned
    slack: float | None = None  # how far below the limit a plan may stay; None for anywhere
    unit: tuple[str, float] | None = None  # name and size of the unit of costs in messages

    @cached_property
    def _flat(self) -> tuple[Floats, Rows]:
        """All tables in one array, and where each of them starts."""
        lengths = [len(table) for table in self.tables]
        return np.concatenate(self.tables), np.cumsum([0, *lengths[:-1]])

    @cached_property
    def least_steps(self) -> Floats:
        """The least cost of one more unit of each column, [2L]; inf for a column of no units."""
        return np.array([np.diff(table).min(initial=np.inf) for table in self.tables])

    @property
    def least_use(self) -> float:
        """The least cost with which a plan uses the budget up; -inf if it need not."""
        return -math.inf if self.slack is None else self.limit - self.slack

    def cost(self, rows: Rows) -> Floats:
        """Costs of plans, [n, 2L] to [n]."""
        table, starts = self._flat
        total: Floats = table[rows + starts].sum(axis=1) + self.fixed
        return total

    def meets(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] cost at most the limit, and use it up if they have to, [n]."""
        costs = self.cost(rows)
        return (costs <= self.limit) & (costs >= self.least_use)

    def in_steps(self, counts: Sequence[Rows]) -> Budget:
        """The same budget, with a slack of at least a step of channels, for rows of steps.

        `counts` are, for each column, the numbers of units in 0, 1, 2, ... steps.
        """
        tables = tuple(table[units] for table, units in zip(self.tables, counts, strict=True))
        channels = tables[len(tables) // 2 :]
        channel_steps = [table[1] - table[0] for table in channels if len(table) > 1]
        slack = None if self.slack is None else max(self.slack, float(max(channel_steps)))
        return replace(self, tables=tables, slack=slack)

    def describe(self, cost: float, *, round_up: bool = False) -> str:
        """A cost for messages: ``0.8 (kept share)``, ``9.31 MB (0.62 of the dense model)``.

        With `round_up` the share is rounded up, so that a budget of it allows this cost.
        """
        dense = sum(float(table.max()) for table in self.tables) + self.fixed
        share = cost if self.unit is None else cost / dense
        if round_up:
            share = math.ceil(share / _SHARE_STEP - _SHARE_ROUNDING) * _SHARE_STEP
        if self.unit is None:
            return f"{share:.4g} ({self.name})"
        unit, size = self.unit
        amount = cost / size
        number = f"{amount:,.0f}" if amount >= 1000 else f"{amount:.3g}"
        return f"{number} {unit} ({share:.4g} of the dense model)"

    def nearest(self, cost: float, plans: str = "plan") -> LmscoutError:
        """The error that no plan meets this budget, naming the nearest cost that one has."""
        # Rounded up also where the cost is below the limit: a step is less than any slack, so a
        # plan of this cost still uses up the budget that the message names.
        return LmscoutError(
            f"no {plans} meets the budget of {self.describe(self.limit)}: the nearest that can be "
            f"met is {self.describe(cost, round_up=True)}"
        )


def keep_budget(shape: Shape, keep: float) -> Budget:
    """The kept share of the parameters in attention and MLP, used up.

    Plans may stay a thousandth below it, or a channel in models so small that it is more.
    """
    each = unit_parameters(shape) / shape.parameters
    # Sums of shares are exact to a few 1e-16; a thousandth of a unit is far above that and
    # far below the cost of a unit.
    limit = keep + 1e-3 * float(each.min())
    slack = max(1e-3, max(shape.channel_parameters) / shape.parameters)
    return Budget("kept share", limit, _linear(shape, each), slack=slack)


def linear_budget(
    name: str,
    shape: Shape,
    limit: float,
    *,
    parameter: float = 1.0,
    group: float = 0.0,
    channel: float | Floats = 0.0,
    fixed: float = 0.0,
    unit: tuple[str, float] | None = None,
) -> Budget:
    """A budget whose cost is proportional to the units of each column.

    A unit costs its parameters times `parameter`, and `group` or `channel` (a number, or [blocks])
    beyond that; the others are as for `Budget`.
    """
    more = (np.broadcast_to(one, shape.depth) for one in (group, channel))
    each = unit_parameters(shape) * parameter + np.concatenate([*more])
    return Budget(name, limit, _linear(shape, each), fixed, unit=unit)


def latency_budget(
    shape: Shape,
    limit: float,
    *,
    attention: Sequence[npt.ArrayLike],
    mlp: Sequence[npt.ArrayLike],
    fixed: float = 0.0,
) -> Budget:
    """Seconds by units kept, from measured tables: one per block, or a single one for all.

    Where a table decreases, its running maximum counts.

    Raises:
        LmscoutError: a table does not have one entry for each number of units.
    """
    tables = []
    kinds = (("attention", attention, shape.groups), ("mlp", mlp, shape.channels))
    for kind, given, units in kinds:
        found = [np.maximum.accumulate(np.asarray(table, np.float64)) for table in given]
        found *= shape.depth if len(found) == 1 else 1
        sizes, expected = [table.size for table in found], [most + 1 for most in units]
        if sizes != expected:
            got, wanted = (", ".join(map(str, sorted(set(one)))) for one in (sizes, expected))
            raise LmscoutError(
                f"latency: the {kind} tables do not fit the model (got {len(sizes)} tables of "
                f"{got} entries, expected {len(units)} of {wanted})"
            )
        tables += found
    return Budget("latency", limit, tuple(tables), fixed, unit=("ms", 1e-3))


def budget_of(
    measure: str,
    keep: float,
    model: PreTrainedModel,
    family: Family,
    shape: Shape,
    *,
    window: int,
    latency: Latency | None = None,
) -> Budget:
    """The budget of a share of the dense model's cost.

    - "parameters": of those in attention and MLP.
    - "multiply-adds": those of a token in a window, the head's among them.
    - "memory": bytes of all weights in the model's precision, and of the keys and values of
      one window, in tokens.
    - "latency": seconds of a forward pass, by measured tables, which it needs.

    Raises:
        LmscoutError: experts do not change the measure, or the seconds were measured on a model of
            other sizes.
    """
    if measure == "parameters":
        return keep_budget(shape, keep)
    parts = family.all_parts(model)
    attention = next(one.attention for one in parts if one.attention.units)
    mlp = next(one.mlp for one in parts if one.mlp.units)
    if measure == "multiply-adds":
        from lmscout.pruning.families import ExpertChannels, Experts

        if isinstance(mlp, Experts):
            raise LmscoutError(
                "multiply-adds: removing experts leaves those of a token as they are: give a "
                "budget of parameters, memory or latency, or remove channels"
            )
        used = [
            min(1.0, one.mlp.selected / one.mlp.experts)
            if isinstance(one.mlp, ExpertChannels)
            else 1.0
            for one in parts
        ]
        idle = (1 - np.array(used)) * shape.channel_parameters
        # A weight costs one per token.  Attention adds two products per group with the tokens
        # before and at each position, (window + 1) / 2 of them on average.
        budget = linear_budget(
            measure,
            shape,
            0.0,
            group=(window + 1) * (attention.output.weight.shape[1] // attention.units)
            - _biases(attention.inputs) // attention.units,
            channel=-(_biases(mlp.inputs) // mlp.units) - idle,
            fixed=float(cast(Any, model).get_output_embeddings().weight.numel()),
            unit=("million multiply-adds a token", 1e6),
        )
    elif measure == "memory":
        from lmscout.evaluation import parameter_bytes

        width = model.dtype.itemsize
        budget = linear_budget(
            measure,
            shape,
            0.0,
            parameter=width,
            group=2 * window * attention.head_size * width,
            fixed=float(parameter_bytes(model) - shape.parameters * width),
            unit=("MB", 1e6),
        )
    else:
        assert latency is not None
        seconds, mlp_seconds = (
            [one.table() for one in curves] for curves in (latency.attention, latency.mlp)
        )
        budget = latency_budget(shape, 0.0, attention=seconds, mlp=mlp_seconds, fixed=latency.fixed)
    dense = float(budget.cost(dense_row(shape)[None])[0])
    return replace(budget, limit=keep * dense * (1 + _LIMIT_ROUNDING))


def _linear(shape: Shape, each: Floats) -> tuple[Floats, ...]:
    return tuple(
        np.arange(units + 1) * float(cost)
        for units, cost in zip(dense_row(shape), each, strict=True)
    )


def _biases(maps: Sequence[Affine]) -> int:
    return sum(one.bias.numel() for one in maps if one.bias is not None)
