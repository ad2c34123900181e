"""The text, the tokenizer and the small model that lmscout brings.

lmscout-tiny is a small LLaMA trained on the built-in text.  The tokenizer is a byte-level BPE of
4,096 pieces, trained on it by `training/tokenizer.py`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lmscout.builtin.corpus import (
    END_OF_DOCUMENT,
    SIDES,
    Document,
    corpus_digest,
    corpus_text,
    documents,
    side_documents,
    side_of,
)
from lmscout.errors import LmscoutError

__all__ = [
    "END_OF_DOCUMENT",
    "SIDES",
    "Document",
    "corpus_digest",
    "corpus_text",
    "documents",
    "encode",
    "load_tokenizer",
    "side_of",
    "tiny_folder",
]

PIECES = 4096  # END_OF_DOCUMENT is the first of them
TINY = "lmscout-tiny"


def _folder_with(file: str, name: str) -> Path:
    folder = Path(__file__).with_name("tiny")
    if not (folder / file).is_file():
        raise LmscoutError(f"{folder}: {name} is not there; install lmscout again, from its wheel")
    return folder


def tiny_folder() -> Path:
    """The folder of lmscout-tiny: weights, config, tokenizer, training record and card."""
    return _folder_with("model.safetensors", TINY)


@functools.cache
def load_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, which adds no tokens of its own to a text; LmscoutError if it is missing.

    Any text comes back unchanged: its alphabet is the 256 bytes.  The literal
    `END_OF_DOCUMENT` in a text is the token between documents.
    """
    folder = _folder_with("tokenizer.json", "the built-in tokenizer")
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


@functools.cache
def encode(side: str) -> Tensor:
    """The tokens of `corpus_text(side)`: [tokens] int64, to be cloned before it is written into.

    LmscoutError if the running Python lacks its sources, or the installation the tokenizer.
    """
    tokenizer = load_tokenizer()
    texts = [document.text for document in side_documents(side)]
    separator = tokenizer.convert_tokens_to_ids(END_OF_DOCUMENT)
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    joined = [token for row in rows for token in (separator, *row)][1:]
    return torch.tensor(joined, dtype=torch.int64)
