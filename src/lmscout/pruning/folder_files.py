"""The JSON files of a saved folder: known entries only, each consistent with the weights.

transformers writes every entry of the dense model's files, and some of them name code or other
files (`auto_map`, kernels, paths); unknown entries are removed.  Rotary embeddings are written a
second time in the form of transformers 4.  Entries that follow from the shapes of weights are
compared with the stored weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from lmscout.errors import LmscoutError
from lmscout.evaluation import modeling_lmscout

CONFIG = "config.json"
MODELLING_FILE = Path(modeling_lmscout.__file__).name
_GENERATION = "generation_config.json"
_TOKENIZER = "tokenizer_config.json"

_MODEL_ENTRIES = {
    "model_type",
    "architectures",
    "auto_map",
    "dtype",
    "head_dim",
    "layer_types",
    "attention_groups",
    "mlp_channels",
    "block_numbers",
    "transformers_version",
}
"""Kept in config.json besides the fields of the configuration's class."""
_BUILDING_ENTRIES = {"compile_config", "custom_generate"}
"""Removed from generation_config.json: they name parts to build."""
_TOKENIZER_ENTRIES = {
    "added_tokens_decoder",
    "backend",
    "chat_control_tokens",
    "chat_template",
    "errors",
    "extra_special_tokens",
    "additional_special_tokens",
    "model_input_names",
    "model_specific_special_tokens",
    "padding_side",
    "response_schema",
    "response_template",
    "tokenizer_class",
    "truncation_side",
}
"""Kept in tokenizer_config.json besides tokens, numbers and booleans, which name nothing."""
_LOADING_ENTRIES = {"is_local", "local_files_only", "trust_remote_code"}
"""Removed from tokenizer_config.json."""
_NEEDS_CLASS = {"llama3", "yarn", "longrope"}
"""Scalings of the model's length, which a configuration without a class does not know."""
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}

Entries = dict[str, Any]
Stored = Mapping[str, tuple[str, tuple[int, ...]]]  # name of a weight -> dtype and shape
Sizes = Mapping[str, tuple[int, ...]]  # name of a weight of a block -> shape


def clean_folder(folder: Path, model: PreTrainedModel) -> None:
    """Rewrite the JSON files of a folder that transformers has just written.

    Args:
        folder: holds the model, and its tokenizer if it has one.
        model: that was saved.

    Raises:
        LmscoutError: the folder holds code that lmscout did not write.
    """
    config: Any = model.config
    own = _own_classes(model)
    known = {one.name for one in fields(config)} | _MODEL_ENTRIES
    defaults: Any = GenerationConfig
    generation = set(defaults().to_dict()) - _BUILDING_ENTRIES

    def model_entries(entries: Entries) -> Entries:
        kept = {name: value for name, value in entries.items() if name in known}
        auto_map = kept.pop("auto_map", None)
        if own and isinstance(auto_map, dict) and set(auto_map.values()) <= own:
            kept["auto_map"] = auto_map
        return _with_older_rope(kept, plain=not own)

    def generation_entries(entries: Entries) -> Entries:
        return {name: value for name, value in entries.items() if name in generation}

    _rewrite(folder / CONFIG, model_entries)
    _rewrite(folder / _GENERATION, generation_entries)
    _rewrite(folder / _TOKENIZER, _tokenizer_entries)
    check_code(folder)


def check_code(folder: Path) -> None:
    """Refuse a folder that holds code other than lmscout's own modelling file.

    Raises:
        LmscoutError: it does.
    """
    for path in sorted(folder.rglob("*.py")):
        own = path == folder / MODELLING_FILE
        if not own or path.read_bytes() != Path(modeling_lmscout.__file__).read_bytes():
            raise LmscoutError(
                f"the model cannot be saved: {path.name} would be saved with it, and is not "
                "lmscout's; save the model and its tokenizer without it first"
            )


def check_agreement(folder: Path) -> None:
    """Compare every entry of config.json that describes weights with the stored weights.

    Raises:
        LmscoutError: an entry differs.
    """
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    layout = _GPT2 if config.get("model_type", "").endswith("gpt2") else _LLAMA
    for name, declared, found in layout.facts(config, dict(_headers(folder))):
        if declared != found:
            raise LmscoutError(
                f"the saved config.json does not describe the saved weights: {name} is {declared} "
                f"in the one and {found} by the other: not saved"
            )


