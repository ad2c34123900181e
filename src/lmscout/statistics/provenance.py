"""What a file of statistics depends on, so that it is never reused for anything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lmscout.architectures import ArchitectureSpec
from lmscout.statistics.batch import Batch

FORMAT = 1
"""Version of the numbers.  Raise it with a change that moves any of them by more than rounding:
files of another format are collected again.  A test compares recorded numbers
(tests/statistics/recorded_values.py), and fails where they change and the version does not."""


@dataclass(frozen=True)
class Provenance:
    """Everything that decides the numbers of one file.

    Attributes:
        what: the kind of numbers, such as "unary means".
        columns: names of the numbers collected for each architecture.
        seed: of the models' weights.
        batch: what the models read.
        architectures: the specs, in the order of the rows.
        format: `FORMAT` of the code that computed the numbers.
        torch: version of PyTorch that computed them.
        device: kind of device that computed them.
    """

    what: str
    columns: tuple[str, ...]
    seed: int
    batch: Batch
    architectures: tuple[dict[str, Any], ...]
    format: int
    torch: str
    device: str = "cpu"

    def to_json(self) -> str:
        """Canonical JSON: equal provenances have equal text; "cpu" goes without saying."""
        values = asdict(self)
        if self.device == "cpu":
            del values["device"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def provenance(
    what: str,
    columns: Sequence[str],
    specs: Sequence[ArchitectureSpec],
    seed: int,
    batch: Batch,
    *,
    device: str = "cpu",
) -> Provenance:
    """Describe a collection that is about to be made by the running code.

    Args:
        what: the kind of numbers.
        columns: their names.
        specs: the architectures.
        seed: of the models' weights.
        batch: what the models read.
        device: that computes them; its kind counts, not its number.
    """
    return Provenance(
        what=what,
        columns=tuple(columns),
        seed=seed,
        batch=batch,
        architectures=tuple(spec.to_dict() for spec in specs),
        format=FORMAT,
        torch=torch.__version__,
        device=torch.device(device).type,
    )
