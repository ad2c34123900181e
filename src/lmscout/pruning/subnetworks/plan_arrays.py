"""Plans as rows of one integer array, for whatever looks at many of them at once.

A row is [2L]: the groups that blocks 0 to L-1 keep, then the channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lmscout.pruning.subnetworks.plan import Plan, Shape

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
