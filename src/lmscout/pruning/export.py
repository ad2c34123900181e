"""Save a pruned model, load it again in a fresh process, and compare the two."""

from __future__ import annotations

import copy
import json
import os
import signal
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmscout.children import run_script
from lmscout.errors import LmscoutError, first_line, shown
from lmscout.evaluation import parameter_count, plain_type
from lmscout.evaluation.checkpoint import check_checkpoint
from lmscout.evaluation.modeling_lmscout import PRUNED
from lmscout.evaluation.quiet import quiet
from lmscout.files import as_json, atomic_folder, check_folder
from lmscout.pruning import reload_saved
from lmscout.pruning.cutting import ShapeName, cut, round_weights
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of
from lmscout.pruning.folder_files import CONFIG, check_code, clean_folder
from lmscout.pruning.model_card import CardFigures, model_card
from lmscout.pruning.plan import Plan
from lmscout.reading import read_json_object

TOLERANCE = 1e-4  # relative to the largest logit, or to 1 if that is larger
RECORD = "lmscout.json"
SCHEMA = 1  # of the record
_SAMPLE = "A sample of text, with numbers (1, 2, 3) and lines:\nsecond line."


def save(
    model: PreTrainedModel,
    plan: Plan,
    folder: Path,
    *,
    shape: ShapeName,
    tokenizer: PreTrainedTokenizerBase | None = None,
    pruned: PreTrainedModel | None = None,
    dtype: torch.dtype | None = None,
    existing: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    figures: CardFigures | None = None,
) -> None:
    """Cut a plan out of a dense model and save it atomically.

    The draft of the folder is loaded in a fresh process that does not import lmscout, and
    compared: every weight exactly, logits to `TOLERANCE`, the tokenizer on a sample.  Only then it
    is renamed.  The only code in it is lmscout's own modelling file.  In a folder with other files
    `config.json` is moved last: without it the folder is no model.

    Args:
        model: the dense model, its units in final order.
        plan: how many units each block keeps.
        folder: of the saved model; must be empty but for `existing`.
        shape: "any", "uniform" for a folder that stock transformers loads, or "deci" for one
            that serving engines load.
        tokenizer: saved along, or None.
        pruned: the plan, cut before; None to cut it now.
        dtype: of the saved weights; the model's own if None.
        existing: names of files that may be in the folder; they stay.
        settings: of the run, for the card and `lmscout.json`; JSON data.
        figures: measurements and the origin of the dense model, likewise.

    Raises:
        LmscoutError: the folder is not empty or cannot be written, the plan cannot be cut in
            this shape, or the loaded model differs from the saved one.
    """
    name = f"output folder {folder}"
    if folder.exists() and not folder.is_dir():
        raise LmscoutError(f"{name} is a file: name another")
    check_folder(folder, name, make=False)
    if folder.is_dir() and {path.name for path in folder.iterdir()} - set(existing):
        raise LmscoutError(f"{name} is not empty: name another")
    if pruned is None:
        # A dense model may leave no room on its accelerator.
        pruned = cut(model, plan, shape=shape, dtype=dtype, device="cpu")
    round_weights(pruned, dtype or model.dtype)
    pruned = cast(Any, pruned).to("cpu")
    pruned.generation_config = copy.deepcopy(model.generation_config)
    units = shape_of(family_of(model.config).all_parts(model))
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "shape": shape,
        "plan": plan.as_dict(),
        "kept": units.kept_share(plan),
        "parameters": parameter_count(pruned),
        "dense_parameters": parameter_count(model),
        "settings": dict(settings or {}),
    }
    if figures is not None:
        record |= {
            "base_model": figures.origin.name or figures.origin.source,
            "license": figures.origin.license,
            "measured": figures.to_json(),
        }
    config: Any = model.config
    card = model_card(record, plan, units.dense, plain_type(config), figures)
    with atomic_folder(folder, last=CONFIG, name=name) as draft:
        write(pruned, draft, tokenizer)
        (draft / RECORD).write_text(as_json(record), "utf-8")
        (draft / "README.md").write_text(card, "utf-8")
        _reload_and_compare(pruned, draft, tokenizer, trust_remote_code=shape != "uniform")


