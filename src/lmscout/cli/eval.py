"""`lmscout eval`: what a model or a saved folder is worth, and what it costs."""

from __future__ import annotations

import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lmscout.cli import console
from lmscout.cli.options import DTYPES, JsonOption, KeepOption
from lmscout.errors import LmscoutError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmscout.evaluation import Evaluation, Perplexity, TaskScore
    from lmscout.runs import Run

_SPEED = 8, 128  # sequences a forward, tokens a sequence
_OTHER_LIMIT = {  # the two are easily taken for each other
    "--limit": ", or for a text --limit-tokens",
    "--limit-tokens": ", or for tasks --limit",
}
_PROMPT = 512  # tokens that a task's prompt is taken to have


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder that save_pretrained wrote, or a name on the Hugging Face Hub.",
            show_default=False,
        ),
    ],
    perplexity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="A text: a file (plain, gzip, or FILE#FIELD of .jsonl or .parquet), or "
            "hub:OWNER/NAME/CONFIG:SPLIT#FIELD; may be given several times.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Tasks or groups of lm-eval, by log-likelihood: mmlu,piqa,arc_easy.",
            show_default=False,
        ),
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Read the questions of mmlu, piqa, arc_easy, winogrande and boolq from files "
            "here, without a network.",
            show_default=False,
        ),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1000,
            help="Examples before each question; 5 for mmlu, else 0.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, max=10**9, help="Ask only the first questions of a task.", show_default=False
        ),
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="Measure tokens a second and peak memory too.")
    ] = False,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="llm-pruner (windows of 128; the default), windows-512, sliding or "
            "sliding-1024; may be given several times.",
            show_default=False,
        ),
    ] = None,
    limit_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Use only a text's first tokens.", show_default=False),
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, max=2**24, help="Tokens a forward.")] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the weights: " + ", ".join(DTYPES))] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = "cpu",
    out: KeepOption = None,
    json: JsonOption = None,
) -> None:
    """Measure a causal language model: perplexity, tasks and cost.

    Each perplexity is reported with its protocol: text, windows, stride, BOS and tokenizer; each
    score with its standard error and the examples given before a question.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    import torch

    from lmscout import evaluation
    from lmscout.runs import optional_run

    console.check_json_target(json)
    if dtype not in DTYPES:
        raise LmscoutError(f"--dtype {dtype}: is none of {', '.join(DTYPES)}")
    if not perplexity and tasks is None:
        raise LmscoutError("nothing to measure: give --perplexity TEXT, --tasks NAME,... or both")
    asked = [one.strip() for one in (tasks or "").split(",") if one.strip()]
    if tasks is not None and not asked:
        raise LmscoutError("--tasks names none: give lm-eval's names, as mmlu,piqa")
    for_tasks = {"--task-data": task_data, "--shots": shots, "--limit": limit}
    for_texts = {"--protocol": protocol or None, "--limit-tokens": limit_tokens}
    _refuse_idle({} if asked else for_tasks, "--tasks NAME,...")
    _refuse_idle({} if perplexity else for_texts, "--perplexity TEXT")
    if asked:
        evaluation.check_tasks(asked, task_data)
    protocols = [evaluation.protocol_of(name) for name in protocol or ["llm-pruner"]]
    start = time.perf_counter()
    texts = [evaluation.read_text(source) for source in perplexity or []]
    settings = {
        "model": model,
        # It reads the whole folder, for which only a run that is kept has a use.
        "model_fingerprint": None if out is None else evaluation.model_fingerprint(model),
        "perplexity": perplexity or [],
        "text_sha256": [text.sha256 for text in texts],
        "protocol": [one.name for one in protocols] if texts else [],
        "limit_tokens": limit_tokens,
        "batch_tokens": batch_tokens,
        "tasks": asked,
        "task_data": None if task_data is None else str(task_data),
        "shots": shots,
        "limit": limit,
        "speed": speed,
        "dtype": dtype,
        "device": device,
    }
    run = optional_run(out, "eval", settings)
    if run.finished:
        _report(run.load(evaluation.Evaluation), run, json)
        return
    loaded = evaluation.load_model(model, getattr(torch, dtype), device)
    # All of them before the first is measured: a slip in the last would cost the work of the rest.
    for text, one in product(texts, protocols):
        evaluation.checked_tokens(loaded.model, loaded.tokenizer, text, one, limit_tokens)
    # Before the texts: it takes seconds, and what fails in it would cost their work.
    timed = evaluation.measure_speed(loaded.model, *_SPEED) if speed else None
    found: list[Perplexity] = []
    scores: tuple[TaskScore, ...] = ()
    with console.progress_bars() as progress:
        for text, one in product(texts, protocols):
            found.append(
                evaluation.perplexity(
                    loaded.model,
                    loaded.tokenizer,
                    text,
                    one,
                    batch_tokens=batch_tokens,
                    limit_tokens=limit_tokens,
                    progress=partial(progress, f"{_short(text.source)}, {one.name}"),
                )
            )
        if asked:
            scores = evaluation.score_tasks(
                loaded,
                asked,
                shots=shots,
                limit=limit,
                batch=max(1, batch_tokens // _PROMPT),
                data=task_data,
                progress=partial(progress, "tasks"),
            )
    result = evaluation.Evaluation(
        model=loaded.source,
        parameters=evaluation.parameter_count(loaded.model),
        bytes=evaluation.parameter_bytes(loaded.model),
        multiply_adds=evaluation.multiply_adds(loaded.model),
        dtype=dtype,
        perplexities=tuple(found),
        tasks=tuple(scores),
        speed=timed,
        seconds=round(time.perf_counter() - start, 3),
    )
    if out is not None:
        run.save(result)
    _report(result, run, json)


def _report(result: Evaluation, run: Run, json: str | None) -> None:
    if json != console.STDOUT:
        _show_cost(result)
        if result.perplexities:
            _show_perplexities(result.perplexities)
        if result.tasks:
            _show_scores(result.tasks)
    console.write_result(json, result, run)


def _refuse_idle(options: Mapping[str, object], needed: str) -> None:
    """Refuse options that nothing asked for would use: who gives them believes otherwise."""
    for option, given in options.items():
        if given is not None:
            instead = _OTHER_LIMIT.get(option, "")
            raise LmscoutError(
                f"{option} has nothing to apply to: give {needed}{instead}, or leave it out"
            )


def _short(source: str) -> str:
    """The end of a path or address, so that the bar has room beside it."""
    return escape(source.rsplit("/", 1)[-1])


def _show_cost(result: Evaluation) -> None:
    said = (
        f"[bold]{escape(result.model)}[/bold]: {result.parameters:,} parameters, "
        f"{result.bytes / 1e6:,.1f} MB, {_in_millions(result.multiply_adds)} "
        "multiply-adds a token"
    )
    if speed := result.speed:
        shape = f"{speed.batch} x {speed.length}"
        said += f", {speed.tokens_per_second:,.0f} tokens/s ({shape})"
        if speed.peak_bytes is not None:
            said += f", peak {speed.peak_bytes / 1e6:,.0f} MB"
    console.table_console().print(said, highlight=False)


def _in_millions(count: int) -> str:
    return f"{count / 1e6:,.1f} million" if count >= 1e6 else f"{count:,}"


def _show_scores(scores: Sequence[TaskScore]) -> None:
    table = Table(caption="lm-eval, by log-likelihood; ± is the standard error")
    table.add_column("task")
    table.add_column("metric")
    for column in ("score", "±", "shots", "questions"):
        table.add_column(column, justify="right")
    for one in scores:
        table.add_row(
            escape(one.task + (f" ({one.note})" if one.note else "")),
            one.metric,
            f"{one.value:.4f}",
            "" if one.error is None else f"{one.error:.4f}",
            str(one.shots),
            f"{one.questions:,}",
        )
    console.table_console().print(table)


def _show_perplexities(found: Sequence[Perplexity]) -> None:
    table = Table(caption="tokens: those scored; lower perplexity is better")
    table.add_column("text", overflow="fold")
    table.add_column("protocol")
    for column in ("window", "stride", "perplexity", "tokens"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(
            escape(one.source),
            one.protocol.name,
            str(one.protocol.window),
            str(one.protocol.stride),
            f"{one.value:.2f}",
            f"{one.tokens:,}",
        )
    console.table_console().print(table)
