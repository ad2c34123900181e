"""Rank every proxy of a space exhaustively, and write the table of all of them.

Rank every proxy of a space, from block values that were collected once.

A proxy of these spaces joins two block values, and a block value is one branch: an input
under a chain of unary operations.  So all scores of a pair of inputs are a table of left
branch by right branch, made by broadcasting, and branches that are equal on every
architecture (mean and identity, l1 and abs, ...) are tabulated once.  Tables are made and
ranked in pieces that stay in the cache; memory holds a float and a hash for each proxy.

Every proxy of a ranked space as a Parquet table, written in pieces.
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

Array = npt.NDArray[np.float64]
BranchValues = Callable[[str, tuple[str, ...]], npt.NDArray[np.floating]]

_PIECE = 1 << 18  # scores a piece: two mebibytes of float64


@dataclass(frozen=True)
class SpaceRanking:
    """Every proxy of a space with its rank correlation on the given architectures.

    Attributes:
        spearman: [space.size] float32, NaN where the proxy has no score on one of them.
        fingerprint: [space.size] uint64, equal where the scores are equal (to 1e-12).
    """

    spearman: npt.NDArray[np.float32]
    fingerprint: npt.NDArray[np.uint64]

    @property
    def n_undefined(self) -> int:
        """How many proxies rank nothing: not finite somewhere, or the same everywhere."""
        return int(np.isnan(self.spearman).sum())

    @property
    def n_distinct(self) -> int:
        """How many different score vectors rank anything."""
        return int(np.unique(self.fingerprint[~np.isnan(self.spearman)]).size)

    def best(self) -> int:
        """Index of the largest absolute correlation; the first of several that are equal.

        Raises:
            ValueError: no proxy of the space ranks anything.
        """
        strength = np.abs(self.spearman)
        if np.isnan(strength).all():
            raise ValueError("no proxy of the space ranks these architectures")
        return int(np.nanargmax(strength))

    def leaders(self) -> Iterator[int]:
        """Indices by falling absolute correlation, the first of those with equal scores alone."""
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
    """Correlate every proxy of a space with quality.

    Args:
        space: the proxies.
        branch: block values [architectures, blocks] of an input under a chain, NaN beyond
            an architecture's depth.
        depth: [architectures] number of blocks.
        quality: [architectures].
        threads: tables made at once; one a core by default.
        progress: called with proxies done and in all.

    Returns:
        One entry a proxy, in the space's order.
    """
    target = np.asarray(quality, np.float64)
    tables = {name: _distinct_branches(name, space.chains, branch) for name in space.inputs}
    shape = (
        len(space.aggregations),
        len(space.pairs),
        len(space.chains),
        len(space.chains),
        len(BINARY),
    )
    rho = np.empty(shape, np.float32)
    fingerprint = np.empty(shape, np.uint64)
    multipliers = _multipliers(target.size)

    def fill(task: tuple[int, int, int]) -> int:
        a, p, b = task
        left, right = (tables[name] for name in space.pairs[p])
        n_left, n_right = len(left.values), len(right.values)
        table = np.empty((n_left, n_right), np.float32)
        marks = np.empty((n_left, n_right), np.uint64)
        operation, aggregation = BINARY[b].name, space.aggregations[a]
        step = max(1, _PIECE // (n_right * target.size))
        for start in range(0, n_left, step):
            rows = slice(start, start + step)
            with np.errstate(over="ignore", invalid="ignore"):  # such proxies are undefined
                scores = _scores(operation, aggregation, left.values[rows], right.values, depth)
            flat = np.ascontiguousarray(scores.reshape(-1, target.size))
            table[rows] = spearman_many(flat, target).reshape(-1, n_right)
            marks[rows] = _fingerprints(flat, multipliers).reshape(-1, n_right)
        expand = np.ix_(left.member, right.member)
        rho[a, p, :, :, b] = table[expand]
        fingerprint[a, p, :, :, b] = marks[expand]
        return len(space.chains) ** 2

    tasks = list(product(range(shape[0]), range(shape[1]), range(shape[4])))
    done = 0
    for count in _in_threads(fill, tasks, threads or os.cpu_count() or 1):
        done += count
        if progress:
            progress(done, space.size)
    return SpaceRanking(rho.reshape(-1), fingerprint.reshape(-1))


@dataclass(frozen=True)
class _Branches:
    """The different branches of one input.

    Attributes:
        values: [distinct, architectures, blocks] float64, NaN beyond the depth.
        member: [chains] which of them each chain is.
    """

    values: Array
    member: npt.NDArray[np.int64]


def _distinct_branches(
    name: str, chains: Sequence[tuple[str, ...]], branch: BranchValues
) -> _Branches:
    values = np.stack([branch(name, chain) for chain in chains]).astype(np.float64)
    values += 0.0  # -0.0 is 0.0
    rows = values.reshape(len(chains), -1)
    seen: dict[bytes, int] = {}
    member = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows])
    first = [int(np.flatnonzero(member == index)[0]) for index in range(len(seen))]
    return _Branches(values[first], member)


def _scores(
    operation: str,
    aggregation: str,
    left: Array,
    right: Array,
    depth: npt.NDArray[np.integer],
) -> Array:
    """Scores of all pairs of branches: [left, right, architectures].

    The padding beyond an architecture's depth is NaN, which every path below leaves out by
    depth, so that a NaN within the depth still makes the score NaN.
    """
    inside = np.arange(left.shape[2]) < depth[:, None]
    if operation == "matrix_product" or (operation == "product" and aggregation in ("sum", "mean")):
        total = _inner_products(np.where(inside, left, 0.0), np.where(inside, right, 0.0))
        return total / depth if (operation, aggregation) == ("product", "mean") else total
    if aggregation in ("sum", "mean"):  # both are linear: aggregate first, then join
        share = depth if aggregation == "mean" else 1
        a = np.where(inside, left, 0.0).sum(axis=2) / share
        b = np.where(inside, right, 0.0).sum(axis=2) / share
        return _join(operation, a[:, None], b[None])
    extreme, empty = (np.maximum, -np.inf) if aggregation == "max" else (np.minimum, np.inf)
    result = np.full((len(left), len(right), left.shape[1]), empty)
    for block in range(left.shape[2]):
        joined = _join(operation, left[:, None, :, block], right[None, :, :, block])
        extreme(result, joined, out=result, where=inside[:, block])
    return result


def _join(operation: str, a: Array, b: Array) -> Array:
    if operation == "sum":
        return a + b
    if operation == "difference":
        return a - b
    return a * b


def _inner_products(left: Array, right: Array) -> Array:
    """Sums over blocks of products, architecture by architecture: [left, right, n]."""
    table: Array = np.matmul(left.transpose(1, 0, 2), right.transpose(1, 2, 0))
    return table.transpose(1, 2, 0)


def _multipliers(n: int) -> npt.NDArray[np.uint64]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 1 << 63, n, np.uint64) * np.uint64(2) + np.uint64(1)


def _fingerprints(scores: Array, multipliers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash of each row, of its scores to 40 significant bits."""
    bits = (scores + 0.0).view(np.uint64)
    bits += np.uint64(1 << 11)
    bits >>= np.uint64(12)
    hashed: npt.NDArray[np.uint64] = (bits * multipliers).sum(axis=1, dtype=np.uint64)
    return hashed


