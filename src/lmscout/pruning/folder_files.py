"""The JSON files of a saved folder: known entries only.

transformers writes every entry of the dense model's files, and some of them name code or other
files (`auto_map`, kernels, paths); unknown entries are removed.  Rotary embeddings are written a
second time in the form of transformers 4.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from lmscout.errors import LmscoutError
from lmscout.evaluation import modeling_lmscout

CONFIG = "config.json"
MODELLING_FILE = Path(modeling_lmscout.__file__).name
_GENERATION = "generation_config.json"
_TOKENIZER = "tokenizer_config.json"

_MODEL_ENTRIES = {
    *("model_type", "architectures", "auto_map", "dtype", "transformers_version"),
    *("head_dim", "layer_types", "attention_groups", "mlp_channels", "block_numbers"),
    *("block_configs", "expert_channels"),
}
"""Kept in config.json besides the fields of the configuration's class."""
_BUILDING_ENTRIES = {"compile_config", "custom_generate"}
"""Removed from generation_config.json: they name parts to build."""
_TOKENIZER_ENTRIES = {
    *("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"),
    *("model_specific_special_tokens", "chat_control_tokens", "chat_template"),
    *("response_schema", "response_template", "model_input_names"),
    *("backend", "errors", "padding_side", "tokenizer_class", "truncation_side"),
}
"""Kept in tokenizer_config.json besides tokens, numbers and booleans, which name nothing."""
_LOADING_ENTRIES = {"is_local", "local_files_only", "trust_remote_code"}
"""Removed from tokenizer_config.json."""
_NEEDS_CLASS = {"llama3", "yarn", "longrope"}
"""Scalings of the model's length, which a configuration without a class does not know."""

Entries = dict[str, Any]


def clean_folder(folder: Path, model: PreTrainedModel) -> None:
    """Rewrite the JSON files of a folder that transformers has just written, and `check_code`."""
    config: Any = model.config
    own = _own_classes(model)
    known = {one.name for one in fields(config)} | _MODEL_ENTRIES
    known |= {*type(config).attribute_map.values()}
    defaults: Any = GenerationConfig
    generation = set(defaults().to_dict()) - _BUILDING_ENTRIES

    def model_entries(entries: Entries) -> Entries:
        kept = {name: value for name, value in entries.items() if name in known}
        auto_map = kept.pop("auto_map", None)
        if own and isinstance(auto_map, dict) and set(auto_map.values()) <= own:
            kept["auto_map"] = auto_map
        return _with_older_rope(kept, plain=not own)

    def generation_entries(entries: Entries) -> Entries:
        return {name: entries[name] for name in generation & entries.keys()}

    _rewrite(folder / CONFIG, model_entries)
    _rewrite(folder / _GENERATION, generation_entries)
    _rewrite(folder / _TOKENIZER, _tokenizer_entries)
    check_code(folder)


def check_code(folder: Path) -> None:
    """Raise LmscoutError if a folder holds code other than lmscout's own modelling file."""
    for path in sorted(folder.rglob("*.py")):
        own = path == folder / MODELLING_FILE
        if not own or path.read_bytes() != Path(modeling_lmscout.__file__).read_bytes():
            raise LmscoutError(
                f"the model cannot be saved: {path.name} would be saved with it, and is not "
                "lmscout's; save the model and its tokenizer without it first"
            )


def _own_classes(model: PreTrainedModel) -> set[str]:
    """Own classes in the auto_map of a model; empty for a plain model of its family."""
    module = MODELLING_FILE.removesuffix(".py")
    for classes in modeling_lmscout.PRUNED.values():
        if isinstance(model, classes[-1]):
            return {f"{module}.{one.__name__}" for one in classes}
    return set()


def _rewrite(file: Path, change: Callable[[Entries], Entries]) -> None:
    if file.is_file():
        entries = change(json.loads(file.read_text("utf-8")))
        text = json.dumps(entries, indent=2, ensure_ascii=False, sort_keys=True)
        file.write_text(text + "\n", "utf-8")


def _tokenizer_entries(entries: Entries) -> Entries:
    tokens = PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
    known = {*tokens, *_TOKENIZER_ENTRIES}
    kept = {
        name: value
        for name, value in entries.items()
        if name in known or name.endswith("_token") or isinstance(value, bool | int | float | None)
        if name not in _LOADING_ENTRIES
    }
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows
    return kept


def _with_older_rope(entries: Entries, *, plain: bool) -> Entries:
    """Add `rope_theta` and `rope_scaling`, as transformers 4 and vLLM read rotary embeddings.

    Without them transformers 4 takes its own defaults.  lmscout's own classes (not `plain`) add
    the scalings that need a class themselves: transformers 5 cannot load a tokenizer beside these
    without the class of the configuration.
    """
    rope = entries.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_type" not in rope:
        return entries
    named, plain_value = ("rope_type", "type"), bool | int | float | list
    rope = {key: one for key, one in rope.items() if key in named or isinstance(one, plain_value)}
    scaling = dict(rope)
    names = rope.keys() & {"rope_theta", "partial_rotary_factor"}
    older = {name: scaling.pop(name) for name in names}
    kind = scaling.get("rope_type")
    if kind != "default" and (plain or kind not in _NEEDS_CLASS):
        length = entries.get("max_position_embeddings")
        older["rope_scaling"] = modeling_lmscout.older_scaling(scaling, length)
    return {**entries, "rope_parameters": rope, **older}