def write(
    pruned: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write what `cut` made, and its tokenizer, into a folder; LmscoutError if it is refused."""
    for config_class, body_class, causal_class in PRUNED.values():
        if isinstance(pruned, causal_class):
            pruned.config.auto_map = {
                "AutoConfig": f"modeling_lmscout.{config_class.__name__}",
                "AutoModel": f"modeling_lmscout.{body_class.__name__}",  # not named by itself
                "AutoModelForCausalLM": f"modeling_lmscout.{causal_class.__name__}",
            }
    with quiet():
        try:
            pruned.save_pretrained(folder)
        except ValueError as error:
            raise LmscoutError(f"the model cannot be saved: {first_line(error)}") from error
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    clean_folder(folder, pruned)


def check_generation(model: PreTrainedModel) -> None:
    """Raise LmscoutError early if transformers does not save the generation configuration."""
    settings: Any = model.generation_config
    try:
        if settings is not None:
            settings.validate(strict=True)
    except ValueError as error:
        raise LmscoutError(
            f"the model cannot be saved: its generation_config.json is refused by transformers "
            f"({first_line(error)}); correct it, or remove it"
        ) from error


def _reload_and_compare(
    pruned: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    trust_remote_code: bool,
) -> None:
    """Raise unless a fresh process loads the model in memory."""
    check_code(folder)
    expected = reload_saved.check_logits(pruned)
    if not expected.isfinite().all():
        raise LmscoutError("the pruned model's logits are not finite: not saved")
    request = {
        "threads": torch.get_num_threads(),
        "trust_remote_code": trust_remote_code,
        "text": None if tokenizer is None else _SAMPLE,
    }
    with tempfile.TemporaryDirectory() as exchange_name:
        exchange = Path(exchange_name)
        (exchange / "request.json").write_text(json.dumps(request), "utf-8")
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(exchange / "modules"),  # not among the user's own
            "TRANSFORMERS_VERBOSITY": "error",
        }
        arguments = [str(folder.resolve()), exchange_name]
        process = run_script(reload_saved.__file__, arguments, environment)
        if process.returncode < 0:
            raise LmscoutError(
                f"the process that loads the saved model again was ended by "
                f"{signal.Signals(-process.returncode).name}, perhaps because memory ran out; "
                "finished work is kept: run the same command again with more free memory"
            )
        if process.returncode:
            lines = process.stderr.strip().splitlines() or ["no message"]
            raise LmscoutError(f"the saved model cannot be loaded again: {lines[-1]}")
        answer = json.loads((exchange / "answer.json").read_text("utf-8"))
        logits = load_file(exchange / "logits.safetensors")["logits"]
    weights = reload_saved.weight_digests(pruned)
    different = sorted(dict(weights.items() ^ answer["weights"].items()))
    if different:
        raise LmscoutError(f"{different[0]} is not the same after saving and loading: not saved")
    # With equal weights only the order of sums differs, by the precision's steps.
    tolerance = max(TOLERANCE, 8 * torch.finfo(pruned.dtype).eps)
    tolerance *= max(1.0, expected.abs().max().item())
    difference = (expected - logits).abs().max().item()
    if not difference <= tolerance:
        raise LmscoutError(
            f"logits differ by {difference:.3g} after saving and loading (at most {tolerance:.3g} "
            "is due to rounding): not saved"
        )
    if tokenizer is not None and answer["token_ids"] != tokenizer(_SAMPLE)["input_ids"]:
        raise LmscoutError(
            "the tokenizer splits text differently after saving and loading: not saved"
        )


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a complete model: its configuration is written last."""
    try:
        return (folder / CONFIG).exists() and bool(check_checkpoint(folder))
    except LmscoutError:
        return False


def check_settings(folder: Path, shape: str, settings: Mapping[str, Any]) -> None:
    """Raise LmscoutError for a finished model of other settings; its record may hold more."""
    record = _read(folder, RECORD)
    saved = record.get("settings")
    found = {"shape": record.get("shape"), **(saved if isinstance(saved, dict) else {})}
    _compare(folder, found, {"shape": shape, **settings})


def check_plan(folder: Path, plan: Plan, dtype: torch.dtype) -> None:
    """Raise LmscoutError for a finished model of another plan, or with weights of another dtype."""
    found = {**_read(folder, RECORD), "dtype": _read(folder, CONFIG).get("dtype")}
    saved = str(dtype).removeprefix("torch.")
    _compare(folder, found, {"plan": plan.as_dict(), "dtype": saved})


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json_object(folder / name, lenient=True)
    except LmscoutError as error:
        raise LmscoutError(
            f"output folder {folder} holds a model whose {name} cannot be read: name another"
        ) from error


def _compare(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            both = "" if key == "plan" else f" ({shown(found.get(key))}, in this run {value})"
            raise LmscoutError(
                f"output folder {folder} holds a finished model with another {key}{both}: name "
                "another folder"
            )
