"""Save a pruned model with its card, load it again in a fresh process, and compare the two.

Of the JSON files of a saved folder only known entries stay: transformers writes every entry of the
dense model's files, and some of them name code or other files (`auto_map`, kernels, paths).  Rotary
embeddings are written a second time in the form of transformers 4.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lmscout.children import run_script
from lmscout.errors import LmscoutError, first_line, shown
from lmscout.evaluation import Origin, Perplexity, modeling_lmscout, parameter_count, plain_type
from lmscout.evaluation.checkpoint import CONFIG, check_checkpoint
from lmscout.evaluation.modeling_lmscout import PRUNED
from lmscout.evaluation.quiet import quiet
from lmscout.files import as_json, atomic_folder, check_folder
from lmscout.pruning import reload_saved
from lmscout.pruning.cutting import ShapeName, cut, round_weights
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of
from lmscout.pruning.plan import Plan
from lmscout.reading import read_json_object

TOLERANCE = 1e-4  # relative to the largest logit, or to 1 if that is larger
RECORD = "lmscout.json"
SCHEMA = 1  # of the record
_SAMPLE = "A sample of text, with numbers (1, 2, 3) and lines:\nsecond line."
_CODE_FILE = Path(modeling_lmscout.__file__).name
_GENERATION = "generation_config.json"
_TOKENIZER = "tokenizer_config.json"

_MODEL_ENTRIES = {
    *("model_type", "architectures", "dtype", "transformers_version"),
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

_Entries = dict[str, Any]


@dataclass(frozen=True)
class MeasuredModel:
    """One model of a run."""

    name: str  # such as "dense", "uniform" or "found"
    label: str  # in the card's table
    parameters: int  # of the whole model
    perplexity: Perplexity | None  # on the report text; None without one


@dataclass(frozen=True)
class CardFigures:
    """Measurements of a run, for the card and the record of a saved model."""

    pairs: int  # number of measured architecture-accuracy pairs
    models: tuple[MeasuredModel, ...]  # the dense one first
    saved: str  # name of the saved model
    origin: Origin  # of the dense model
    verdict: tuple[str, ...] = ()  # sentences that compare it with uniform models

    @property
    def perplexities(self) -> dict[str, Perplexity]:
        """Perplexities by name of the model, as far as measured."""
        return {one.name: one.perplexity for one in self.models if one.perplexity is not None}

    def to_json(self) -> dict[str, object]:
        """The measurements in `lmscout.json`."""
        return {
            "pairs": self.pairs,
            "saved": self.saved,
            "perplexity": {
                name: {**one.to_json(), "text": _text_name(one)}
                for name, one in self.perplexities.items()
            },
        }


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
    card = _card(record, plan, units.dense, plain_type(config), figures)
    with atomic_folder(folder, last=CONFIG, name=name) as draft:
        write(pruned, draft, tokenizer)
        (draft / RECORD).write_text(as_json(record), "utf-8")
        (draft / "README.md").write_text(card, "utf-8")
        _reload_and_compare(pruned, draft, tokenizer, trust_remote_code=shape != "uniform")


def write(
    pruned: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write what `cut` made, and its tokenizer, into a folder; LmscoutError if it is refused."""
    classes = next((own for own in PRUNED.values() if isinstance(pruned, own[-1])), ())
    names = (f"{_CODE_FILE.removesuffix('.py')}.{one.__name__}" for one in classes)
    auto_map = dict(zip(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), names, strict=False))
    if auto_map:  # of which AutoModel is not named by itself
        pruned.config.auto_map = auto_map
    with quiet():
        try:
            pruned.save_pretrained(folder)
        except ValueError as error:
            raise LmscoutError(f"the model cannot be saved: {first_line(error)}") from error
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    _clean_folder(folder, pruned, auto_map)


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


def _clean_folder(folder: Path, model: PreTrainedModel, auto_map: Mapping[str, str]) -> None:
    """Rewrite the JSON files of a folder that transformers has just written, and `_check_code`.

    `auto_map` names lmscout's own classes; it is empty for a plain model of its family.
    """
    config: Any = model.config
    known = {one.name for one in fields(config)} | _MODEL_ENTRIES
    known |= {*type(config).attribute_map.values()}
    defaults: Any = GenerationConfig
    generation = set(defaults().to_dict()) - _BUILDING_ENTRIES

    def model_entries(entries: _Entries) -> _Entries:
        kept = {name: value for name, value in entries.items() if name in known}
        kept |= {"auto_map": auto_map} if auto_map else {}
        return _with_older_rope(kept, plain=not auto_map)

    def generation_entries(entries: _Entries) -> _Entries:
        return {name: entries[name] for name in generation & entries.keys()}

    _rewrite(folder / CONFIG, model_entries)
    _rewrite(folder / _GENERATION, generation_entries)
    _rewrite(folder / _TOKENIZER, _tokenizer_entries)
    _check_code(folder)


def _check_code(folder: Path) -> None:
    """Raise LmscoutError if a folder holds code other than lmscout's own modelling file."""
    for path in sorted(folder.rglob("*.py")):
        own = path == folder / _CODE_FILE
        if not own or path.read_bytes() != Path(modeling_lmscout.__file__).read_bytes():
            raise LmscoutError(
                f"the model cannot be saved: {path.name} would be saved with it, and is not "
                "lmscout's; save the model and its tokenizer without it first"
            )


