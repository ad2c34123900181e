"""The built-in text as tokens in a file, for training under another Python.

    python training/corpus_tokens.py tokens.safetensors

Which text a Python carries depends on its version.  lmscout-tiny is of the text that its record
names; where its training runs under another Python, that text's tokens are taken along.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SIDES = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus:
    """The tokens of each side, and what they were made of: Python's version, digests of text."""

    sides: dict[str, Tensor]
    made_of: dict[str, str]


def read_corpus(file: Path | None) -> Corpus:
    """The tokens of a file, or of the running Python."""
    if file is None:
        from lmscout.builtin import corpus_digest, encode

        digests = {f"{side}_sha256": corpus_digest(side) for side in SIDES}
        made_of = {"python": platform.python_version(), **digests}
        return Corpus({side: encode(side) for side in SIDES}, made_of)
    with safe_open(file, framework="pt") as stored:
        return Corpus({side: stored.get_tensor(side).long() for side in SIDES}, stored.metadata())


def write_corpus(corpus: Corpus, file: Path) -> None:
    """Write the tokens in two bytes each."""
    small = {side: tokens.to(torch.int16) for side, tokens in corpus.sides.items()}
    save_file(small, file, metadata=corpus.made_of)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    write_corpus(read_corpus(None), parser.parse_args().file)
