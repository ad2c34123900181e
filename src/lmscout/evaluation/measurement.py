"""Evaluation of a loaded model: all perplexities, tasks and costs in one result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from lmscout.errors import LmscoutError
from lmscout.evaluation.cost import measure_speed, multiply_adds, parameter_bytes, parameter_count
from lmscout.evaluation.loading import LoadedModel, load_model
from lmscout.evaluation.origin import model_fingerprint
from lmscout.evaluation.perplexity import checked_tokens, perplexity
from lmscout.evaluation.protocols import Protocol, protocol_of
from lmscout.evaluation.results import Evaluation
from lmscout.evaluation.task_data import questions_sha256
from lmscout.evaluation.tasks import TaskScore, check_tasks, score_tasks
from lmscout.evaluation.text import Text, read_text
from lmscout.progress import Progress
from lmscout.runs import kept_result

_SPEED = 8, 128  # sequences per forward pass, tokens per sequence
_PROMPT = 512  # tokens assumed for a prompt of a task


def kept_evaluation(
    model: str | LoadedModel,
    *,
    perplexity: Sequence[str],
    tasks: Sequence[str],
    protocol: Sequence[str],
    task_data: Path | None,
    dtype: str,
    device: str,
    out: Path | None,
    progress: Progress | None,
    **options: Any,
) -> Evaluation:
    """Measure a model, or load the result of a finished run; see `lmscout.evaluate`.

    Args:
        model: folder or Hub name of the model, or the loaded model.
        perplexity: sources of texts.
        tasks: names of lm-eval.
        protocol: names of the perplexities' protocols.
        task_data: folder of the tasks' questions; None for the Hub.
        dtype: of the weights in memory.
        device: as PyTorch names it.
        out: run folder; None to keep nothing.
        progress: called with stage, steps done and all steps.
        options: further arguments of `measure`.
    """
    if not (perplexity or tasks):
        raise LmscoutError("nothing to measure: give perplexity texts, tasks or both")
    if tasks:
        check_tasks(tasks, task_data)
    protocols = [protocol_of(one) for one in protocol] if perplexity else []
    texts = [read_text(source) for source in perplexity]
    source = model if isinstance(model, str) else model.source
    settings = {
        "model": source,
        # Only for a run that is kept, since the whole folder is read.
        "model_fingerprint": None if out is None else model_fingerprint(model),
        "perplexity": perplexity,
        "text_sha256": [text.sha256 for text in texts],
        "protocol": [one.name for one in protocols],
        "tasks": tasks,
        "task_data": None if task_data is None else str(task_data),
        "task_data_sha256": (
            questions_sha256(task_data, tasks)
            if task_data is not None and tasks and out is not None
            else None
        ),
        "dtype": dtype,
        "device": device,
        **options,
    }

    def compute() -> Evaluation:
        loaded = model
        if isinstance(loaded, str):
            loaded = load_model(loaded, getattr(torch, dtype), device)
        return measure(
            loaded,
            texts,
            protocols,
            tasks,
            dtype=dtype,
            task_data=task_data,
            progress=progress,
            **options,
        )

    return kept_result(out, "eval", settings, Evaluation, compute)


def measure(
    loaded: LoadedModel,
    texts: Sequence[Text],
    protocols: Sequence[Protocol],
    tasks: Sequence[str],
    *,
    dtype: str,
    limit_tokens: int | None = None,
    batch_tokens: int = 4096,
    task_data: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    speed: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure perplexities, tasks and cost; every input is checked before the first measurement.

    Args:
        loaded: the model and its tokenizer.
        texts: texts whose perplexity is measured.
        protocols: protocols of each perplexity.
        tasks: names of lm-eval.
        dtype: of the weights in memory, for the result.
        limit_tokens: first tokens of each text that are used; None for all.
        batch_tokens: tokens per forward pass.
        task_data: folder of the tasks' questions; None for the Hub.
        shots: examples before each question; None for each task's usual number.
        limit: maximum number of questions per task.
        speed: whether to measure tokens per second and peak memory.
        progress: called with stage, steps done and all steps.

    Raises:
        LmscoutError: a text is shorter than one window, or a task or protocol does not apply.
    """
    start = time.perf_counter()
    model, tokenizer = loaded.model, loaded.tokenizer
    for text, protocol in product(texts, protocols):
        checked_tokens(model, tokenizer, text, protocol, limit_tokens)
    # First, since it takes seconds: an error here costs no other measurement.
    timed = measure_speed(model, *_SPEED) if speed else None
    perplexities = tuple(
        perplexity(
            model,
            tokenizer,
            text,
            protocol,
            batch_tokens=batch_tokens,
            limit_tokens=limit_tokens,
            progress=progress
            and partial(progress, f"{Path(text.source).name or text.source}, {protocol.name}"),
        )
        for text, protocol in product(texts, protocols)
    )
    scores: tuple[TaskScore, ...] = ()
    if tasks:
        scores = tuple(
            score_tasks(
                loaded,
                tasks,
                shots=shots,
                limit=limit,
                batch=max(1, batch_tokens // _PROMPT),
                data=task_data,
                progress=progress and partial(progress, "tasks"),
            )
        )
    return Evaluation(
        model=loaded.source,
        parameters=parameter_count(model),
        bytes=parameter_bytes(model),
        multiply_adds=multiply_adds(model),
        dtype=dtype,
        perplexities=perplexities,
        tasks=scores,
        speed=timed,
        seconds=round(time.perf_counter() - start, 3),
    )
