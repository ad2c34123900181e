"""Leaves for other tools, and their results: no other module of lmscout needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
