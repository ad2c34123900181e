"""The README.md of a saved model: what was kept, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lmscout.pruning.subnetworks.plan import Plan

_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- lmscout
- pruned
---

# A pruned {model_type} model

[lmscout](https://arxiv.org/abs/2309.09507) cut this model out of a dense one. It keeps
{kept:.2%} of the parameters in attention and MLP, and has {parameters:,} of {dense_parameters:,}
parameters in all.

## Load it
"""

_ANY = """
Blocks differ in size, so transformers needs the modelling file in this folder:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
```

Where lmscout is installed, `import lmscout` makes `trust_remote_code` unnecessary.
"""

_UNIFORM = """
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


def model_card(record: Mapping[str, Any], plan: Plan, dense: Plan, model_type: str) -> str:
    """Write the card.

    Args:
        record: what `lmscout.json` holds: shape, kept, parameters, dense_parameters, note.
        plan: the plan that was cut.
        dense: the plan that keeps everything.
        model_type: of the dense model.

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
    note = ""
    if record["note"]:
        text = json.dumps(record["note"], indent=2, ensure_ascii=False)
        note = f"\n## Notes\n\n```json\n{text}\n```\n"
    numbers = {name: record[name] for name in ("kept", "parameters", "dense_parameters")}
    head = _HEAD.format(model_type=model_type, **numbers)
    return head + load.format(model_type=model_type) + _PLAN + rows + note