@dataclass(frozen=True)
class _Layout:
    """The weights that the entries of a config.json describe.

    Attributes:
        blocks: prefix of the names of blocks' weights.
        embedding: name of the token embedding.
        names: entries of config.json: vocabulary, width, depth.
        sizes: (config, block) -> shapes of a block's weights.
    """

    blocks: str
    embedding: str
    names: tuple[str, str, str]
    sizes: Callable[[Mapping[str, Any], int], Sizes]

    def facts(
        self, config: Mapping[str, Any], stored: Stored
    ) -> Iterator[tuple[str, object, object]]:
        """Yield names of entries, their values, and the values by the weights."""
        vocabulary, width, depth = self.names
        rows, columns = stored[self.embedding][1]
        yield vocabulary, config[vocabulary], rows
        yield width, config[width], columns
        numbers = {
            int(name.removeprefix(self.blocks).partition(".")[0])
            for name in stored
            if name.startswith(self.blocks)
        }
        yield depth, config[depth], max(numbers, default=-1) + 1
        tied = config.get("tie_word_embeddings", self is _GPT2)
        yield "tie_word_embeddings", tied, "lm_head.weight" not in stored
        dtypes = sorted({_STORED.get(dtype, dtype) for dtype, _ in stored.values()})
        yield "dtype", [config["dtype"]], dtypes
        for block in range(config[depth]):
            for name, shape in self.sizes(config, block).items():
                whole = f"{self.blocks}{block}.{name}"
                found = stored[whole][1] if whole in stored else None
                yield whole, shape if shape and all(shape) else None, found


def _llama_sizes(config: Mapping[str, Any], block: int) -> Sizes:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    groups = config["num_key_value_heads"]
    kept = config.get("attention_groups", [groups] * (block + 1))[block]
    channels = config.get("mlp_channels", [config["intermediate_size"]] * (block + 1))[block]
    head = config.get("head_dim") or width // heads
    return {
        "self_attn.q_proj.weight": (kept * (heads // groups) * head, width),
        "self_attn.k_proj.weight": (kept * head, width),
        "self_attn.o_proj.weight": (width, kept * (heads // groups) * head),
        "mlp.up_proj.weight": (channels, width),
        "mlp.down_proj.weight": (width, channels),
    }


def _gpt2_sizes(config: Mapping[str, Any], block: int) -> Sizes:
    width, heads = config["n_embd"], config["n_head"]
    kept = config.get("attention_groups", [heads] * (block + 1))[block]
    inner = config.get("n_inner") or 4 * width
    channels = config.get("mlp_channels", [inner] * (block + 1))[block]
    return {
        "attn.c_attn.weight": (width, 3 * kept * (width // heads)) if kept else (),
        "attn.c_proj.weight": (kept * (width // heads), width),
        "mlp.c_fc.weight": (width, channels),
        "mlp.c_proj.weight": (channels, width),
    }


_LLAMA = _Layout(
    "model.layers.",
    "model.embed_tokens.weight",
    ("vocab_size", "hidden_size", "num_hidden_layers"),
    _llama_sizes,
)
_GPT2 = _Layout(
    "transformer.h.", "transformer.wte.weight", ("vocab_size", "n_embd", "n_layer"), _gpt2_sizes
)


def _own_classes(model: PreTrainedModel) -> set[str]:
    """Own classes in the auto_map of a model; empty for a plain model of its family."""
    module = MODELLING_FILE.removesuffix(".py")
    for classes in modeling_lmscout.PRUNED.values():
        if isinstance(model, classes[-1]):
            return {f"{module}.{one.__name__}" for one in classes}
    return set()


def _headers(folder: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                one = stored.get_slice(name)
                yield name, (one.get_dtype(), tuple(one.get_shape()))


def _rewrite(file: Path, change: Callable[[Entries], Entries]) -> None:
    if file.is_file():
        entries = change(json.loads(file.read_text("utf-8")))
        text = json.dumps(entries, indent=2, ensure_ascii=False, sort_keys=True)
        file.write_text(text + "\n", "utf-8")


def _tokenizer_entries(entries: Entries) -> Entries:
    tokens = PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
    kept = {
        name: value
        for name, value in entries.items()
        if name not in _LOADING_ENTRIES
        and (
            value is None
            or isinstance(value, bool | int | float)
            or name in _TOKENIZER_ENTRIES
            or name in tokens
            or name.endswith("_token")
        )
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
    rope = {
        name: value
        for name, value in rope.items()
        if name in ("rope_type", "type") or isinstance(value, bool | int | float | list)
    }
    scaling = dict(rope)
    older = {
        name: scaling.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope
    }
    kind = scaling.get("rope_type")
    if kind != "default" and (plain or kind not in _NEEDS_CLASS):
        length = entries.get("max_position_embeddings")
        older["rope_scaling"] = modeling_lmscout.older_scaling(scaling, length)
    return {**entries, "rope_parameters": rope, **older}
