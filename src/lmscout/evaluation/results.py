"""What an evaluation of a model found, as data and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lmscout.evaluation.cost import Speed
from lmscout.evaluation.perplexity import Perplexity
from lmscout.evaluation.tasks import TaskScore
from lmscout.results import Result


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """What a model is worth, and what it costs.

    Attributes:
        model: its folder, or its name on the Hub.
        parameters: how many.
        bytes: of the parameters in memory.
        multiply_adds: of a token in the linear layers.
        dtype: of the weights.
        perplexities: one for each text and protocol.
        tasks: scores on tasks.
        speed: of a forward; None if it was not measured.
        seconds: of the evaluation.
    """

    model: str
    parameters: int
    bytes: int
    multiply_adds: int
    dtype: str
    perplexities: tuple[Perplexity, ...]
    tasks: tuple[TaskScore, ...]
    speed: Speed | None
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """One row per perplexity and task score."""
        found: list[dict[str, Any]] = [
            {"measure": "perplexity", **one.to_json()} for one in self.perplexities
        ]
        return found + [{"measure": "task", **one.to_json()} for one in self.tasks]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "multiply_adds": self.multiply_adds,
            "dtype": self.dtype,
            "perplexities": [one.to_json() for one in self.perplexities],
            "tasks": [one.to_json() for one in self.tasks],
            "speed": None if self.speed is None else asdict(self.speed),
            "seconds": self.seconds,
        }
