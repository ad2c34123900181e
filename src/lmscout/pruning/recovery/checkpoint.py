"""Adapters on disk with all that they depend on: whole or not there, refused where they differ."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmscout.errors import LmscoutError, brief
from lmscout.files import check_folder, write_file
from lmscout.reading import check_safetensors_header, parse_json

Identity = Mapping[str, str | int | float | None]

FOLDER = "recovery"  # in a run folder; model files there would be taken for parts of the model
_HEADER = "lmscout.recovery"


@dataclass(frozen=True)
class State:
    """A training at one of its steps.

    Attributes:
        weights: of the adapters, by name.
        optimizer: what the optimiser knows of each, by name and kind; empty once it has ended.
        losses: of every step that was made.
        seconds: that they took.
        ended: whether a bound was met.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    ended: bool = False


def write_state(path: Path, identity: Identity, state: State) -> None:
    """Write a file whole: a reader sees the old one or the new one, never a part.

    Raises:
        LmscoutError: it cannot be written.
    """
    header = {
        "identity": dict(identity),
        "losses": state.losses,
        "seconds": state.seconds,
        "ended": state.ended,
    }
    tensors = {f"weights/{name}": one for name, one in state.weights.items()}
    tensors |= {f"optimizer/{name}": one for name, one in state.optimizer.items()}
    plain = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    name = f"recovery {path}"
    check_folder(path.parent, name, make=True)
    metadata = {_HEADER: json.dumps(header)}
    write_file(path, lambda draft: save_file(plain, draft, metadata=metadata), name=name)


def read_state(path: Path, identity: Identity, shapes: Mapping[str, Tensor]) -> State | None:
    """The training that a file holds.

    Args:
        path: the file.
        identity: all that the wanted training depends on.
        shapes: the adapters that the weights are for.

    Returns:
        The state, or None where there is no file.

    Raises:
        LmscoutError: it is damaged, or of another training, or its adapters do not fit.
    """
    if not path.exists():
        return None
    header, tensors = _read(path)
    check_identity(path, header["identity"], identity, whole=True)
    kinds: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind not in kinds:
            raise LmscoutError(
                f"recovery {path}: holds {brief(name)}, which is neither a weight nor of the "
                "optimizer; remove the file to train anew"
            )
        kinds[kind][rest] = tensor
    weights = kinds["weights"]
    for name in sorted(weights.keys() | shapes.keys()):
        found, wanted = weights.get(name), shapes.get(name)
        if found is None or wanted is None or found.shape != wanted.shape:
            raise LmscoutError(
                f"recovery {path}: its adapter does not fit: {name} is {_words(found)} in the "
                f"file and {_words(wanted)} in this model; remove the file to train anew"
            )
    return State(
        weights,
        kinds["optimizer"],
        tuple(header["losses"]),
        header["seconds"],
        header["ended"],
    )


def read_adapter(path: Path) -> tuple[Identity, Mapping[str, Tensor]]:
    """All that a training depended on, and the weights that it has come to.

    Args:
        path: its file, whoever asks for it.

    Raises:
        LmscoutError: there is none, or it is damaged.
    """
    header, tensors = _read(path)
    weights = {
        name.removeprefix("weights/"): one
        for name, one in tensors.items()
        if name.startswith("weights/")
    }
    return header["identity"], weights


def check_file(path: Path, identity: Identity) -> None:
    """Refuse a file of other settings before any long work; no file is no error.

    Args:
        path: the file.
        identity: of the wanted training, as far as it is known already.

    Raises:
        LmscoutError: it is damaged, or of other settings.
    """
    if path.exists():
        check_identity(path, _read(path)[0]["identity"], identity, whole=False)


def check_identity(path: Path, found: Identity, wanted: Identity, *, whole: bool) -> None:
    """Refuse a file of other settings, naming the first that differs.

    Args:
        path: the file.
        found: what it was trained with.
        wanted: what is asked for.
        whole: whether `wanted` is all; else what it does not name may be anything.

    Raises:
        LmscoutError: something differs.
    """
    for key in sorted(found.keys() | wanted.keys() if whole else wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise LmscoutError(
                f"recovery {path}: was trained with {key} = {brief(found.get(key))}, this run has "
                f"{wanted.get(key)}: its adapter does not fit; give the same settings, or remove "
                "the file to train anew"
            )


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A digest of adapters' weights."""
    digest = hashlib.sha256()
    for name, one in sorted(weights.items()):
        digest.update(f"{name} {tuple(one.shape)} ".encode())
        digest.update(one.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        check_safetensors_header(path)
        with safe_open(path, framework="pt") as stored:
            header = _checked(parse_json((stored.metadata() or {})[_HEADER], str(path)))
            return header, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, LmscoutError, KeyError, ValueError) as error:
        raise LmscoutError(
            f"recovery {path}: is damaged, or was not written by lmscout; remove it to train anew"
        ) from error


def _checked(header: Any) -> dict[str, Any]:
    """The header, once it is known to hold what `write_state` writes.

    Raises:
        ValueError: it does not.
    """
    if not (isinstance(header, dict) and isinstance(header["losses"], list)):
        raise ValueError("the header holds something else than a training")
    numbers = [*header["losses"], header["seconds"]]
    finite = all(isinstance(one, int | float) and abs(one) < math.inf for one in numbers)
    if not (finite and isinstance(header["identity"], dict) and isinstance(header["ended"], bool)):
        raise ValueError("the header holds something else than a training")
    loaded: dict[str, Any] = header
    return loaded


def _words(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(list(tensor.shape))
