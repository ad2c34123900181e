"""Measure a trained lmscout-tiny and put it into the package, with its record and its card.

    python training/ship.py runs/tiny [OTHER ...]

Of several runs, the one with the lowest validation loss is shipped, and its record names the
others.  Runs under the Python whose text the model was trained on.  The figures are those of
lmscout's own protocol, of the weights as shipped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from lmscout.builtin import corpus_digest, corpus_text
from lmscout.evaluation import LoadedModel, Text, load_model, perplexity

SHIPPED = Path(__file__).parents[1] / "src" / "lmscout" / "builtin" / "tiny"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")  # training/tokenizer.py wrote them
PROTOCOL = "llm-pruner"
SLICE = 8192  # tokens of the validation side, for a check that takes a second
LARGEST = 8 * 10**6  # bytes of all files


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="what training/tiny.py wrote")
    folders = parser.parse_args().folders
    records = {one: json.loads((one / "training.json").read_text()) for one in folders}
    folder = min(folders, key=lambda one: records[one]["chosen"]["validation_loss"])
    record = records.pop(folder)
    record["compared"] = [
        {"settings": one["settings"], "steps": one["steps"], "chosen": one["chosen"]}
        for one in records.values()
    ]
    for side in ("train", "validation", "test"):
        if record["text"][f"{side}_sha256"] != corpus_digest(side):
            sys.exit(f"{folder}: is of the text of Python {record['text']['python']}; run that one")
    with tempfile.TemporaryDirectory(dir=SHIPPED.parent) as name:
        part = Path(name)
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained(part)
        for file in TOKENIZER:
            shutil.copy(SHIPPED / file, part)
        record["measured"] = measure(load_model(str(part)))
        (part / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        (part / "README.md").write_text(card(record))
        size = sum(file.stat().st_size for file in part.iterdir())
        if size > LARGEST:
            sys.exit(f"{size:,} bytes are more than {LARGEST:,}; train a smaller model")
        for file in part.iterdir():
            file.chmod(0o644)
            shutil.move(file, SHIPPED / file.name)
    print(json.dumps(record["measured"], indent=1))


def measure(loaded: LoadedModel) -> dict[str, Any]:
    """Loss and perplexity on both held-out sides, and on the beginning of one."""
    found: dict[str, Any] = {"protocol": PROTOCOL}
    for name, side, limit in (
        ("validation", "validation", None),
        ("test", "test", None),
        ("slice", "validation", SLICE),
    ):
        text = Text(f"built-in text, {side}", corpus_text(side), corpus_digest(side))
        one = perplexity(loaded.model, loaded.tokenizer, text, PROTOCOL, limit_tokens=limit)
        found[name] = {"tokens": one.tokens, "nll": one.nll, "perplexity": one.value}
    return found | {"slice_tokens": SLICE}


def card(record: dict[str, Any]) -> str:
    """The model's README.md."""
    settings, text, measured = record["settings"], record["text"], record["measured"]
    chosen, runs = record["chosen"], 1 + len(record["compared"])
    among = f", of {runs} runs that differ in their recipe (`compared`)" if runs > 1 else ""
    shared = f", which {runs} runs shared" if runs > 1 else ""
    text_of_card = f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [python, llama, lmscout]
---
# lmscout-tiny

A LLaMA of {record["parameters"]:,} parameters that comes with lmscout, so that pruning can be
tried on a model that has really been trained, without a download. It continues Python source and
its documentation, badly; it is a thing to measure on, not to write programs with.

{settings["blocks"]} blocks, width {settings["width"]}, {settings["heads"]} heads, MLP width
{settings["inner"]}, embeddings tied, {settings["vocabulary"]:,} pieces of byte-level BPE, at most
{settings["window"]} tokens. float16 on disk.

## Text

lmscout's built-in text, as Python {text["python"]} carries it: the topics of its language
reference and the source of its standard library. {text["train_tokens"]:,} tokens to train on,
{text["validation_tokens"]:,} to choose on, {text["test_tokens"]:,} to report on; which side a
document is on is a hash of its name. The text is © the Python Software Foundation and other
authors, under the PSF licence; none of it is shipped.

## Figures

Windows of 128 tokens that do not overlap, lmscout's protocol `{PROTOCOL}`:

| side | loss, nats a token | perplexity |
|---|---|---|
| validation | {measured["validation"]["nll"]:.4f} | {measured["validation"]["perplexity"]:.2f} |
| test | {measured["test"]["nll"]:.4f} | {measured["test"]["perplexity"]:.2f} |

The weights are those with the lowest of {len(record["history"])} validation losses (step
{chosen["step"]:,} of {record["steps"]:,}){among}, so the validation figure is a little too good.
Test was read once, after that. Under another version of Python both texts differ a little, and so
do the figures.

## Training

AdamW, {record["steps"]:,} steps of {settings["batch"]} windows of {settings["window"]} tokens
({settings["epochs"]:g} passes over the train side) in {record["seconds"]:.0f} s on one
{record["machine"]}{shared}, float32 with products in {record["products"]}. All settings, versions
and the whole curve are in `training.json`. To make it again:

```sh
python training/tiny.py runs/tiny --device cuda
python training/ship.py runs/tiny
```

On another machine the weights differ in their last bits, and after thousands of steps visibly.
"""
    return "\n\n".join(map(_wrapped, text_of_card.split("\n\n")))


def _wrapped(block: str) -> str:
    """A paragraph in lines of equal length; tables, code and headings as they are."""
    if block[0] in "-|`#":
        return block
    ending = "\n" if block.endswith("\n") else ""
    return textwrap.fill(block, 98, break_long_words=False, break_on_hyphens=False) + ending


if __name__ == "__main__":
    main()
