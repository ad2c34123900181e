"""A model's folder: its checks before transformers reads it, its digest, the model's origin.

transformers itself would unpickle weights, follow an adapter to another model, or report fifty
lines; here each case of a bad file, link, size or memory is one line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel

from lmscout.errors import LmscoutError, brief, first_line
from lmscout.evaluation.cost import parameter_bytes
from lmscout.evaluation.quiet import quiet
from lmscout.memory import GIB, total_memory
from lmscout.reading import (
    MIB,
    check_inside,
    check_safetensors_header,
    expanded,
    named_file,
    parse_yaml,
    read_json_object,
)

CONFIG = "config.json"
_GENERATION = "generation_config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"

PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Dtypes that PyTorch computes with and that weights are saved in."""

_STORED = MappingProxyType(dict(zip(("F32", "BF16", "F16", "F64"), PLAIN_DTYPES, strict=True)))
_MOST_JSON = 256 * MIB  # bytes of a file that transformers reads whole
_SAFE = ".safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_WIDTHS = (
    *("hidden_size", "n_embd", "d_model", "embedding_size", "intermediate_size", "n_inner"),
    *("ffn_dim", "d_ff", "word_embed_proj_dim", "head_dim", "num_attention_heads", "n_head"),
    "num_key_value_heads",
)
_BLOCKS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
_MOST = {
    **dict.fromkeys(_WIDTHS, 2**20),
    **dict.fromkeys(_BLOCKS, 1024),
    **dict.fromkeys(_POSITIONS, 2**28),
    "vocab_size": 2**24,
}
_OPTIONAL = ("n_inner", "head_dim", "num_key_value_heads", "intermediate_size", "embedding_size")
_SUSPICIOUS = 4  # weights that a configuration describes, per byte of the files
CARD = "README.md"

_OF_A_RUN = (
    *("settings.json", "result.json", "lmscout.json", "scores.parquet", "ledger.db"),
    *("front.csv", "front.json", "report.html"),
)
_TEMPLATES = "additional_chat_templates"  # the folder within a model's folder that is read
_PIECE = 1 << 22  # bytes
_MOST_CARD = 1 << 16  # characters of a card or record that are read
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WORD = re.compile(r"[\w][\w.+-]{0,99}")
_LINK = re.compile(r"https?://[\w./%?=&+#~:-]{1,300}")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # a folder of the Hub's own cache


def check_checkpoint(folder: Path) -> list[Path]:
    """Check that a folder holds a whole model in safetensors.

    Returns:
        The files of weights.

    Raises:
        LmscoutError: it is no folder, lacks a configuration or weights, holds an adapter, its
            weights are pickled, a file is missing or damaged, or a link leads out of it.
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
    for path in files_of(folder):  # a link's target would be read, and saved with the model
        check_inside(path, folder)
    for file in folder.glob("*.json"):
        if (size := file.stat().st_size) > _MOST_JSON:
            raise LmscoutError(
                f"{file}: is too large (got {size:,} bytes, expected at most {_MOST_JSON:,})"
            )
    _check_generation_config(folder / _GENERATION)
    files = _weight_files(folder)
    for file in files:
        check_safetensors_header(file)
        try:
            with safe_open(file, framework="pt"):  # reads the header and compares lengths
                pass
        except (SafetensorError, OSError) as error:
            raise LmscoutError(
                f"{file}: is damaged or incomplete ({first_line(error)}); fetch or save it again"
            ) from None
    return files


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype of most values among a folder's stored weights, by their headers.

    Returns:
        One of `PLAIN_DTYPES`; None if no file of weights can be read, or none has such values.
    """
    values: Counter[torch.dtype] = Counter()
    try:
        for file in _weight_files(folder):
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118
                    one = stored.get_slice(name)
                    if one.get_dtype() in _STORED:
                        values[_STORED[one.get_dtype()]] += prod(one.get_shape())
    except (LmscoutError, SafetensorError, OSError):
        return None
    return max(values, key=values.__getitem__, default=None)


