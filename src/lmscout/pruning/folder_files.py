"""The JSON files of a saved folder: nothing foreign in them, and nothing untrue.

transformers writes whatever entries the dense model's files had, known to it or not, and some of
them name code or other files (`auto_map`, kernels, paths).  So only entries that are known stay.
Rotary embeddings are written a second time in the form that transformers 4 reads.  Each entry
that follows from the shapes of weights is compared with the weights in the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
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

# Of config.json, beside the fields of the configuration's class.
_OF_MODELS = (
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
)
# Of generation_config.json, what names a part that would be built.
_NOT_OF_GENERATION = ("compile_config", "custom_generate")
# Of tokenizer_config.json, entries that are text or hold text.  Others stay where they are numbers
# or yes and no, which name nothing.
_OF_TOKENIZERS = (
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
)
_NOT_OF_TOKENIZERS = ("is_local", "local_files_only", "trust_remote_code")
# Scalings that need the model's length, which a configuration without a class does not know.
_UNREADABLE = ("llama3", "yarn", "longrope")
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


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
    known = {one.name for one in fields(config)} | set(_OF_MODELS)

    def configured(name: str, value: object) -> bool:
        if name == "auto_map":
            return bool(own) and isinstance(value, dict) and set(value.values()) <= own
        return name in known

    _keep(folder / CONFIG, configured)
    _rewrite(folder / CONFIG, partial(_with_older_rope, plain=not own))
    plain: Any = GenerationConfig
    generation = set(plain().to_dict()) - set(_NOT_OF_GENERATION)
    _keep(folder / _GENERATION, lambda name, _: name in generation)
    _keep(folder / _TOKENIZER, _of_tokenizer)
    _rewrite(folder / _TOKENIZER, _with_older_class)
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
    """Compare every entry of config.json that describes weights with the weights in the files.

    Raises:
        LmscoutError: one says something else than the weights.
    """
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    stored = dict(_headers(folder))
    layout = _GPT2 if config.get("model_type", "").endswith("gpt2") else _LLAMA
    for name, said, found in layout.facts(config, stored):
        if said != found:
            raise LmscoutError(
                f"the saved config.json does not describe the saved weights: {name} is {said} in "
                f"the one and {found} by the other: not saved"
            )


@dataclass(frozen=True)
class _Layout:
    """Where a layout keeps the weights from which the entries of its config.json follow.

    Attributes:
        blocks: what the names of blocks' weights begin with.
        embedding: name of the token embedding.
        names: entries of config.json: vocabulary, width, depth.
        sizes: (config, block) -> names of a block's weights with the shape that each has.
    """

    blocks: str
    embedding: str
    names: tuple[str, str, str]
    sizes: Callable[[Mapping[str, Any], int], Mapping[str, tuple[int, ...]]]

    def facts(
        self, config: Mapping[str, Any], stored: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> Iterator[tuple[str, object, object]]:
        """Entries, what config.json says of them, and what the weights say."""
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
                there = stored[whole][1] if whole in stored else None
                yield whole, shape if shape and all(shape) else None, there


def _llama_sizes(config: Mapping[str, Any], block: int) -> Mapping[str, tuple[int, ...]]:
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


def _gpt2_sizes(config: Mapping[str, Any], block: int) -> Mapping[str, tuple[int, ...]]:
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
    """How a model's auto_map names its classes; nothing for a plain model of its family."""
    module = MODELLING_FILE.removesuffix(".py")
    for classes in modeling_lmscout.PRUNED.values():
        if isinstance(model, classes[-1]):
            return {f"{module}.{one.__name__}" for one in classes}
    return set()


def _headers(folder: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Names of the stored weights, with dtype and shape."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                one = stored.get_slice(name)
                yield name, (one.get_dtype(), tuple(one.get_shape()))


def _of_tokenizer(name: str, value: object) -> bool:
    if name in _NOT_OF_TOKENIZERS:
        return False
    if value is None or isinstance(value, bool | int | float):
        return True
    text_of_tokens = name in PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES or name.endswith(
        "_token"
    )
    return text_of_tokens or name in _OF_TOKENIZERS


def _with_older_class(entries: dict[str, Any]) -> dict[str, Any]:
    """The class of a plain fast tokenizer by the name that transformers 4 knows as well."""
    if entries.get("tokenizer_class") == "TokenizersBackend":
        return {**entries, "tokenizer_class": "PreTrainedTokenizerFast"}
    return entries


def _keep(file: Path, wanted: Callable[[str, object], bool]) -> None:
    """Keep the wanted entries of a file, if there is such a file."""
    _rewrite(
        file, lambda entries: {name: one for name, one in entries.items() if wanted(name, one)}
    )


def _rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if file.is_file():
        entries = change(json.loads(file.read_text("utf-8")))
        text = json.dumps(entries, indent=2, ensure_ascii=False, sort_keys=True)
        file.write_text(text + "\n", "utf-8")


def _with_older_rope(entries: dict[str, Any], *, plain: bool) -> dict[str, Any]:
    """Rotary embeddings once more as transformers 4 reads them, and vLLM and others with it.

    It reads `rope_theta` and `rope_scaling` and takes its own defaults where they are not there.
    Where the model has lmscout's own classes (it is not `plain`), these see to it, too:
    transformers 5 cannot load a tokenizer beside some scalings without the configuration's class.
    """
    rope = entries.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_type" not in rope:
        return entries
    rope = _named_values(rope)
    older = _older(rope, entries)
    if not plain and rope["rope_type"] in _UNREADABLE:
        older.pop("rope_scaling", None)
    return {**entries, "rope_parameters": rope, **older}


def _named_values(rope: Mapping[str, Any]) -> dict[str, Any]:
    """A kind of rotary embedding by its name and numbers, without anything else."""
    return {
        name: value
        for name, value in rope.items()
        if name in ("rope_type", "type") or isinstance(value, bool | int | float | list)
    }


def _older(rope: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of transformers 4 for one kind of rotary embedding."""
    scaling = dict(rope)
    older: dict[str, Any] = {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in scaling:
            older[name] = scaling.pop(name)
    if scaling.get("rope_type", "default") == "default":
        return older  # without scaling, which is what transformers 4 takes where none is named
    length = entries.get("max_position_embeddings")
    return {**older, "rope_scaling": modeling_lmscout.older_scaling(scaling, length)}
