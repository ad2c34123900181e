"""Load a causal language model and its tokenizer from a folder or the Hub, or raise one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lmscout.errors import LmscoutError, first_line, out_of_memory, require_known
from lmscout.evaluation.checkpoint import (
    CARD,
    CONFIG,
    PLAIN_DTYPES,
    check_checkpoint,
    check_memory,
    read_config,
    stored_dtype,
)
from lmscout.evaluation.cost import parameter_count, vocabulary_size
from lmscout.evaluation.quiet import quiet
from lmscout.memory import usable_device
from lmscout.reading import expanded

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Weights by transformers' own names only: many repositories hold the same weights again under
# other names, and pickled.
_MODEL_FILES = [
    *("*.json", "model.safetensors", "model-*.safetensors"),
    *("*.model", "*.txt", "*.jinja", CARD),
]
_ELSEWHERE = ["*/*"]  # folders hold exports to other runtimes
_UNKNOWN = (
    "neither a folder here nor a model of the Hub; check the spelling (a private model needs hf "
    "auth login)"
)
_HUB_PROBLEMS: dict[type[Exception], str] = {  # a gated repository is a kind of unknown one
    GatedRepoError: "is a gated model; request access on its page, then run hf auth login",
    RepositoryNotFoundError: _UNKNOWN,
    HFValidationError: _UNKNOWN,
    LocalEntryNotFoundError: "is no folder here, and the Hub cannot be reached (offline?) nor "
    "does its cache have it; give a folder that exists, or connect",
}
# Entries of a config.json that name code, in the repository itself or in another one.
_NAMING_CODE = ("auto_map", "custom_pipelines", "custom_generate")
# Attention of PyTorch and transformers. Any other name may stand for a kernel that transformers
# downloads and runs.
_OWN_ATTENTION = ("eager", "sdpa")
# Attributes that transformers sets itself, for which a config.json has other names.
_INTERNAL = (
    *("_name_or_path", "_output_attentions", "_post_init_done"),
    *("_attn_implementation_internal", "_experts_implementation_internal"),
)
_SHOWN = 3  # names of weights in a message
_TOKENIZER_FILES = "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json"
# Modules that register classes of saved folders; by name, as transformers finds them.
_PRUNED = "lmscout.evaluation.modeling_lmscout"
_DESIGNED = "lmscout.models.pretrained"


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model with its tokenizer."""

    model: PreTrainedModel  # in eval mode
    tokenizer: PreTrainedTokenizerBase  # the model's own
    source: str  # the folder or Hub name as it was given
    # of the weights on disk by the configuration, else of most stored values; None if neither is
    # one of `PLAIN_DTYPES`
    saved_dtype: torch.dtype | None = None
    folder: Path | None = None  # of its files

    def __repr__(self) -> str:
        """One line: the class of the model, its size and its source."""
        size = f"{parameter_count(self.model):,} parameters"
        return f"LoadedModel({type(self.model).__name__}, {size}, {self.source!r})"