def _rewrite(file: Path, change: Callable[[_Entries], _Entries]) -> None:
    if file.is_file():
        entries = change(json.loads(file.read_text("utf-8")))
        text = json.dumps(entries, indent=2, ensure_ascii=False, sort_keys=True)
        file.write_text(text + "\n", "utf-8")


def _tokenizer_entries(entries: _Entries) -> _Entries:
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


def _with_older_rope(entries: _Entries, *, plain: bool) -> _Entries:
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


_HEAD = """
# A pruned {model_type} model

Made with [lmscout](https://pypi.org/project/lmscout/){of}. It keeps {kept:.2%} of the parameters
in attention and MLP, and has {parameters:,} of {dense_parameters:,} parameters in all
({total:.2%}).
"""

_ANY = """
## Load it

Blocks differ in size, so transformers needs the modelling file in this folder:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=False)
```

The tokenizer comes without code. With lmscout installed, `lmscout.load_model(FOLDER)`
loads both and runs no code of the folder; after `lmscout.register()` the Auto classes need no
`trust_remote_code`.
"""

_DECI = """
## Serve it

It is a model of the DeciLM family (nemotron-nas), which vLLM, SGLang and TensorRT-LLM load:
`vllm serve FOLDER --trust-remote-code`.
"""

_UNIFORM = """
## Load it

It is a plain {model_type} model; any program for these loads this folder:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```
"""

_PLAN = """
## What each block keeps

| block of the dense model | attention groups | MLP channels |
|---:|---:|---:|
"""

_CITATION = """
## Citation

Pruning by an accuracy predictor: [arXiv 2309.09507](https://arxiv.org/abs/2309.09507).
"""

_PROXIES = """
Zero-cost proxies: [arXiv 2410.04808](https://arxiv.org/abs/2410.04808).
"""


def _card(
    record: Mapping[str, Any],
    plan: Plan,
    dense: Plan,
    model_type: str,
    figures: CardFigures | None = None,
) -> str:
    """The card of a plan of the dense model: Markdown with the front matter that the Hub reads.

    Of the `record`, `lmscout.json`, it has shape, kept, parameters, dense_parameters, settings.
    """
    origin = None if figures is None else figures.origin
    settings = record["settings"]
    head = _HEAD.format(
        model_type=model_type,
        of="" if origin is None else f" from `{origin.name or origin.source}`",
        total=record["parameters"] / record["dense_parameters"],
        **{name: record[name] for name in ("kept", "parameters", "dense_parameters")},
    )
    forms = {"uniform": _UNIFORM, "deci": _DECI + _ANY}
    load = forms.get(record["shape"], _ANY).format(model_type=model_type)
    blocks = zip(plan.attention, dense.attention, plan.mlp, dense.mlp, strict=True)
    cells = "| {} | {} of {} | {} of {} |\n"
    rows = "".join(cells.format(number, *block) for number, block in enumerate(blocks))
    parts = [_front(origin), head, "" if figures is None else _measured(figures), load, _PLAN, rows]
    parts += [_settings_of(settings, figures), _CITATION]
    if {"objective", "features"} & set(settings):
        parts.append(_PROXIES)
    return "".join(parts)


def _front(origin: Origin | None) -> str:
    entries = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if origin is not None:
        terms = ("license", "license_name", "license_link")
        named = {"base_model": origin.name, **{name: getattr(origin, name) for name in terms}}
        entries |= {name: value for name, value in named.items() if value is not None}
    lines = [f"{name}: {value}\n" for name, value in entries.items()]
    return f"---\n{''.join(lines)}tags:\n- lmscout\n- pruned\n---\n"


def _measured(figures: CardFigures) -> str:
    """Perplexities as a table, with their common protocol."""
    known = figures.perplexities
    if not known:
        return ""
    rows = ""
    for one in figures.models:
        if one.name in known:
            label = f"**{one.label} (this model)**" if one.name == figures.saved else one.label
            rows += f"| {label} | {one.parameters:,} | {known[one.name].value:.2f} |\n"
    verdict = "".join(f"{one}.\n\n" for one in figures.verdict)
    first = next(iter(known.values()))
    return (
        "\n## Perplexity\n\n| model | parameters | perplexity |\n|---|---:|---:|\n"
        f"{rows}\n{verdict}"
        f"Protocol `{first.protocol.name}`: windows of {first.protocol.window} tokens, "
        f"stride {first.protocol.stride}, special tokens once; {first.tokens:,} tokens scored of "
        f"`{_text_name(first)}`.\n"
    )


def _settings_of(settings: Mapping[str, Any], figures: CardFigures | None) -> str:
    """The settings of the run, and the number of measured pairs."""
    if not settings:
        return ""
    measured = ""
    if figures is not None:
        verb = "pair was" if figures.pairs == 1 else "pairs were"
        limit = settings.get("pairs")
        most = f" (of at most {limit:,})" if limit else ""
        measured = f"{figures.pairs:,} architecture-accuracy {verb} measured{most}.\n\n"
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    return f"\n## Settings\n\n{measured}```json\n{text}\n```\n"


def _text_name(found: Perplexity) -> str:
    """A text's address, or the last part of its path."""
    if found.source.startswith("hub:"):
        return found.source
    return found.source.replace("\\", "/").rsplit("/", 1)[-1]
