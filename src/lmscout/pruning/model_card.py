"""The README.md of a saved model: its origin, its measurements, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmscout.evaluation import Origin, Perplexity
from lmscout.pruning.plan import Plan

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


def model_card(
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
    parts += [_settings(settings, figures), _CITATION]
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


def _settings(settings: Mapping[str, Any], figures: CardFigures | None) -> str:
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
