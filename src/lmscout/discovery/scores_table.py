"""Every proxy of a ranked space as a Parquet table, written in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmscout.discovery.exhaustive import SpaceRanking
from lmscout.proxies import Branch, Space
from lmscout.proxies.parser import format_branch
from lmscout.proxies.primitives import BINARY

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
