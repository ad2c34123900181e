"""Make the built-in tokenizer: byte-level BPE of 4,096 pieces, from the train side of the text.

    python training/tokenizer.py [--out FOLDER]

Same text, same tokenizer: under the Python that `training.json` beside lmscout-tiny names, this
writes the shipped files again, byte for byte.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lmscout.builtin import PIECES
from lmscout.builtin.corpus import END_OF_DOCUMENT, side_documents

SHIPPED = Path(__file__).parents[1] / "src" / "lmscout" / "builtin" / "tiny"


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where the two files go")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train([document.text for document in side_documents("train")])
    tokenizer.save_pretrained(out)
    print(f"{len(tokenizer)} pieces: {out}")


def train(texts: list[str]) -> PreTrainedTokenizerFast:
    """Learn the pieces; each document is a text of its own, so that no piece spans two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_DOCUMENT, eos_token=END_OF_DOCUMENT
    )


if __name__ == "__main__":
    main()
