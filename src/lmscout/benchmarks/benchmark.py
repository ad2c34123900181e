"""Benchmarks: architectures whose trained quality is known, and checks of their files."""

from __future__ import annotations

import hashlib
import json
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from lmscout.errors import LmscoutError, brief, did_you_mean
from lmscout.models import ArchitectureSpec

MOST_ARCHITECTURES = 20_000
"""Rows of a benchmark; correlations compare every two of them."""

T = TypeVar("T")


def require_few(architectures: int, source: str) -> None:
    """Raise LmscoutError if a benchmark has more architectures than can be compared."""
    if architectures > MOST_ARCHITECTURES:
        raise LmscoutError(
            f"{source}: holds too many architectures (got {architectures:,}, expected at most "
            f"{MOST_ARCHITECTURES:,})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Benchmark:
    """Architectures with measured quality, row by row.

    Attributes:
        name: as a user names it: ``flexibert``, ``lts:random_GPT2_wt103``.
        specs: the architectures.
        quality: ``[n]`` float64, higher is better; a perplexity has been negated.  Read-only.
        metric: name of the quality, in words.
        identifiers: the name of each row upstream; no two are equal.
        source: the file or folder that was read.
    """

    name: str
    specs: tuple[ArchitectureSpec, ...]
    quality: NDArray[np.float64]
    metric: str
    identifiers: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        quality = np.array(self.quality, dtype=np.float64)
        quality.setflags(write=False)
        object.__setattr__(self, "quality", quality)
        if not len(self.specs) == len(quality) == len(self.identifiers):
            raise LmscoutError(
                f"{self.source}: {len(self.specs)} architectures, {len(quality)} qualities and "
                f"{len(self.identifiers)} identifiers; a benchmark has one of each per row"
            )
        require_few(len(quality), self.source)
        for identifier, value in zip(self.identifiers, quality, strict=True):
            if not np.isfinite(value):
                raise LmscoutError(f"{self.source}: {identifier}: quality is {value}")
        if len(set(self.identifiers)) < len(self.identifiers):
            twice = Counter(self.identifiers).most_common(1)[0][0]
            raise LmscoutError(f"{self.source}: two rows are called {twice}")

    def __repr__(self) -> str:
        return f"Benchmark({self.name!r}, {len(self)} architectures, {self.metric!r})"

    def __len__(self) -> int:
        return len(self.specs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the architectures and their quality."""
        digest = hashlib.sha256(self.quality.tobytes())
        for spec in self.specs:
            digest.update(json.dumps(spec.to_dict(), sort_keys=True).encode())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | NDArray[np.integer]) -> Benchmark:
        """The benchmark of these rows (counted from 0), in this order.

        LmscoutError if there is no such row, or none is given.
        """
        try:
            rows = [operator.index(index) for index in indices if not isinstance(index, bool)]
        except TypeError:
            rows = []
        if not rows or len(rows) != len(indices):
            raise LmscoutError(
                f"{self.name}: subset takes numbers of rows, at least one (got {brief(indices)})"
            )
        if not all(-len(self.specs) <= row < len(self.specs) for row in rows):
            raise LmscoutError(
                f"{self.name}: rows are 0 to {len(self.specs) - 1} (got {brief(rows)})"
            )
        return replace(
            self,
            specs=tuple(self.specs[row] for row in rows),
            quality=self.quality[rows],
            identifiers=tuple(self.identifiers[row] for row in rows),
        )


class Row(BaseModel):
    """A part of a file: numbers are numbers, not text; other fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


def checked(kind: type[T], values: Any, where: str) -> T:
    """The values of a file as a row, or as a dataclass of pydantic.

    LmscoutError, with the place of the values, if they are no object, or a field is missing,
    unknown or of the wrong kind; it names the first such one.
    """
    if not isinstance(values, dict):
        raise LmscoutError(f"{where}: expected an object with fields, not {brief(values)}")
    try:
        return kind.model_validate(values) if issubclass(kind, Row) else kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the row"
    if first["type"] == "unexpected_keyword_argument":
        known = vars(kind)["__pydantic_fields__"]
        raise LmscoutError(f"{where}: unknown field {field[:60]}{did_you_mean(field, known)}")
    got = "" if first["type"] == "missing" else f", not {brief(first['input'])}"
    message = (first["msg"][:1].lower() + first["msg"][1:]).replace("tuple", "list")
    raise LmscoutError(f"{where}: {field}: {message}{got}")