def load_model(
    source: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load a causal language model with its tokenizer.

    Nothing is unpickled, and no code that comes with a model or that its files name is run.  The
    configuration follows the weights: it says tied only if embedding and head are one tensor.

    Args:
        source: a folder that `save_pretrained` wrote, or a name on the Hub.
        dtype: of the weights in memory; None for float32 on a CPU, which is slow at anything
            else, and as saved elsewhere.
        device: as PyTorch names it.

    Returns:
        The model in eval mode, and its tokenizer.

    Raises:
        LmscoutError: there is no such model, its folder is damaged, it is not a causal language
            model, its weights stay quantized, or the device cannot be used.
    """
    target = usable_device(str(device))
    folder = _folder(source)
    files = check_checkpoint(folder)
    with quiet():
        config = _causal_config(folder, source)
        make = partial(AutoModelForCausalLM.from_config, config, trust_remote_code=False)
        meta = partial(unfilled_model, make, "meta")
        check_memory(read_config(folder / CONFIG), files, meta, source)
        saved_dtype = _dtype(config)  # before loading overwrites it
        model = _weights(folder, source, config, dtype or memory_dtype(config, target))
        _describe_tie(model)
        tokenizer = _tokenizer(folder, source)
        try:
            model.to(target)
        except (RuntimeError, MemoryError) as error:
            raise LmscoutError(
                f"{source}: does not fit on {target} ({first_line(error)})"
            ) from None
        _check_causal(model, source)
    return LoadedModel(model, tokenizer, source, saved_dtype, folder)


def load_config(source: str) -> PreTrainedConfig:
    """Load the configuration of a causal language model, whose weights need not exist.

    Raises:
        LmscoutError: there is none, or it is not of a causal language model.
    """
    folder = _folder(source, weights=False)
    if not (folder / CONFIG).is_file():
        raise LmscoutError(
            f"{source}: holds no config.json: give a model's folder, or a name on the Hub"
        )
    with quiet():
        return _causal_config(folder, source)


def unfilled_model(
    make: Callable[[], PreTrainedModel], device: torch.device | str
) -> PreTrainedModel:
    """Call `make` on a device, "meta" for sizes alone, without initialising the weights."""
    with torch.device(device), no_init_weights():
        model = make()
    model.tie_weights()  # part of the initialisation that was left out
    return model


def devices_of(names: str) -> tuple[torch.device, ...]:
    """Parse device names between commas or plus signs; raises LmscoutError as `usable_device`."""
    devices = tuple(usable_device(name.strip()) for name in names.replace("+", ",").split(","))
    if len(set(devices)) < len(devices):
        raise LmscoutError(f"device {names}: names a device twice; give each once")
    return devices


def memory_dtype(config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """The dtype that `load_model` gives weights on a device by default."""
    saved = _dtype(config)
    return torch.float32 if device.type == "cpu" or saved is None else saved


def dtype_named(name: str) -> torch.dtype:
    """A type of weights by its name, such as "bfloat16"; LmscoutError for another."""
    known = {_short(one): one for one in PLAIN_DTYPES}
    require_known("dtype", name, known)
    return known[name]


def _dtype(config: PreTrainedConfig) -> torch.dtype | None:
    return config.dtype if config.dtype in PLAIN_DTYPES else None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _folder(source: str, *, weights: bool = True) -> Path:
    """A local folder as given, or that of a Hub model in the Hub's cache, downloaded if needed."""
    folder = expanded(source)
    if os.path.exists(folder) or not _HUB_NAME.fullmatch(source):
        return folder
    try:
        with quiet():
            wanted = _MODEL_FILES if weights else [CONFIG]
            return Path(
                snapshot_download(source, allow_patterns=wanted, ignore_patterns=_ELSEWHERE)
            )
    except Exception as error:  # the network's own errors come through as they are
        failed = f"is no folder here, and fetching it from the Hub failed ({first_line(error)})"
        known = (problem for kind, problem in _HUB_PROBLEMS.items() if isinstance(error, kind))
        raise LmscoutError(f"{source}: {next(known, failed)}") from error


def _causal_config(folder: Path, source: str) -> PreTrainedConfig:
    entries = read_config(folder / CONFIG)  # before transformers reads it without bounds
    designed = entries.get("model_type") == "lmscout_design"
    import_module(_DESIGNED if designed else _PRUNED)  # so that the folder's code is not needed
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # each configuration class checks itself, with errors of its own
        raise LmscoutError(
            f"{source}: transformers refuses its config.json, or would have to run code that "
            f"comes with the model ({first_line(error)})"
        ) from error
    _remove_code(config)
    _check_declared_causal(config, source)
    if _dtype(config) is None:
        eight_bits = isinstance(config.dtype, torch.dtype) and config.dtype.itemsize == 1
        if config.dtype is not None and not eight_bits:
            raise LmscoutError(
                f"{source}: config.json: dtype names no type of weights (got {config.dtype!r}, "
                f"expected one of {', '.join(map(_short, PLAIN_DTYPES))}); correct it, or leave "
                "it out"
            )
        config.dtype = stored_dtype(folder)
    return config


def _remove_code(config: PreTrainedConfig) -> None:
    """Remove what names code, or hides what transformers has: every entry is an attribute."""
    known = {one.name for one in fields(config)}
    for name in set(vars(config)) - known - {"model_type", *_INTERNAL}:
        if name in _NAMING_CODE or hasattr(PreTrainedConfig, name):
            delattr(config, name)
    if config._attn_implementation not in _OWN_ATTENTION:
        config._attn_implementation = None
    config._experts_implementation = None


def _check_declared_causal(config: PreTrainedConfig, source: str) -> None:
    """Refuse a folder that another class wrote; an encoder's type can have a causal one too."""
    declared = list(config.architectures or [])
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    classes = known if isinstance(known, tuple) else (known,) if known else ()
    foreign = declared and not {one.__name__ for one in classes} & set(declared)
    if not classes or foreign or config.is_encoder_decoder:
        what = ", ".join(declared) or f"a model of type {config.model_type!r}"
        raise LmscoutError(
            f"{source}: is {what}, not a causal language model; give one that predicts the next "
            "token, such as LlamaForCausalLM or GPT2LMHeadModel"
        )


def _weights(folder: Path, source: str, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    settings = getattr(config, "quantization_config", None)
    if isinstance(settings, dict) and settings.get("quant_method") == "fp8":
        config.quantization_config = {**settings, "dequantize": True}
    auto: Any = AutoModelForCausalLM  # what it returns depends on output_loading_info
    try:
        model, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except Exception as error:  # the library passes on whatever a class raises while it is built
        if out_of_memory(error):
            raise LmscoutError(
                f"{source}: does not fit into memory ({first_line(error)}); use a machine with "
                "more, or a smaller model"
            ) from error
        raise LmscoutError(
            f"{source}: its weights cannot be loaded as config.json describes them "
            f"({first_line(error)})"
        ) from error
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise LmscoutError(
            f"{source}: its weights do not fit config.json: {name} is {list(found)} in the file "
            f"and {list(expected)} by the configuration; save the two together again"
        )
    _check_names(source, report["missing_keys"], report["unexpected_keys"])
    _check_plain(model, source, dtype, quantized=settings is not None)
    model.eval()
    return model


def _check_names(source: str, missing: Collection[str], unknown: Collection[str]) -> None:
    """Refuse weights that are missing, or that another library has wrapped."""
    adapters = [name for name in unknown if ".lora_" in name or ".base_layer." in name]
    if adapters:
        raise LmscoutError(
            f"{source}: holds {len(adapters)} weights of adapters that are not merged, "
            f"{_listed(adapters)}; merge them with peft's merge_and_unload and save that"
        )
    if not missing:
        return
    # transformers has initialised them at random
    lacks = f"{source}: lacks {len(missing)} of the weights that config.json describes"
    prefix = _wrapping(missing, unknown)
    if prefix:
        raise LmscoutError(
            f"{lacks}; the file holds {len(unknown)} under unknown names: {_listed(unknown)}; they "
            f"begin with {prefix!r}, which a wrapper of the model has put there: save the model "
            "inside it, or rename them"
        )
    others = f"; it holds others that are unknown: {_listed(unknown)}" if unknown else ""
    raise LmscoutError(f"{lacks}, {min(missing)} first{others}; save the whole model again")


def _wrapping(missing: Collection[str], unknown: Collection[str]) -> str:
    """The prefix of unknown names before names of missing weights; "" if there is none."""
    for wanted in sorted(missing):  # of a tied model the file does not hold the first
        found = [name.removesuffix(wanted) for name in unknown if name.endswith(wanted)]
        if found:
            return min(found, key=len)
    return ""


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:_SHOWN]) + (" and others" if len(names) > _SHOWN else "")


