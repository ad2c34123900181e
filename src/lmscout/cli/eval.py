"""`lmscout eval`: perplexity, tasks and cost of a model or a saved folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from lmscout.children import load_modules
from lmscout.cli import console
from lmscout.cli.options import (
    COMPUTATION,
    DTYPES,
    TEXT_HELP,
    JsonOption,
    KeepOption,
    ModelArgument,
    option,
    refuse_given,
)
from lmscout.errors import LmscoutError

if TYPE_CHECKING:
    from lmscout.evaluation import Evaluation

_PERPLEXITY, _TASKS = "Perplexity", "Tasks"


def evaluate(
    context: typer.Context,
    model: ModelArgument,
    perplexity: Annotated[
        list[str] | None, option(_PERPLEXITY, f"Text: {TEXT_HELP}; repeatable.", metavar="TEXT")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        option(
            _PERPLEXITY,
            "llm-pruner (windows of 128 tokens; the default), windows-512, sliding or "
            "sliding-1024; repeatable.",
            metavar="NAME",
        ),
    ] = None,
    limit_tokens: Annotated[
        int | None, option(_PERPLEXITY, "Use only a text's first tokens.", whole=(1, 10**9))
    ] = None,
    tasks: Annotated[
        str | None,
        option(
            _TASKS,
            "Tasks or groups of lm-eval, by log-likelihood: mmlu,piqa,arc_easy.",
            metavar="NAME,...",
        ),
    ] = None,
    task_data: Annotated[
        Path | None,
        option(
            _TASKS,
            "Read the questions of mmlu, piqa, arc_easy, winogrande and boolq from files here.",
            metavar="FOLDER",
        ),
    ] = None,
    shots: Annotated[
        int | None,
        option(_TASKS, "Examples before each question; 5 for mmlu, else 0.", whole=(0, 1000)),
    ] = None,
    limit: Annotated[
        int | None, option(_TASKS, "Use only the first questions of a task.", whole=(1, 10**9))
    ] = None,
    speed: Annotated[
        bool, option(COMPUTATION, "Measure tokens per second and peak memory.", "--speed")
    ] = False,
    batch_tokens: Annotated[
        int, option(COMPUTATION, "Tokens per forward pass.", whole=(1, 2**24))
    ] = 4096,
    dtype: Annotated[
        str, option(COMPUTATION, "Type of the weights in memory", choices=DTYPES)
    ] = "float32",
    device: Annotated[
        str, option(COMPUTATION, "cpu, cuda, cuda:1, mps, ...", metavar="DEVICE")
    ] = "cpu",
    out: KeepOption = None,
    json: JsonOption = None,
) -> None:
    """Measure a causal language model: perplexity, tasks and cost.

    Each perplexity has its protocol: text, windows, stride, BOS and tokenizer; each score its
    standard error and the number of examples before a question.
    """
    from lmscout import api
    from lmscout.runs import Run, default_run_folder

    console.check_json_target(json)
    if not perplexity and tasks is None and not speed:
        raise LmscoutError(
            "nothing to measure: give --perplexity TEXT, --tasks NAME,... or --speed"
        )
    names = [one.strip() for one in (tasks or "").split(",") if one.strip()]
    if tasks is not None and not names:
        raise LmscoutError("--tasks names none: give lm-eval's names, as mmlu,piqa")
    idle = "{option} has nothing to apply to: give %s, or leave it out"
    if not names:
        refuse_given(context, ("limit",), idle % "--tasks NAME,..., or for a text --limit-tokens")
        refuse_given(context, ("task_data", "shots"), idle % "--tasks NAME,...")
    if not perplexity:
        also = ", or for tasks --limit"
        refuse_given(context, ("limit_tokens",), idle % f"--perplexity TEXT{also}")
        refuse_given(context, ("protocol",), idle % "--perplexity TEXT")
    load_modules("lmscout.evaluation")
    result = api.evaluate(
        model,
        perplexity=perplexity or (),
        tasks=names,
        protocol=protocol or "llm-pruner",
        limit_tokens=limit_tokens,
        batch_tokens=batch_tokens,
        task_data=task_data,
        shots=shots,
        limit=limit,
        speed=speed,
        dtype=dtype,
        device=device,
        out=out,
    )
    console.finish(result, show, json, Run(out or default_run_folder("eval"), "eval"))


def show(result: Evaluation) -> None:
    """Print costs, perplexities and scores."""
    adds = result.multiply_adds
    cost = (
        f"[bold]{escape(result.model)}[/bold]: {result.parameters:,} parameters, "
        f"{result.bytes / 1e6:,.1f} MB, "
        f"{f'{adds / 1e6:,.1f} million' if adds >= 1e6 else f'{adds:,}'} multiply-adds per token"
    )
    if speed := result.speed:
        shape = f"{speed.batch} x {speed.length}"
        cost += f", {speed.tokens_per_second:,.0f} tokens/s ({shape})"
        if speed.peak_bytes is not None:
            cost += f", peak {speed.peak_bytes / 1e6:,.0f} MB"
    console.say(cost)
    if result.perplexities:
        table = console.table(
            "text",
            *("protocol", "window", "stride", "perplexity", "tokens"),
            caption="tokens: those scored; lower perplexity is better",
        )
        for text in result.perplexities:
            table.add_row(
                escape(text.source),
                text.protocol.name,
                str(text.protocol.window),
                str(text.protocol.stride),
                f"{text.value:.2f}",
                f"{text.tokens:,}",
            )
        console.print_table(table)
    if result.tasks:
        table = console.table(
            "task",
            *("metric", "score", "±", "shots", "questions"),
            caption="lm-eval, by log-likelihood; ± is the standard error",
        )
        for one in result.tasks:
            table.add_row(
                escape(one.task + (f" ({one.note})" if one.note else "")),
                one.metric,
                f"{one.value:.4f}",
                "" if one.error is None else f"{one.error:.4f}",
                str(one.shots),
                f"{one.questions:,}",
            )
        console.print_table(table)