def read_config(file: Path) -> dict[str, Any]:
    """Read a config.json and check its sizes.

    Raises:
        LmscoutError: it cannot be read, a size is no whole number or out of range, or a name of
            a class or type is no name.
    """
    config = read_json_object(file, lenient=True)
    for where, part in _parts(config):
        for name, most in _MOST.items():
            if name in part and not (part[name] is None and name in _OPTIONAL):
                _check_size(f"{file}: {where}{name}", part[name], most)
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
    config: dict[str, Any], files: Sequence[Path], make: Callable[[], PreTrainedModel], source: str
) -> None:
    """Refuse a configuration that describes far more weights than its files and memory hold.

    Args:
        config: from `read_config`.
        files: of weights.
        make: makes the model on the meta device.
        source: of the model, for the message.
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


def _check_generation_config(file: Path) -> None:
    """Name the field that transformers refuses; it would fail while the weights are loaded."""
    if not file.exists():
        return
    fields = read_json_object(file, lenient=True)
    if (error := _generation_error(fields)) is None:
        return
    for name, value in fields.items():
        if (own := _generation_error({name: value})) is not None:
            raise LmscoutError(
                f"{file}: {name}: is refused by transformers (got {brief(value)}: "
                f"{first_line(own)}); correct it, or leave it out"
            )
    raise LmscoutError(f"{file}: is refused by transformers ({first_line(error)}); correct it")


def _generation_error(fields: dict[str, Any]) -> Exception | None:
    try:
        with quiet():
            GenerationConfig.from_dict(fields)
    except Exception as error:  # whatever a field's own class raises
        return error
    return None


def _weight_files(folder: Path) -> list[Path]:
    named = read_json_object(folder / CONFIG, lenient=True).get("transformers_weights")
    if named is not None:  # transformers reads this entry first, and from it even a pickle
        file = named_file(folder, named, f"{folder / CONFIG}: transformers_weights")
        if not file.name.endswith((_SAFE, f"{_SAFE}.index.json")):
            raise LmscoutError(f"{folder}: {_pickled(f'{file.name}, which {CONFIG} names,')}")
        return _shards(file) if file.name.endswith(".json") else [file]
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).exists():
        return _shards(folder / _INDEX)
    names = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
    for name in names:
        if name != "training_args.bin":
            raise LmscoutError(f"{folder}: {_pickled(name)}")
    raise LmscoutError(f"{folder}: has no weights in safetensors; expected {_WEIGHTS} or {_INDEX}")


def _shards(index: Path) -> list[Path]:
    weights = read_json_object(index, lenient=True).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise LmscoutError(f"{index}: names no weights (weight_map); fetch it again")
    files = sorted({named_file(index.parent, name, str(index)) for name in weights.values()})
    for file in files:
        if not file.name.endswith(_SAFE):  # transformers would unpickle it
            raise LmscoutError(f"{index}: {_pickled(file.name)}")
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise LmscoutError(
            f"{index.parent}: {len(missing)} of {len(files)} files of weights are missing, "
            f"{missing[0]} first; fetch them again"
        )
    return files


def _parts(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configuration, and those of the model's parts."""
    yield "", config
    for name, value in config.items():
        if name.endswith("_config") and isinstance(value, dict):
            yield f"{name[:60]}.", value


def _check_size(where: str, value: object, most: int) -> None:
    several = isinstance(value, list)
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, int) or isinstance(one, bool):
            raise LmscoutError(f"{where}: must be a whole number above 0, not {brief(one)}")
        if not (0 if several else 1) <= one <= most:
            raise LmscoutError(
                f"{where}: is out of range (got {brief(one)}, expected 1 to {most:,}); fetch the "
                "model again"
            )


