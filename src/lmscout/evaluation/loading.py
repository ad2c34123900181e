"""A causal language model and its tokenizer from a folder or the Hub, or one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
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

from lmscout.errors import LmscoutError
from lmscout.evaluation.checkpoint import check_checkpoint
from lmscout.evaluation.cost import vocabulary_size
from lmscout.evaluation.hub import fetch_model
from lmscout.evaluation.quiet import first_line, quiet

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class LoadedModel:
    """A model and what belongs to it.

    Attributes:
        model: in eval mode.
        tokenizer: the model's own.
        source: the folder or Hub name as it was given.
        saved_dtype: of the weights on disk, as its configuration says; None where it does not.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    saved_dtype: torch.dtype | None = None


def load_model(
    source: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load a causal language model with its tokenizer.

    Nothing is unpickled, and no code that comes with a model is run.

    Args:
        source: a folder that `save_pretrained` wrote, or a name on the Hub.
        dtype: of the weights in memory, whatever it is on disk; if None, float32 on a processor,
            which is slow at anything else, and as on disk elsewhere.
        device: as PyTorch names it.

    Returns:
        The model in eval mode, and its tokenizer.

    Raises:
        LmscoutError: there is no such model, its folder is not in order, it is not a causal
            language model, or the device is not there.
    """
    target = usable_device(str(device))
    folder = _folder(source)
    check_checkpoint(folder)
    with quiet():
        config = _causal_config(folder, source)
        saved_dtype = _dtype(config)  # before loading overwrites it
        model = _weights(folder, source, config, dtype or _in_memory(saved_dtype, target))
        tokenizer = _tokenizer(folder, source)
        _move(model, target, source)
        _check_causal(model, source)
    return LoadedModel(model, tokenizer, source, saved_dtype)


def load_config(source: str) -> PreTrainedConfig:
    """The configuration of a causal language model; its weights need not be there.

    Args:
        source: a folder that holds a config.json, or a name on the Hub.

    Raises:
        LmscoutError: there is none, or it is not of a causal language model.
    """
    folder = _folder(source, weights=False)
    if not (folder / "config.json").is_file():
        raise LmscoutError(
            f"{source}: holds no config.json: give a model's folder, or a name on the Hub"
        )
    with quiet():
        return _causal_config(folder, source)


def unfilled_model(
    make: Callable[[], PreTrainedModel], device: torch.device | str
) -> PreTrainedModel:
    """A model whose weights are there, tied as they should be, and hold nothing yet.

    Args:
        make: makes it, at random as it thinks.
        device: where its weights are; "meta" for sizes alone.
    """
    with torch.device(device), no_init_weights():
        model = make()
    model.tie_weights()  # left out with the random start
    return model


def devices_of(names: str) -> tuple[torch.device, ...]:
    """Read one or several devices, with commas between, each of which can be used.

    Raises:
        LmscoutError: one cannot, or is named twice.
    """
    devices = tuple(usable_device(name.strip()) for name in names.split(","))
    if len(set(devices)) < len(devices):
        raise LmscoutError(f"--device {names}: names a device twice; give each once")
    return devices


def usable_device(name: str) -> torch.device:
    """A device by PyTorch's name, with its number where its kind has several.

    Raises:
        LmscoutError: it is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type != "cpu" and device.index is None:
            device = torch.device(device.type, torch.accelerator.current_device_index())
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        kind = torch.accelerator.current_accelerator() if there else None
        known = ", ".join(["cpu", *(f"{kind}:{number}" for number in range(there))])
        raise LmscoutError(
            f"device {name!r} cannot be used ({first_line(error)}): there is {known}"
        ) from None
    return device


def memory_dtype(config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """That `load_model` gives weights on a device, unless it is told another."""
    return _in_memory(_dtype(config), device)


def _in_memory(saved: torch.dtype | None, device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" or saved is None else saved


def _move(model: nn.Module, device: torch.device, source: str) -> None:
    try:
        model.to(device)
    except RuntimeError as error:
        raise LmscoutError(f"{source}: does not fit on {device} ({first_line(error)})") from None


def _folder(source: str, *, weights: bool = True) -> Path:
    """A folder as it is given, or a model of the Hub, fetched."""
    folder = Path(source).expanduser()
    if not folder.exists() and _HUB_NAME.fullmatch(source):
        folder = fetch_model(source, weights=weights)
    return folder


def _causal_config(folder: Path, source: str) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # each configuration class checks itself, with errors of its own
        raise LmscoutError(
            f"{source}: transformers refuses its config.json, or would have to run code that "
            f"comes with the model ({first_line(error)})"
        ) from error
    _check_declared_causal(config, source)
    return config


def _dtype(config: PreTrainedConfig) -> torch.dtype | None:
    named = config.dtype
    found = getattr(torch, named, None) if isinstance(named, str) else named
    return found if isinstance(found, torch.dtype) else None


def _check_declared_causal(config: PreTrainedConfig, source: str) -> None:
    """Refuse, before weights are read, what by its configuration is no causal language model."""
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    classes = known if isinstance(known, tuple) else (known,) if known else ()
    declared = list(config.architectures or [])
    # An encoder's type can have a causal class too (BertLMHeadModel), so what counts is which
    # class wrote the folder.
    foreign = declared and not {one.__name__ for one in classes} & set(declared)
    if not classes or foreign or config.is_encoder_decoder:
        what = ", ".join(declared) or f"a model of type {config.model_type!r}"
        raise LmscoutError(
            f"{source}: is {what}, not a causal language model; give one that predicts the next "
            "token, such as LlamaForCausalLM or GPT2LMHeadModel"
        )


def _weights(
    folder: Path, source: str, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
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
        raise LmscoutError(
            f"{source}: its weights cannot be loaded as config.json describes them "
            f"({first_line(error)})"
        ) from error
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise LmscoutError(
            f"{source}: its weights do not fit config.json: {name} is {list(found)} in the file "
            f"and {list(expected)} by the configuration; save the two together again"
        )
    missing = sorted(report["missing_keys"])
    if missing:  # transformers has drawn them at random
        raise LmscoutError(
            f"{source}: lacks {len(missing)} of the weights that config.json describes, "
            f"{missing[0]} first; save the whole model again"
        )
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def _tokenizer(folder: Path, source: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # as above
        raise LmscoutError(
            f"{source}: has no tokenizer that can be loaded ({first_line(error)}); save the "
            "model's tokenizer into the folder"
        ) from error
    # Where files are missing, some tokenizer classes are made empty instead of refused.
    if not tokenizer("a text", add_special_tokens=False)["input_ids"]:
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
    one, other = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    if (one - other).abs().max() > 1e-4 * one.abs().max():
        raise LmscoutError(
            f"{source}: is an encoder ({type(model).__name__}): its logits depend on tokens that "
            "come later; give a causal language model"
        )
