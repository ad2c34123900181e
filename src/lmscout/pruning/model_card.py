"""The README.md of a saved model: where it comes from, what was measured, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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

_UNIFORM = """
## Load it

It is a plain {model_type} model; whatever reads those reads this folder:

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
    """One model whose perplexity a run measured.

    Attributes:
        name: such as "dense", "uniform" or "found".
        parameters: of the whole model.
        perplexity: on the report text; None without one.
        shown: the name in the card's table.
    """

    name: str
    parameters: int
    perplexity: Perplexity | None
    shown: str = ""


@dataclass(frozen=True)
class CardFigures:
    """What a run measured, for the card and the record of a model that it saves.

    Attributes:
        pairs: architecture-accuracy pairs that were measured.
        models: whose perplexity was measured, the dense one first.
        saved: name of the one that is saved.
        origin: of the dense model.
        verdict: whether the saved model is better than uniform cuts, in sentences.
    """

    pairs: int
    models: tuple[MeasuredModel, ...]
    saved: str
    origin: Origin
    verdict: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As `lmscout.json` holds it."""
        measured = {one.name: one.perplexity for one in self.models if one.perplexity is not None}
        return {
            "pairs": self.pairs,
            "saved": self.saved,
            "perplexity": {
                name: {
                    "perplexity": one.value,
                    "tokens": one.tokens,
                    "text": _text_name(one),
                    "text_sha256": one.text_sha256,
                    "protocol": asdict(one.protocol),
                }
                for name, one in measured.items()
            },
        }


def model_card(
    record: Mapping[str, Any],
    plan: Plan,
    dense: Plan,
    model_type: str,
    figures: CardFigures | None = None,
) -> str:
    """Write the card.

    Args:
        record: what `lmscout.json` holds: shape, kept, parameters, dense_parameters, asked.
        plan: the plan that was cut.
        dense: the plan that keeps everything.
        model_type: of the dense model.
        figures: what was measured; None if it is not known.

    Returns:
        Markdown with the front matter that the Hub reads.
    """
    load = _ANY if record["shape"] == "any" else _UNIFORM
    rows = "".join(
        f"| {block} | {groups} of {all_groups} | {channels} of {all_channels} |\n"
        for block, (groups, all_groups, channels, all_channels) in enumerate(
            zip(plan.attention, dense.attention, plan.mlp, dense.mlp, strict=True)
        )
    )
    origin = None if figures is None else figures.origin
    numbers = {name: record[name] for name in ("kept", "parameters", "dense_parameters")}
    head = _HEAD.format(
        model_type=model_type,
        of="" if origin is None else f" from `{origin.name or origin.source}`",
        total=numbers["parameters"] / numbers["dense_parameters"],
        **numbers,
    )
    parts = [_front(origin), head, "" if figures is None else _measured(figures)]
    parts += [load.format(model_type=model_type), _PLAN, rows, _asked(record, figures), _CITATION]
    if {"objective", "features"} & set(record["asked"]):
        parts.append(_PROXIES)
    return "".join(parts)


def _front(origin: Origin | None) -> str:
    entries = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if origin is not None:
        named = {
            "base_model": origin.name,
            "license": origin.license,
            "license_name": origin.license_name,
            "license_link": origin.license_link,
        }
        entries |= {name: value for name, value in named.items() if value is not None}
    lines = [f"{name}: {value}\n" for name, value in entries.items()]
    return f"---\n{''.join(lines)}tags:\n- lmscout\n- pruned\n---\n"


def _measured(figures: CardFigures) -> str:
    """Perplexities as a table, with the protocol that all of them have."""
    known = [one.perplexity for one in figures.models if one.perplexity is not None]
    if not known:
        return ""
    rows = ""
    for one in figures.models:
        if one.perplexity is not None:
            name = one.shown or one.name.replace("_", ", ")
            name = f"**{name} (this model)**" if one.name == figures.saved else name
            rows += f"| {name} | {one.parameters:,} | {one.perplexity.value:.2f} |\n"
    verdict = "".join(f"{one}.\n\n" for one in figures.verdict)
    first = known[0]
    beginning = "no special token" if first.protocol.bos == "none" else "special tokens once"
    return (
        "\n## Perplexity\n\n| model | parameters | perplexity |\n|---|---:|---:|\n"
        f"{rows}\n{verdict}"
        f"Protocol `{first.protocol.name}`: windows of {first.protocol.window} tokens, "
        f"stride {first.protocol.stride}, {beginning}; {first.tokens:,} tokens scored of "
        f"`{_text_name(first)}`.\n"
    )


def _asked(record: Mapping[str, Any], figures: CardFigures | None) -> str:
    """What was asked for, and how many pairs were measured for it."""
    asked = record["asked"]
    if not asked:
        return ""
    measured = ""
    if figures is not None:
        pairs = figures.pairs
        verb = "pair was" if pairs == 1 else "pairs were"
        measured = f"{pairs:,} architecture-accuracy {verb} measured"
        limit = asked.get("pairs")
        measured += f" (at most {limit:,} were asked for).\n\n" if limit else ".\n\n"
    text = json.dumps(asked, indent=2, ensure_ascii=False)
    return f"\n## What was asked for\n\n{measured}```json\n{text}\n```\n"


def _text_name(found: Perplexity) -> str:
    """A text's address, or the last part of its path."""
    if found.source.startswith("hub:"):
        return found.source
    return found.source.replace("\\", "/").rsplit("/", 1)[-1]
