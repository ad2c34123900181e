"""Sizes in a model's config.json, checked before anything of that size is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lmscout.errors import LmscoutError, brief
from lmscout.evaluation.cost import parameter_bytes
from lmscout.memory import GIB, total_memory
from lmscout.reading import read_json_object

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
