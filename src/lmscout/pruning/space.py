"""Spaces of plans: blocks of any width, widths that are multiples of some channels, or uniform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from lmscout.pruning.budgets import Budget
from lmscout.pruning.plan import Rows, Shape, dense_row
from lmscout.pruning.ranges import Ranges, Target, best_pairs
from lmscout.pruning.study import Pair
from lmscout.pruning.uniform_plans import UniformChoices, UniformPlans


@dataclass(frozen=True)
class PlanSpace:
    """The plans that are proposed and searched.

    Blocks that vary change in *steps* of one group or of `multiple` channels; the last step of a
    width is smaller if the width is no multiple.  A matrix product whose inner size is no multiple
    of eight numbers takes three times as long on a GPU with tensor cores.

    Attributes:
        shape: of the dense model.
        multiple: channels per step of an MLP width.
        uniform: sizes of plans whose blocks are dropped or all alike; None if blocks vary, each
            within a range of its own.
    """

    shape: Shape
    multiple: int = 1
    uniform: UniformChoices | None = None

    @property
    def narrows(self) -> bool:
        """Whether blocks vary by themselves, so that each has a range."""
        return self.uniform is None

    @property
    def name(self) -> str:
        """The kind of plans, for records."""
        return "uniform" if self.uniform else f"widths in steps of {self.multiple}"

    @cached_property
    def steps(self) -> Shape:
        """The dense model as if a step was a unit."""
        return replace(
            self.shape,
            channels=tuple(-(-channels // self.multiple) for channels in self.shape.channels),
            channel_parameters=tuple(
                each * self.multiple for each in self.shape.channel_parameters
            ),
        )

    def to_units(self, rows: Rows) -> Rows:
        """Rows [n, 2L] of steps, in units."""
        units: Rows = np.minimum(rows * self.each, dense_row(self.shape))
        return units

    def to_steps(self, rows: Rows) -> Rows:
        """Rows [n, 2L] of units, in steps, rounded up."""
        steps: Rows = -(-rows // self.each)
        return steps

    def in_steps(self, target: Target) -> Target:
        """A target for rows of steps."""
        if self.multiple == 1:
            return target
        ranges = Ranges.of_rows(*self.to_steps(target.ranges.rows))
        return Target(self._budget_in_steps(target.budget), ranges)

    def plans(self, budget: Budget) -> UniformPlans:
        """The plans of a uniform space that meet a budget.

        Raises:
            LmscoutError: there is none; it names the nearest budget that can be met.
        """
        assert self.uniform is not None
        return UniformPlans(self.shape.depth, self.uniform.sizes(budget))

    def require(self, budget: Budget, ranges: Ranges | None = None) -> None:
        """Refuse a budget that no plan of the space meets.

        Blocks that vary lie within ranges, by default from a tenth of their units on.

        Raises:
            LmscoutError: it names the nearest that can be met.
        """
        if self.uniform is not None:
            self.uniform.sizes(budget)
        else:
            target = self.in_steps(Target(budget, ranges or Ranges.above(self.shape)))
            target.ranges.require(target.budget)

    def meets(self, rows: Rows, budget: Budget) -> npt.NDArray[np.bool_]:
        """Whether plans [n, 2L] are of this space and use a budget up, [n].

        `Budget.meets` is stricter in small models, where a step is more than its slack.
        """
        if self.uniform is not None:
            return self.plans(budget).holds(rows)
        if self.multiple == 1:
            return budget.meets(rows)
        steps = self.to_steps(rows)
        on_grid = (self.to_units(steps) == rows).all(axis=1)
        return np.asarray(on_grid & self._budget_in_steps(budget).meets(steps))

    def best_pairs(
        self, pairs: Sequence[Pair], budget: Budget, count: int, ranges: Ranges | None = None
    ) -> list[Pair]:
        """The best complete pairs whose plans are of this space and meet a budget, best first.

        Blocks that vary lie within ranges, by default from a tenth of their units on.
        """
        within = self.in_steps(Target(budget, ranges or Ranges.above(self.shape))).ranges

        def holds(rows: Rows) -> npt.NDArray[np.bool_]:
            met = self.meets(rows, budget)
            return met & within.holds(self.to_steps(rows)) if self.uniform is None else met

        return best_pairs(pairs, holds, count)

    @cached_property
    def each(self) -> Rows:
        """Units per step, [2L]."""
        return np.repeat([1, self.multiple], self.shape.depth)

    def _budget_in_steps(self, budget: Budget) -> Budget:
        """The budget of rows in steps: smaller tables of the same costs."""
        units = dense_row(self.shape)
        steps = -(-units // self.each)
        return budget.in_steps(
            [
                np.minimum(np.arange(count + 1) * each, most)
                for count, each, most in zip(steps, self.each, units, strict=True)
            ]
        )


def space_of(kind: str, shape: Shape, model: PreTrainedModel, multiple: int = 1) -> PlanSpace:
    """The space of a ``--shape``, "uniform" or "any".

    Raises:
        LmscoutError: the space is uniform, and the model has no plain form.
    """
    if kind == "uniform":
        return PlanSpace(shape, uniform=UniformChoices.of(shape, model.config))
    return PlanSpace(shape, multiple)


def fast_multiple(model: PreTrainedModel) -> int:
    """The channel multiple with which a model runs fast: tensor cores take rows of 16 bytes."""
    return 16 // model.dtype.itemsize if model.device.type == "cuda" else 1