def _check_plain(
    model: PreTrainedModel, source: str, dtype: torch.dtype, *, quantized: bool
) -> None:
    """Convert weights that transformers dequantized, and refuse those that stay quantized."""
    kept = {one.dtype for one in model.parameters()} - set(PLAIN_DTYPES)
    kept |= {one.dtype for name, one in model.named_buffers() if name.endswith(".weight")}
    if kept:
        raise LmscoutError(
            f"{source}: its weights are quantized ({', '.join(sorted(map(_short, kept)))}), and "
            "lmscout computes with plain ones; dequantize the model with transformers and save it"
        )
    if quantized:
        for one in model.parameters():
            one.data = one.data.to(dtype)
        vars(model.config).pop("quantization_config", None)


def _describe_tie(model: Any) -> None:
    """Make the configuration, from which copies are built, say what transformers has loaded."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if weight is not None and getattr(model.config, "tie_word_embeddings", False):
        embedding = getattr(model.get_input_embeddings(), "weight", None)
        model.config.tie_word_embeddings = weight is embedding


def _tokenizer(folder: Path, source: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        tokens = tokenizer("a text", add_special_tokens=False)["input_ids"]
    except Exception as error:  # whatever a tokenizer's class raises
        there = any((folder / one).exists() for one in _TOKENIZER_FILES)
        why = f"no tokenizer that can be loaded ({first_line(error)})" if there else "no tokenizer"
        raise LmscoutError(
            f"{source}: has {why}; save the one that makes the model's tokens into the folder "
            "(tokenizer.save_pretrained)"
        ) from error
    if not tokens:  # some classes are made empty where files are missing
        raise LmscoutError(
            f"{source}: its tokenizer makes no tokens of text; save the model's tokenizer into "
            "the folder"
        )
    return tokenizer


@torch.inference_mode()
def _check_causal(model: PreTrainedModel, source: str) -> None:
    """Refuse a model whose logits depend on later tokens, whatever its class is called."""
    vocabulary = vocabulary_size(model)
    tokens = torch.arange(8, device=model.device).remainder(vocabulary).repeat(2, 1)
    tokens[1, -1] = (tokens[1, -1] + 1) % vocabulary
    try:
        one, other = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    except Exception as error:  # whatever the model's class raises for weights that do not fit it
        raise LmscoutError(
            f"{source}: its forward pass fails ({first_line(error)}); check that config.json "
            "belongs to the weights, or save the two together again"
        ) from error
    if (one - other).abs().max() > 1e-4 * one.abs().max():
        raise LmscoutError(
            f"{source}: is an encoder ({type(model).__name__}): its logits depend on tokens that "
            "come later; give a causal language model"
        )
