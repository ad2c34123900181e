"""Rank every proxy of a space from collected block values, and write the table of all of them.

A proxy of these spaces joins two branches, each an input under a chain of unary operations.  All
scores of a pair of inputs are a table of left by right branches, made by broadcasting; branches
that are equal on every architecture (mean and identity, l1 and abs, ...) are tabulated once.
Tables are made and ranked in pieces that stay in the cache; memory holds a float and a hash per
proxy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmscout.metrics import spearman_many
from lmscout.proxies import Branch, Space
from lmscout.proxies.parser import format_branch
from lmscout.proxies.primitives import BINARY
from lmscout.proxies.spaces import APPLY

Array = npt.NDArray[np.float64]
Marks = npt.NDArray[np.uint64]
BranchValues = Callable[[str, tuple[str, ...]], npt.NDArray[np.floating]]

SCORES = "scores.parquet"
"""File of a run folder, see `write_scores`."""

_PIECE = 1 << 18  # scores: two mebibytes of float64
_ROWS = 1 << 19  # proxies that are written at once


@dataclass(frozen=True)
class SpaceRanking:
    """Every proxy of a space with its rank correlation on the given architectures."""

    spearman: npt.NDArray[np.float32]  # [space.size], NaN if the proxy ranks nothing
    fingerprint: Marks  # [space.size], equal for equal scores (to 1e-12)

    @property
    def n_undefined(self) -> int:
        """Number of proxies that rank nothing: constant, or not finite somewhere."""
        return int(np.isnan(self.spearman).sum())

    @property
    def n_distinct(self) -> int:
        """Number of different score vectors that rank anything."""
        return int(np.unique(self.fingerprint[~np.isnan(self.spearman)]).size)

    def best(self) -> int:
        """Index of the first largest absolute correlation; ValueError if there is none."""
        strength = np.abs(self.spearman)
        if np.isnan(strength).all():
            raise ValueError("no proxy of the space ranks these architectures")
        return int(np.nanargmax(strength))

    def leaders(self) -> Iterator[int]:
        """Indices by decreasing absolute correlation, one of each score vector."""
        seen: set[int] = set()
        for index in np.argsort(-np.abs(self.spearman), kind="stable"):
            mark = int(self.fingerprint[index])
            if np.isnan(self.spearman[index]):
                return
            if mark not in seen:
                seen.add(mark)
                yield int(index)


def rank_space(
    space: Space,
    branch: BranchValues,
    depth: npt.NDArray[np.integer],
    quality: npt.ArrayLike,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SpaceRanking:
    """Correlate every proxy of a space with quality [architectures].

    `branch` gives the block values [architectures, blocks] of an input under a chain, NaN beyond an
    architecture's depth.  By default there is one thread per core.
    """
    target = np.asarray(quality, np.float64)
    tables = {name: _distinct_branches(name, space.chains, branch) for name in space.inputs}
    rho, fingerprint = np.empty(space.shape, np.float32), np.empty(space.shape, np.uint64)
    rng = np.random.default_rng(0)
    multipliers = rng.integers(0, 1 << 63, target.size, np.uint64) * np.uint64(2) + np.uint64(1)

    def fill(task: tuple[int, int, int]) -> int:
        a, p, b = task
        (left, left_member), (right, right_member) = (tables[name] for name in space.pairs[p])
        table = np.empty((len(left), len(right)), np.float32)
        marks = np.empty(table.shape, np.uint64)
        step = max(1, _PIECE // (len(right) * target.size))
        for start in range(0, len(left), step):
            rows = slice(start, start + step)
            with np.errstate(over="ignore", invalid="ignore"):  # such proxies are undefined
                scores = _scores(BINARY[b].symbol, space.aggregations[a], left[rows], right, depth)
            flat = np.ascontiguousarray(scores.reshape(-1, target.size))
            table[rows] = spearman_many(flat, target).reshape(-1, len(right))
            marks[rows] = _fingerprints(flat, multipliers).reshape(-1, len(right))
        expand = np.ix_(left_member, right_member)
        rho[a, p, :, :, b] = table[expand]
        fingerprint[a, p, :, :, b] = marks[expand]
        return len(space.chains) ** 2

    tasks = list(product(*(range(space.shape[axis]) for axis in (0, 1, 4))))
    done = 0
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        try:
            for count in pool.map(fill, tasks):
                done += count
                if progress:
                    progress(done, space.size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return SpaceRanking(rho.reshape(-1), fingerprint.reshape(-1))


def _distinct_branches(
    name: str, chains: Sequence[tuple[str, ...]], branch: BranchValues
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Different branches [distinct, architectures, blocks] of an input, and each chain's place."""
    values = np.stack([branch(name, chain) for chain in chains]).astype(np.float64)
    values += 0.0  # -0.0 is 0.0
    seen: dict[bytes, int] = {}
    member = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in values])
    return values[np.unique(member, return_index=True)[1]], member


