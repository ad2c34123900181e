"""What a file of statistics depends on, so that it is never reused for anything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import torch

from lmscout.architectures import ArchitectureSpec
from lmscout.statistics.batch import Batch

# Rooms whose source decides the numbers; a change in any of them makes old files stale.
_DECIDING = ("architectures", "proxies", "statistics")


@dataclass(frozen=True)
class Provenance:
    """Everything that decides the numbers of one file.

    Attributes:
        what: the kind of numbers, such as "unary means".
        columns: names of the numbers collected for each architecture.
        seed: of the models' weights.
        batch: what the models read.
        architectures: the specs, in the order of the rows.
        code: digest of the source that computes the numbers.
        torch: version of PyTorch that computed them.
        device: kind of device that computed them.
    """

    what: str
    columns: tuple[str, ...]
    seed: int
    batch: Batch
    architectures: tuple[dict[str, Any], ...]
    code: str
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
    rooms: tuple[str, ...] = (),
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
        rooms: whose source decides the numbers beside that of those below.
        device: that computes them; its kind counts, not its number.
    """
    return Provenance(
        what=what,
        columns=tuple(columns),
        seed=seed,
        batch=batch,
        architectures=tuple(spec.to_dict() for spec in specs),
        code=code_digest(rooms),
        torch=torch.__version__,
        device=torch.device(device).type,
    )


@cache
def code_digest(rooms: tuple[str, ...] = ()) -> str:
    """Digest of the source of the rooms that decide the numbers, and of others."""
    digest = hashlib.sha256()
    for room in (*_DECIDING, *rooms):
        _add_sources(digest, files("lmscout") / room, room)
    return digest.hexdigest()[:16]


def _add_sources(digest: Any, folder: Traversable, path: str) -> None:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        inner = f"{path}/{entry.name}"
        if entry.is_dir():
            _add_sources(digest, entry, inner)
        elif entry.name.endswith(".py"):
            digest.update(f"{inner}\n".encode() + entry.read_bytes())