def _in_threads(
    work: Callable[[tuple[int, int, int]], int],
    tasks: Sequence[tuple[int, int, int]],
    threads: int,
) -> Iterator[int]:
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(work, tasks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_ROWS = 1 << 19


def write_scores(path: Path, space: Space, ranking: SpaceRanking) -> None:
    """Write one row a proxy, in the space's order.

    Columns: proxy (the expression, as `rank --proxy` reads it), aggregation, binary, left_input,
    left_chain, right_input, right_chain (a chain reads innermost operation first, joined by "|"),
    spearman on the search split (null where undefined) and fingerprint, equal where the scores
    are equal.

    Args:
        path: the file.
        space: the proxies.
        ranking: their correlations.
    """
    chains = pa.array(["|".join(chain) for chain in space.chains])
    words = {
        "aggregation": pa.array(space.aggregations),
        "binary": pa.array([operation.name for operation in BINARY]),
        "left_input": pa.array([left for left, _ in space.pairs]),
        "left_chain": chains,
        "right_input": pa.array([right for _, right in space.pairs]),
        "right_chain": chains,
    }
    inputs = {name: place for place, name in enumerate(space.inputs)}
    expressions = _Expressions(
        pa.array(
            [format_branch(Branch(name, chain)) for name in space.inputs for chain in space.chains]
        ),
        np.array([[inputs[name] for name in pair] for pair in space.pairs]),
    )
    axis = dict(zip(words, (0, 4, 1, 2, 1, 3), strict=True))
    schema = pa.schema(
        [("proxy", pa.string())]
        + [(name, pa.dictionary(pa.int32(), pa.string())) for name in words]
        + [("spearman", pa.float32()), ("fingerprint", pa.uint64())]
    )
    with (
        path.open("wb") as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            use_dictionary=list(words),
            column_encoding={"proxy": "DELTA_BYTE_ARRAY"},  # neighbours begin alike
        ) as writer,
    ):
        for start in range(0, space.size, _ROWS):
            stop = min(start + _ROWS, space.size)
            places = np.unravel_index(np.arange(start, stop), space.shape)
            rho = ranking.spearman[start:stop]
            columns = [expressions.at(space, places)]
            columns += [
                pa.DictionaryArray.from_arrays(places[axis[name]].astype(np.int32), values)
                for name, values in words.items()
            ]
            columns.append(pa.array(rho, mask=np.isnan(rho)))
            columns.append(pa.array(ranking.fingerprint[start:stop]))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


@dataclass(frozen=True)
class _Expressions:
    """The text form of proxies of a space, many at once.

    Attributes:
        branches: text of every input under every chain, input by input.
        pairs: [pairs, 2] numbers of the inputs of each pair.
    """

    branches: pa.Array
    pairs: npt.NDArray[np.int64]

    def at(self, space: Space, places: tuple[npt.NDArray[np.intp], ...]) -> pa.Array:
        """Those of the given places: aggregation, pair, left chain, right chain, binary; [n]."""
        aggregation, pair, left, right, binary = places
        n_chains = len(space.chains)
        sides = [
            self.branches.take(pa.array(self.pairs[pair, side] * n_chains + chain))
            for side, chain in enumerate((left, right))
        ]
        # A matrix product is the sum of the products, whatever the aggregation (`Space.proxy`).
        matrix = [one.symbol == "@" for one in BINARY]
        starts = pa.array(
            [f"{'sum' if one else name}(" for name in space.aggregations for one in matrix]
        ).take(pa.array(aggregation * len(BINARY) + binary))
        signs = pa.array([f" {'*' if one.symbol == '@' else one.symbol} " for one in BINARY]).take(
            pa.array(binary)
        )
        return pc.binary_join_element_wise(starts, sides[0], signs, sides[1], ")", "")