def _scores(
    sign: str, aggregation: str, left: Array, right: Array, depth: npt.NDArray[np.integer]
) -> Array:
    """Scores of all pairs of branches: [left, right, architectures].

    The padding beyond an architecture's depth is left out by depth, so that a NaN within the depth
    still makes the score NaN.
    """
    inside = np.arange(left.shape[2]) < depth[:, None]
    if sign == "@" or (sign == "*" and aggregation in ("sum", "mean")):
        a, b = np.where(inside, left, 0.0), np.where(inside, right, 0.0)
        total: Array = np.matmul(a.transpose(1, 0, 2), b.transpose(1, 2, 0)).transpose(1, 2, 0)
        return total / depth if (sign, aggregation) == ("*", "mean") else total
    if aggregation in ("sum", "mean"):  # linear: aggregate first, then join
        share = depth if aggregation == "mean" else 1
        a, b = (np.where(inside, one, 0.0).sum(axis=2) / share for one in (left, right))
        linear: Array = APPLY[sign](a[:, None], b[None])
        return linear
    extreme, empty = (np.maximum, -np.inf) if aggregation == "max" else (np.minimum, np.inf)
    result = np.full((len(left), len(right), left.shape[1]), empty)
    for block in range(left.shape[2]):
        joined = APPLY[sign](left[:, None, :, block], right[None, :, :, block])
        extreme(result, joined, out=result, where=inside[:, block])
    return result


def _fingerprints(scores: Array, multipliers: Marks) -> Marks:
    """Hash of each row, of its scores to 40 significant bits."""
    bits = (scores + 0.0).view(np.uint64)
    bits += np.uint64(1 << 11)
    bits >>= np.uint64(12)
    hashed: Marks = (bits * multipliers).sum(axis=1, dtype=np.uint64)
    return hashed


def write_scores(path: Path, space: Space, ranking: SpaceRanking) -> None:
    """Write one row per proxy, in the space's order.

    Columns: proxy (the expression, as `rank --proxy` reads it), aggregation, binary, left_input,
    left_chain, right_input, right_chain (operations of a chain innermost first, joined by "|"),
    spearman on the search split (null if undefined) and fingerprint, equal for equal scores.
    """
    chains = pa.array(["|".join(chain) for chain in space.chains])
    columns = {  # name -> axis of the space's shape, and its values
        "aggregation": (0, pa.array(space.aggregations)),
        "binary": (4, pa.array([operation.name for operation in BINARY])),
        "left_input": (1, pa.array([left for left, _ in space.pairs])),
        "left_chain": (2, chains),
        "right_input": (1, pa.array([right for _, right in space.pairs])),
        "right_chain": (3, chains),
    }
    text_of = _expressions(space)
    schema = pa.schema(
        [("proxy", pa.string())]
        + [(name, pa.dictionary(pa.int32(), pa.string())) for name in columns]
        + [("spearman", pa.float32()), ("fingerprint", pa.uint64())]
    )
    with (
        path.open("wb") as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            use_dictionary=list(columns),
            column_encoding={"proxy": "DELTA_BYTE_ARRAY"},  # neighbours share a prefix
        ) as writer,
    ):
        for start in range(0, space.size, _ROWS):
            rows = slice(start, min(start + _ROWS, space.size))
            places = np.unravel_index(np.arange(rows.start, rows.stop), space.shape)
            rho = ranking.spearman[rows]
            arrays = [
                text_of(places),
                *(
                    pa.DictionaryArray.from_arrays(places[axis].astype(np.int32), values)
                    for axis, values in columns.values()
                ),
                pa.array(rho, mask=np.isnan(rho)),
                pa.array(ranking.fingerprint[rows]),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _expressions(space: Space) -> Callable[[Sequence[npt.NDArray[np.intp]]], pa.Array]:
    """A function that gives the text of many proxies at once, by their places in the space."""
    branches = pa.array(
        [format_branch(Branch(name, chain)) for name in space.inputs for chain in space.chains]
    )
    pairs = np.array([[space.inputs.index(name) for name in pair] for pair in space.pairs])
    # A matrix product is the sum of the products, whatever the aggregation (`Space.proxy`).
    prefixes = pa.array(
        [
            f"{'sum' if operation.symbol == '@' else name}("
            for name in space.aggregations
            for operation in BINARY
        ]
    )
    signs = pa.array([f" {'*' if one.symbol == '@' else one.symbol} " for one in BINARY])

    def at(places: Sequence[npt.NDArray[np.intp]]) -> pa.Array:
        aggregation, pair, *sides, binary = places
        left, right = (
            branches.take(pa.array(pairs[pair, side] * len(space.chains) + chain))
            for side, chain in enumerate(sides)
        )
        prefix = prefixes.take(pa.array(aggregation * len(BINARY) + binary))
        sign = signs.take(pa.array(binary))
        return pc.binary_join_element_wise(prefix, left, sign, right, ")", "")

    return at
