"""Leaves for other tools, and their results: no other module of lmscout needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscout.results import Result


@dataclass(frozen=True, repr=False)
class GgufFile(Result):
    """A GGUF file.

    Attributes:
        model: the folder or name that was exported.
        file: the file.
        architecture: of llama.cpp.
        type: of the weights, such as f16 or q4_k_m.
        parameters: of the model.
        bytes: of the file.
        checked: "llama.cpp" if its log-probabilities were compared with transformers', "tensors"
            if, without xllamacpp, only the tensors were read back.
        difference: largest difference of the next token's log-probability, in nats; NaN if it was
            not computed.
    """

    model: str
    file: Path
    architecture: str
    type: str
    parameters: int
    bytes: int
    checked: str
    difference: float

    def rows(self) -> list[dict[str, Any]]:
        """One row: the file."""
        return [self.to_json()]
