"""A model's folder, checked file by file before any of it is loaded.

What transformers would do with a folder that is not in order is too kind: it reads pickles,
follows an adapter to another model, or reports fifty lines.  Here each case is one line.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open

from lmscout.errors import LmscoutError
from lmscout.evaluation.fingerprint import files_of
from lmscout.evaluation.quiet import first_line
from lmscout.reading import (
    MIB,
    check_inside,
    check_safetensors_header,
    named_file,
    read_json_object,
)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Those that PyTorch computes with, and that weights can be saved in."""

_STORED = MappingProxyType(  # by safetensors' names
    {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
)
MOST_JSON = 256 * MIB

_SAFE = ".safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def check_checkpoint(folder: Path) -> list[Path]:
    """Check that a folder holds a whole model in safetensors.

    Args:
        folder: a local folder.

    Returns:
        The files of weights.

    Raises:
        LmscoutError: it is no folder, lacks a configuration or weights, holds an adapter, its
            weights are pickled, or a file of them is missing or damaged.
    """
    if not folder.is_dir():
        raise LmscoutError(f"{folder}: {_no_folder(folder)}")
    if (folder / "adapter_config.json").exists():
        raise LmscoutError(
            f"{folder}: holds an adapter, not a model; merge it into its base model with peft's "
            "merge_and_unload and save that"
        )
    if not (folder / CONFIG).is_file():
        raise LmscoutError(f"{folder}: has no {CONFIG}; give a folder written by save_pretrained")
    _check_links(folder)
    config = read_json_object(folder / CONFIG, lenient=True)
    for file in folder.glob("*.json"):  # which transformers reads whole
        if (size := file.stat().st_size) > MOST_JSON:
            raise LmscoutError(
                f"{file}: is too large (got {size:,} bytes, expected at most {MOST_JSON:,})"
            )
    files = _weight_files(folder, config.get("transformers_weights"))
    for file in files:
        _check_weights(file)
    return files


def _check_links(folder: Path) -> None:
    """Refuse links out of a folder: what they lead to would be read, and saved with the model."""
    for path in files_of(folder):
        check_inside(path, folder)


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of most values among a folder's stored weights, by their headers.

    Args:
        folder: a local folder.

    Returns:
        One of `PLAIN_DTYPES`; None if no file of weights can be read, or none is of them.
    """
    values: Counter[torch.dtype] = Counter()
    try:
        config = read_json_object(folder / CONFIG, lenient=True)
        for file in _weight_files(folder, config.get("transformers_weights")):
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118
                    one = stored.get_slice(name)
                    if one.get_dtype() in _STORED:
                        values[_STORED[one.get_dtype()]] += prod(one.get_shape())
    except (LmscoutError, SafetensorError, OSError):
        return None
    return max(values, key=values.__getitem__, default=None)


def _no_folder(path: Path) -> str:
    if not path.exists():
        return "no such folder"
    if path.suffix in _PICKLED:
        return _pickled(path.name)
    return f"is a file; give the folder that holds it and {CONFIG}"


def _pickled(name: str) -> str:
    return (
        f"{name} is pickled, and reading that can run any code; convert it once, in an "
        "environment that you trust: load it with transformers and save_pretrained it to a new "
        "folder"
    )


def _weight_files(folder: Path, named: object) -> list[Path]:
    if named is not None:  # transformers reads this entry first, and from it even a pickle
        file = named_file(folder, named, f"{folder / CONFIG}: transformers_weights")
        if not file.name.endswith((_SAFE, f"{_SAFE}.index.json")):
            raise LmscoutError(f"{folder}: {_pickled(f'{file.name}, which {CONFIG} names,')}")
        return _shards(file) if file.name.endswith(".json") else [file]
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        return _shards(folder / INDEX)
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
    pickled = [name for name in pickled if name != "training_args.bin"]
    if pickled:
        raise LmscoutError(f"{folder}: {_pickled(pickled[0])}")
    raise LmscoutError(f"{folder}: has no weights in safetensors; expected {WEIGHTS} or {INDEX}")


def _shards(index: Path) -> list[Path]:
    weights = read_json_object(index, lenient=True).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise LmscoutError(f"{index}: names no weights (weight_map); fetch it again")
    files = [named_file(index.parent, name, str(index)) for name in weights.values()]
    names = sorted({file.name for file in files})
    for name in names:
        if not name.endswith(_SAFE):  # transformers would unpickle it
            raise LmscoutError(f"{index}: {_pickled(name)}")
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise LmscoutError(
            f"{index.parent}: {len(missing)} of {len(names)} files of weights are missing, "
            f"{missing[0]} first; fetch them again"
        )
    return [index.parent / name for name in names]


def _check_weights(file: Path) -> None:
    check_safetensors_header(file)
    try:
        with safe_open(file, framework="pt"):  # reads the header and compares lengths
            pass
    except (SafetensorError, OSError) as error:
        raise LmscoutError(
            f"{file}: is damaged or incomplete ({first_line(error)}); fetch or save it again"
        ) from None
