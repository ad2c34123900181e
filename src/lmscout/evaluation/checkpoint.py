"""A model's folder and the sizes in its config.json, checked before anything is loaded.

A model's folder, checked file by file before any of it is loaded.

What transformers would do with a folder that is not in order is too kind: it reads pickles,
follows an adapter to another model, or reports fifty lines.  Here each case is one line.

Sizes in a model's config.json, checked before anything of that size is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError, brief
from lmscout.evaluation.cost import parameter_bytes
from lmscout.evaluation.origin import files_of
from lmscout.evaluation.quiet import first_line
from lmscout.memory import GIB, total_memory
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


_WIDTH, _BLOCKS, _VOCABULARY, _POSITIONS = 2**20, 1024, 2**24, 2**28
_MOST = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff"), _WIDTH),
    **dict.fromkeys(("word_embed_proj_dim", "head_dim"), _WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), _BLOCKS),
    "vocab_size": _VOCABULARY,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), _POSITIONS),
}
_OPTIONAL = ("n_inner", "head_dim", "num_key_value_heads", "intermediate_size", "embedding_size")
_SUSPICIOUS = 4  # numbers that a configuration describes, for each byte of the files


def read_config(file: Path) -> dict[str, Any]:
    """Read a config.json whose sizes a model can have.

    Args:
        file: the config.json.

    Raises:
        LmscoutError: it cannot be read, a size is no whole number or out of range, or a name of
            a class or type is no name.
    """
    config = read_json_object(file, lenient=True)
    for where, part in _parts(config):
        for name, most in _MOST.items():
            if name in part:
                _check_size(f"{file}: {where}{name}", part[name], most, name in _OPTIONAL)
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(map(_is_name, names))):
        raise LmscoutError(
            f"{file}: architectures: is no list of class names (got {brief(names)}, expected such "
            'as ["LlamaForCausalLM"]); fetch it again'
        )
    kind = config.get("model_type")
    if kind is not None and not _is_name(kind):
        raise LmscoutError(f"{file}: model_type: is no name (got {brief(kind)}); fetch it again")
    return config


def check_memory(
    config: dict[str, Any],
    files: Sequence[Path],
    make: Callable[[], PreTrainedModel],
    source: str,
) -> None:
    """Refuse a configuration that describes far more weights than its files hold, and memory.

    Args:
        config: as it was read.
        files: of weights.
        make: makes the model that the configuration describes without memory for its weights.
        source: of the model, for messages.

    Raises:
        LmscoutError: it does.
    """
    held = sum(file.stat().st_size for file in files)
    if max(_rough_count(part) for _, part in _parts(config)) <= _SUSPICIOUS * held + 2**24:
        return
    needed = parameter_bytes(make())
    if needed > total_memory():
        raise LmscoutError(
            f"{source}: its weights do not fit config.json (got files of {held / GIB:,.4g} GiB, "
            f"expected {needed / GIB:,.4g} GiB by the configuration); fetch the model again"
        )


def _parts(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configuration, and those of parts of the model."""
    yield "", config
    for name, value in config.items():
        if name.endswith("_config") and isinstance(value, dict):
            yield f"{name[:60]}.", value


def _check_size(where: str, value: object, most: int, optional: bool) -> None:
    if value is None and optional:
        return
    several = isinstance(value, list | tuple)
    for one in value if several else [value]:  # type: ignore[attr-defined]
        if not isinstance(one, int) or isinstance(one, bool):
            raise LmscoutError(f"{where}: must be a whole number above 0, not {brief(one)}")
        if not (0 if several else 1) <= one <= most:
            raise LmscoutError(
                f"{where}: is out of range (got {brief(one)}, expected 1 to {most:,}); fetch the "
                "model again"
            )


def _rough_count(part: dict[str, Any]) -> int:
    """About how many numbers the weights have, from below."""
    width = _first(part, "hidden_size", "n_embd", "d_model")
    blocks = _first(part, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    inner = _first(part, "intermediate_size", "n_inner", "ffn_dim", "d_ff")
    positions = _first(part, "n_positions", "n_ctx")
    rows = _first(part, "vocab_size") + positions
    return width * (rows + blocks * (2 * width + 2 * inner))


def _first(part: dict[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := part.get(name), int)), 0)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200
