"""Every proxy of a ranked space as a Parquet table, written in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmscout.discovery.exhaustive import SpaceRanking
from lmscout.proxies import Space
from lmscout.proxies.primitives import BINARY

_ROWS = 1 << 19


def write_scores(path: Path, space: Space, ranking: SpaceRanking) -> None:
    """Write one row a proxy, in the space's order.

    Columns: aggregation, binary, left_input, left_chain, right_input, right_chain (a chain
    reads innermost operation first, joined by "|"), spearman on the search split (null where
    undefined) and fingerprint, equal where the scores are equal.

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
    axis = dict(zip(words, (0, 4, 1, 2, 1, 3), strict=True))
    schema = pa.schema(
        [(name, pa.dictionary(pa.int32(), pa.string())) for name in words]
        + [("spearman", pa.float32()), ("fingerprint", pa.uint64())]
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, space.size, _ROWS):
            stop = min(start + _ROWS, space.size)
            places = np.unravel_index(np.arange(start, stop), space.shape)
            rho = ranking.spearman[start:stop]
            columns = [
                pa.DictionaryArray.from_arrays(places[axis[name]].astype(np.int32), values)
                for name, values in words.items()
            ]
            columns.append(pa.array(rho, mask=np.isnan(rho)))
            columns.append(pa.array(ranking.fingerprint[start:stop]))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
