"""Budgets of a model: a share of what the dense one costs, by a measure that the user names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from transformers import PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation import parameter_bytes
from lmscout.pruning.families import Affine, Family
from lmscout.pruning.searching.budgets import (
    TableBudget,
    keep_budget,
    latency_budget,
    memory_budget,
    multiply_adds_budget,
    require_share,
)
from lmscout.pruning.searching.latency import Latency
from lmscout.pruning.subnetworks.plan import Shape
from lmscout.pruning.subnetworks.plan_arrays import dense_row

MEASURES = ("parameters", "multiply-adds", "memory", "latency")

_ROUNDING = 1e-9  # of a limit, so that plans of one cost are not told apart by float rounding


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
    return dataclasses.replace(budget, limit=keep * dense * (1 + _ROUNDING))


def _multiply_adds(
    model: PreTrainedModel, family: Family, shape: Shape, window: int
) -> TableBudget:
    parts = family.parts(family.blocks(model)[0])
    attention = parts.attention
    return multiply_adds_budget(
        shape,
        0.0,
        window=window,
        group_width=attention.output_columns,
        fixed=float(cast(Any, model).get_output_embeddings().weight.numel()),
        group_biases=_biases(attention.inputs) // attention.groups,
        channel_biases=_biases(parts.mlp.inputs) // parts.mlp.channels,
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