def _rough_count(part: dict[str, Any]) -> int:
    """Lower bound of the number of weights, roughly."""

    def first(*names: str) -> int:
        return next((value for name in names if isinstance(value := part.get(name), int)), 0)

    width, blocks = first("hidden_size", "n_embd", "d_model"), first(*_BLOCKS)
    inner = first("intermediate_size", "n_inner", "ffn_dim", "d_ff")
    rows = first("vocab_size") + first("n_positions", "n_ctx")
    return width * (rows + blocks * (2 * width + 2 * inner))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200


@dataclass(frozen=True)
class Origin:
    """Origin of a model, for the card of one that is made from it."""

    name: str | None  # on the Hub; None if neither the source nor its folder names one
    source: str  # a Hub name, or the last part of a path; never a whole path
    # identifier of the licence, as the Hub writes it; None if the card names none
    license: str | None = None
    license_name: str | None = None  # of a licence without an identifier
    license_link: str | None = None  # of a licence without an identifier


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a model's folder, and of the folder in it that transformers reads."""
    yield from folder.iterdir()
    if (folder / _TEMPLATES).is_dir():
        yield from (folder / _TEMPLATES).iterdir()


def model_fingerprint(source: object) -> str | None:
    """A digest of the files in a model's folder: names, sizes and content.

    All are read, about a second per gigabyte, except cards and the files of a run.

    Returns:
        SHA-256, shortened; None for what is no folder, such as a name on the Hub.  For a model in
        memory, whose weights and code may have been changed, a text that no other call returns.
    """
    if not isinstance(source, str):
        return f"in memory, {uuid4().hex[:8]}"
    folder = expanded(source)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(files_of(folder)):
        if not path.is_file() or path.name in _OF_A_RUN or path.suffix in (".md", ".part"):
            continue
        name = path.relative_to(folder)
        digest.update(f"{name} {path.stat().st_size} ".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()[:16]


def read_origin(source: str, folder: Path | None) -> Origin:
    """Where the model of a folder or a Hub name comes from; malformed entries are ignored."""
    path = expanded(source)
    card = {} if folder is None else _card(folder)
    license, title = (_matching(_WORD, card.get(one)) for one in ("license", "license_name"))
    if not path.exists():
        return Origin(source, source, license, title, _link(card.get("license_link"), source))
    name = _cached_name(path) or _recorded_name(path) or card.get("base_model")
    return Origin(
        _matching(_REPOSITORY, name),
        path.resolve().name or "model",
        license,
        title,
        _link(card.get("license_link"), name),
    )


def _cached_name(path: Path) -> str | None:
    found = next(filter(None, map(_CACHED.fullmatch, path.resolve().parts)), None)
    return found and f"{found[1]}/{found[2]}"


def _recorded_name(folder: Path) -> str | None:
    """The name that an earlier run of lmscout, or transformers, recorded in the folder."""
    for file, entry in (("lmscout.json", "base_model"), ("config.json", "_name_or_path")):
        try:
            content = json.loads(_start_of(folder / file))
        except (OSError, ValueError, RecursionError):
            continue
        found = _matching(_REPOSITORY, content.get(entry) if isinstance(content, dict) else None)
        if found and not Path(found).exists():
            return found
    return None


def _card(folder: Path) -> dict[str, Any]:
    """Entries of a card's front matter; of a list the first one."""
    try:
        text = _start_of(folder / CARD).removeprefix("\ufeff")
        if not text.startswith("---\n") or "\n---" not in text[3:]:
            return {}
        entries = parse_yaml(text[4:].partition("\n---")[0], CARD)
    except (OSError, LmscoutError):
        return {}
    return {
        name: value[0] if isinstance(value, list) and value else value
        for name, value in entries.items()
    }


def _link(given: object, name: object) -> str | None:
    """An address, or that of a file in the model's repository."""
    if _matching(_REPOSITORY, name) and _matching(_WORD, given):
        return f"https://huggingface.co/{name}/blob/main/{given}"
    return _matching(_LINK, given)


def _matching(form: re.Pattern[str], given: object) -> str | None:
    return given if isinstance(given, str) and form.fullmatch(given) else None


def _start_of(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(_MOST_CARD)
