"""The tokens on which a benchmark's architectures are trained and judged."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmscout.errors import LmscoutError, brief
from lmscout.memory import require_memory
from lmscout.reading import check_safetensors_header, read_text

_WHOLE = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")  # in a file of tokens

HELD_OUT = 20  # of a user's text, the last twentieth validates


@dataclass(frozen=True, eq=False)
class TokenData:
    """Tokens to train on and tokens to judge by.

    Attributes:
        train: ``[n]`` int64.
        validation: ``[m]`` int64.
        made_of: where they come from, such as the digests of the texts.
    """

    train: Tensor
    validation: Tensor
    made_of: dict[str, str]

    def describe(self) -> dict[str, object]:
        """What a benchmark records of them: counts, SHA-256 of the tokens, where from."""
        digest = hashlib.sha256()
        for tokens in (self.train, self.validation):
            digest.update(f"{len(tokens)}\0".encode() + tokens.numpy().astype("<i8").tobytes())
        return {
            "train_tokens": len(self.train),
            "validation_tokens": len(self.validation),
            "tokens_sha256": digest.hexdigest(),
            "made_of": dict(sorted(self.made_of.items())),
        }


def builtin_tokens() -> TokenData:
    """The built-in text of the running Python, by the built-in tokenizer."""
    from lmscout.builtin import corpus_digest, encode

    made_of = {"python": platform.python_version()}
    for side in ("train", "validation"):
        made_of[f"{side}_sha256"] = corpus_digest(side)
    return TokenData(encode("train"), encode("validation"), made_of)


def stored_tokens(file: Path) -> TokenData:
    """Tokens of a safetensors file with the integer vectors ``train`` and ``validation``.

    Raises:
        LmscoutError: it cannot be read, lacks one of them, or holds something else than tokens.
    """
    check_safetensors_header(file)
    try:
        with safe_open(file, framework="pt") as stored:
            made_of = dict(stored.metadata() or {})
            for side in ("train", "validation"):
                _check_kind(stored.get_slice(side), f"{file}: {side}")
            sides = [stored.get_tensor(side).long() for side in ("train", "validation")]
    except (OSError, SafetensorError) as error:
        raise LmscoutError(
            f"{file}: is no safetensors file with the tensors train and validation "
            f"({' '.join(str(error)[:200].split())})"
        ) from None
    for side, tokens in zip(("train", "validation"), sides, strict=True):
        if len(tokens) and (least := int(tokens.min())) < 0:
            raise LmscoutError(
                f"{file}: {side} holds a token that is none (got {least}, expected 0 or more); "
                "write the token ids of a tokenizer"
            )
    of_other_sides = {key for key in made_of if key.startswith("test")}
    kept = {key: value for key, value in made_of.items() if key not in of_other_sides}
    return TokenData(sides[0], sides[1], kept)


def _check_kind(stored: Any, what: str) -> None:
    """Refuse a tensor that is no vector of whole numbers, before it is read."""
    shape, dtype = stored.get_shape(), str(stored.get_dtype())
    if len(shape) != 1 or dtype not in _WHOLE:
        raise LmscoutError(
            f"{what}: must be a vector of whole numbers (got {dtype} {brief(list(shape))}, "
            f"expected one of {', '.join(_WHOLE)})"
        )
    require_memory(what, 8 * int(shape[0]), "give fewer tokens")


def text_tokens(files: Sequence[Path]) -> TokenData:
    """Text files by the built-in tokenizer; the last twentieth of each one validates.

    Raises:
        LmscoutError: a file cannot be read, or is not UTF-8 text.
    """
    from lmscout.builtin import load_tokenizer

    tokenizer = load_tokenizer()
    train, validation, made_of = [], [], {}
    for file in files:
        text = read_text(file)
        tokens = torch.tensor(
            tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64
        )
        border = len(tokens) - len(tokens) // HELD_OUT
        train.append(tokens[:border])
        validation.append(tokens[border:])
        made_of[file.name] = hashlib.sha256(text.encode()).hexdigest()
    return TokenData(torch.cat(train), torch.cat(validation), made_of)
