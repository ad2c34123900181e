"""Leaves for other tools, and their results: no other module of lmscout needs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscout.errors import LmscoutError
from lmscout.results import Result


@dataclass(frozen=True, repr=False)
class GgufFile(Result):
    """A GGUF file."""

    model: str  # the folder or name that was exported
    file: Path  # the file
    architecture: str  # of llama.cpp
    type: str  # of the weights, such as f16 or q4_k_m
    parameters: int  # of the model
    bytes: int  # of the file
    # "llama.cpp" if its log-probabilities were compared with transformers', "tensors" if, without
    # xllamacpp, only the tensors were read back
    checked: str
    # largest difference of the next token's log-probability, in nats; NaN if it was not computed
    difference: float

    def rows(self) -> list[dict[str, Any]]:
        """One row: the file."""
        return [self.to_json()]


def writer(to: str) -> Callable[..., GgufFile]:
    """The function that writes a model in a format, see `lmscout.export`.

    LmscoutError if the format is unknown, or a package that it needs is missing.
    """
    if to != "gguf":
        raise LmscoutError(f"to {to}: unknown format (expected gguf)")
    try:
        from lmscout.integrations.gguf import export_gguf
    except ImportError as error:
        raise LmscoutError(
            f"gguf needs a package ({error}): pip install 'lmscout[gguf]'"
        ) from error
    return export_gguf
