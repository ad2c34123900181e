"""The model and the tokenizer that lmscout brings.

The shipped tokenizer: byte-level BPE of 4,096 pieces, learnt from the built-in text.

`training/tokenizer.py` makes it.

Where lmscout-tiny is: a small LLaMA trained on the built-in text, shipped with lmscout.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lmscout.builtin.corpus import END_OF_DOCUMENT, side_documents
from lmscout.errors import LmscoutError

PIECES = 4096  # END_OF_DOCUMENT is the first of them


@functools.cache
def load_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, which adds nothing to a text of itself.

    Any text comes back unchanged: its alphabet is the 256 bytes.  The literal
    `END_OF_DOCUMENT` in a text is the token that stands between documents.

    Raises:
        LmscoutError: this installation lacks it.
    """
    folder = Path(__file__).with_name("tiny")
    if not (folder / "tokenizer.json").is_file():
        raise LmscoutError(
            f"{folder}: the built-in tokenizer is not there; install lmscout again, from its wheel"
        )
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


@functools.cache
def encode(side: str) -> Tensor:
    """The tokens of a side of the built-in text, documents in the order of their names.

    They are those of `corpus_text(side)`: one token, `END_OF_DOCUMENT`, between documents.

    Args:
        side: "train", "validation" or "test".

    Returns:
        [tokens] int64; the tensor is kept, so clone it before writing into it.

    Raises:
        LmscoutError: the running Python lacks its sources, or the installation the tokenizer.
    """
    tokenizer = load_tokenizer()
    texts = [document.text for document in side_documents(side)]
    between = tokenizer.convert_tokens_to_ids(END_OF_DOCUMENT)
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    joined = [token for row in rows for token in (between, *row)][1:]
    return torch.tensor(joined, dtype=torch.int64)


TINY = "lmscout-tiny"


def tiny_folder() -> Path:
    """The folder of lmscout-tiny: weights, config, tokenizer, training record and card.

    `lmscout.evaluation.load_model(str(tiny_folder()))` loads it.

    Raises:
        LmscoutError: this installation lacks it.
    """
    folder = Path(__file__).with_name("tiny")
    if not (folder / "model.safetensors").is_file():
        raise LmscoutError(f"{folder}: {TINY} is not there; install lmscout again, from its wheel")
    return folder
