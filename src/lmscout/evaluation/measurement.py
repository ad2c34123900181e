"""Evaluation of a model: all perplexities, tasks and costs in one result."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lmscout.errors import LmscoutError, check_whole
from lmscout.evaluation.checkpoint import model_fingerprint
from lmscout.evaluation.cost import (
    median_seconds,
    multiply_adds,
    parameter_bytes,
    parameter_count,
    vocabulary_size,
)
from lmscout.evaluation.loading import LoadedModel, dtype_named, load_model
from lmscout.evaluation.perplexity import Perplexity, checked_tokens, longest_window, protocol_of
from lmscout.evaluation.perplexity import perplexity as text_perplexity
from lmscout.evaluation.tasks import TaskScore, check_tasks, questions_sha256, score_tasks
from lmscout.evaluation.text import read_text
from lmscout.progress import Progress
from lmscout.results import Result
from lmscout.runs import kept_result

_SPEED = 8, 128  # sequences per forward pass, tokens per sequence
_PROMPT = 512  # tokens assumed for a prompt of a task
_STATUS = Path("/proc/self/status")  # of Linux
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Speed:
    """Duration of a forward pass."""

    seconds: float  # median over the repeats
    tokens_per_second: float  # batch * length / seconds
    batch: int  # sequences per forward pass
    length: int  # tokens per sequence
    repeats: int  # number of timed forward passes
    # the most memory held meanwhile, weights included: allocated by PyTorch on CUDA, held by the
    # process on a CPU; None if the system does not say
    peak_bytes: int | None = None


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """Quality and cost of a model."""

    model: str  # its folder, or its name on the Hub
    parameters: int  # number of parameters
    bytes: int  # of the parameters in memory
    multiply_adds: int  # of a token in the linear layers
    dtype: str  # of the weights
    perplexities: tuple[Perplexity, ...]  # one per text and protocol
    tasks: tuple[TaskScore, ...]  # scores on tasks
    speed: Speed | None  # of a forward pass; None if it was not measured
    seconds: float  # duration of the evaluation

    def rows(self) -> list[dict[str, Any]]:
        """One row per perplexity and task score; without either, that of the speed."""
        found = [
            *({**one.to_json(), "measure": "perplexity"} for one in self.perplexities),
            *({**one.to_json(), "measure": "task"} for one in self.tasks),
        ]
        if not found and self.speed:
            found = [{**asdict(self.speed), "measure": "speed"}]
        return found

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            **super().to_json(),
            "perplexities": [one.to_json() for one in self.perplexities],
            "tasks": [one.to_json() for one in self.tasks],
        }


def kept_evaluation(
    model: str | LoadedModel,
    *,
    perplexity: Sequence[str],
    tasks: Sequence[str],
    protocol: Sequence[str],
    limit_tokens: int | None,
    batch_tokens: int,
    task_data: Path | None,
    shots: int | None,
    limit: int | None,
    speed: bool,
    dtype: str,
    device: str,
    out: Path | None,
    progress: Progress | None,
) -> Evaluation:
    """Measure a model, or load the result of a finished run; see `lmscout.evaluate`.

    Every input is checked before the first measurement.
    """
    check_whole("batch_tokens", batch_tokens, 1)
    for name, given in (("limit_tokens", limit_tokens), ("limit", limit)):
        check_whole(name, 1 if given is None else given, 1)
    check_whole("shots", shots or 0, 0)
    if not (perplexity or tasks or speed):
        raise LmscoutError("nothing to measure: give perplexity texts, tasks, or speed")
    if tasks:
        check_tasks(tasks, task_data)
    protocols = [protocol_of(one) for one in protocol] if perplexity else []
    texts = [read_text(source) for source in perplexity]
    # The questions and the model's whole folder are read for a run that is kept only.
    local = None if task_data is None or not tasks or out is None else task_data
    settings = {
        "model": model if isinstance(model, str) else model.source,
        "model_fingerprint": None if out is None else model_fingerprint(model),
        "perplexity": perplexity,
        "text_sha256": [text.sha256 for text in texts],
        "protocol": [one.name for one in protocols],
        "tasks": tasks,
        "task_data": None if task_data is None else str(task_data),
        "task_data_sha256": None if local is None else questions_sha256(local, tasks),
        "dtype": dtype,
        "device": device,
        "limit_tokens": limit_tokens,
        "batch_tokens": batch_tokens,
        "shots": shots,
        "limit": limit,
        "speed": speed,
    }

    def measure() -> Evaluation:
        loaded = model
        if isinstance(loaded, str):
            loaded = load_model(loaded, dtype_named(dtype), device)
        start = time.perf_counter()
        measured = list(product(texts, protocols))
        for text, one in measured:
            checked_tokens(loaded.model, loaded.tokenizer, text, one, limit_tokens)
        # First, since it takes seconds: an error here costs no other measurement.
        timed = measure_speed(loaded.model, *_SPEED) if speed else None
        perplexities = tuple(
            text_perplexity(
                *(loaded.model, loaded.tokenizer, text, one),
                batch_tokens=batch_tokens,
                limit_tokens=limit_tokens,
                progress=progress
                and partial(progress, f"{Path(text.source).name or text.source}, {one.name}"),
            )
            for text, one in measured
        )
        scores: tuple[TaskScore, ...] = ()
        if tasks:
            scores = score_tasks(
                loaded,
                tasks,
                shots=shots,
                limit=limit,
                batch=max(1, batch_tokens // _PROMPT),
                data=task_data,
                progress=progress and partial(progress, "tasks"),
            )
        return Evaluation(
            model=loaded.source,
            parameters=parameter_count(loaded.model),
            bytes=parameter_bytes(loaded.model),
            multiply_adds=multiply_adds(loaded.model),
            dtype=dtype,
            perplexities=perplexities,
            tasks=scores,
            speed=timed,
            seconds=round(time.perf_counter() - start, 3),
        )

    return kept_result(out, "eval", settings, Evaluation, measure)


@torch.inference_mode()
def measure_speed(model: PreTrainedModel, batch: int, length: int, *, repeats: int = 5) -> Speed:
    """Time a forward pass that computes the logits of random tokens, without a cache.

    One pass before the timed ones is left out. A model that reads fewer tokens gets fewer.
    """
    length = min(length, longest_window(model.config) or length)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary_size(model), (batch, length), generator=generator)
    tokens = tokens.to(model.device)
    known = _reset_peak(tokens.device)
    median = median_seconds(
        lambda: model(input_ids=tokens, use_cache=False), tokens.device, repeats
    )
    peak = _peak(tokens.device) if known else None
    return Speed(median, batch * length / median, batch, length, repeats, peak)


def _reset_peak(device: torch.device) -> bool:
    """Whether the peak was forgotten: not every container lets a process forget its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device.type != "cpu" or not _STATUS.exists():
        return False
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _peak(device: torch.device) -> int | None:
    """The most memory held since the reset, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(kilobytes[1]) * 1024 if kilobytes else None
