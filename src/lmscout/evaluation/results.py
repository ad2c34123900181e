"""Result of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmscout.evaluation.cost import Speed
from lmscout.evaluation.perplexity import Perplexity
from lmscout.evaluation.tasks import TaskScore
from lmscout.results import Result


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """Quality and cost of a model.

    Attributes:
        model: its folder, or its name on the Hub.
        parameters: number of parameters.
        bytes: of the parameters in memory.
        multiply_adds: of a token in the linear layers.
        dtype: of the weights.
        perplexities: one per text and protocol.
        tasks: scores on tasks.
        speed: of a forward pass; None if it was not measured.
        seconds: duration of the evaluation.
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
        return [
            *({**one.to_json(), "measure": "perplexity"} for one in self.perplexities),
            *({**one.to_json(), "measure": "task"} for one in self.tasks),
        ]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            **super().to_json(),
            "perplexities": [one.to_json() for one in self.perplexities],
            "tasks": [one.to_json() for one in self.tasks],
        }
