"""Where lmscout-tiny is: a small LLaMA trained on the built-in text, shipped with lmscout."""

from __future__ import annotations

from pathlib import Path

from lmscout.errors import LmscoutError

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
