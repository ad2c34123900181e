"""`lmscout eval`: the perplexity of a model or of a saved folder."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lmscout.cli import console
from lmscout.cli.options import DTYPES, JsonOption

if TYPE_CHECKING:
    from lmscout.evaluation import Perplexity


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
        list[str],
        typer.Option(
            metavar="TEXT",
            help="A text file, plain or gzip, or hub:OWNER/NAME/CONFIG:SPLIT#FIELD; may be "
            "given several times.",
            show_default=False,
        ),
    ],
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
        typer.Option(min=1, help="Use only a text's first tokens.", show_default=False),
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens a forward.")] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the weights: " + ", ".join(DTYPES))] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = "cpu",
    json: JsonOption = None,
) -> None:
    """Measure a causal language model's perplexity on texts.

    Each value is reported with its protocol: text, windows, stride, BOS and tokenizer.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    import torch

    from lmscout import evaluation
    from lmscout.errors import LmscoutError

    console.check_json_target(json)
    if dtype not in DTYPES:
        raise LmscoutError(f"--dtype {dtype}: is none of {', '.join(DTYPES)}")
    protocols = [evaluation.protocol_of(name) for name in protocol or ["llm-pruner"]]
    start = time.perf_counter()
    texts = [evaluation.read_text(source) for source in perplexity]
    loaded = evaluation.load_model(model, getattr(torch, dtype), device)
    found = []
    with console.progress_bars() as progress:
        for text in texts:
            for one in protocols:
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
    result: dict[str, Any] = {
        "model": loaded.source,
        "parameters": evaluation.parameter_count(loaded.model),
        "dtype": dtype,
        "perplexities": [one.to_json() for one in found],
        "seconds": round(time.perf_counter() - start, 3),
    }
    if json != console.STDOUT:
        _show(loaded.source, result["parameters"], found)
    console.write_result(json, result)


def _short(source: str) -> str:
    """The end of a path or address, so that the bar has room beside it."""
    return escape(source.rsplit("/", 1)[-1])


def _show(model: str, parameters: int, found: list[Perplexity]) -> None:
    screen = console.table_console()
    screen.print(f"[bold]{escape(model)}[/bold]: {parameters:,} parameters")
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
    screen.print(table)
