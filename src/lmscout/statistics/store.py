"""Rows of numbers, one an architecture, in one safetensors file that survives interruption."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lmscout.errors import LmscoutError
from lmscout.files import check_folder, remove_drafts, write_file
from lmscout.memory import require_memory
from lmscout.reading import check_safetensors_header
from lmscout.statistics.provenance import Provenance

_PROVENANCE = "provenance"
_REMEDY = "name another folder with LMSCOUT_CACHE"


class RowStore:
    """An array that is filled row by row and kept on disk with its provenance.

    The file's name carries the digest of the provenance and its header the provenance in
    full; a file whose header differs, or that cannot be read, is started anew.

    Attributes:
        path: the file.
        rows: [n, ...] of the dtype given, NaN where a row is not done.
        done: [n] bool.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        provenance: Provenance,
        row_shape: tuple[int, ...],
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.path = folder / f"{name}-{provenance.digest()}.safetensors"
        self._provenance = provenance.to_json()
        n = len(provenance.architectures)
        require_memory(
            f"{n} rows of {' x '.join(map(str, row_shape))} numbers",
            n * math.prod(row_shape) * np.dtype(dtype).itemsize,
            "use a smaller benchmark",
        )
        self.rows: npt.NDArray[Any] = np.full((n, *row_shape), np.nan, dtype)
        self.done: npt.NDArray[np.bool_] = np.zeros(n, bool)
        make_folder(folder)
        self._read()

    def set_row(self, index: int, row: npt.NDArray[np.floating]) -> None:
        """Take one architecture's numbers; `save` puts them on disk."""
        with np.errstate(over="ignore"):  # beyond the dtype is infinity, and reported as such
            self.rows[index] = row
        self.done[index] = True

    def save(self) -> None:
        """Write the file whole: a reader sees the old one or the new one, never a part.

        Raises:
            LmscoutError: it cannot be written, for want of space or of permission.
        """
        tensors: dict[str, npt.NDArray[Any]] = {
            "rows": self.rows,
            "done": self.done.astype(np.uint8),
        }
        metadata = {_PROVENANCE: self._provenance}
        write_file(
            self.path,
            lambda draft: save_file(tensors, draft, metadata=metadata),
            name=f"cache file {self.path}",
            remedy=_REMEDY,
        )

    def _read(self) -> None:
        try:
            check_safetensors_header(self.path)
            with safe_open(self.path, framework="numpy") as stored:
                metadata = stored.metadata() or {}
                if metadata.get(_PROVENANCE) != self._provenance:
                    return
                rows, done = stored.get_tensor("rows"), stored.get_tensor("done")
        except (OSError, SafetensorError, LmscoutError, TypeError, ValueError, AttributeError):
            return  # absent, unreadable or damaged: collect again
        expected = (self.rows.shape, self.rows.dtype, self.done.shape)
        if (rows.shape, rows.dtype, done.shape) == expected:
            self.rows, self.done = rows, done.astype(bool)


def make_folder(folder: Path) -> None:
    """Create a cache folder and make sure that it can be written.

    Raises:
        LmscoutError: it cannot.
    """
    remove_drafts(folder)
    check_folder(folder, f"cache folder {folder}", _REMEDY, make=True)


def read_provenance(path: Path) -> dict[str, object]:
    """Provenance that a file of statistics carries in its header."""
    with safe_open(path, framework="numpy") as stored:
        loaded: dict[str, object] = json.loads((stored.metadata() or {})[_PROVENANCE])
    return loaded
