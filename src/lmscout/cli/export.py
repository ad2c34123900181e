"""`lmscout export`: a model in the format of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape

from lmscout.cli import console
from lmscout.cli.options import OUTPUT, JsonOption, ModelArgument, option

if TYPE_CHECKING:
    from lmscout.integrations import GgufFile

TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")


def export(
    model: ModelArgument,
    out: Annotated[Path, option(OUTPUT, "The file, which must not exist.", metavar="FILE")],
    to: Annotated[
        str, option(OUTPUT, "Format: gguf, of llama.cpp (extra gguf).", metavar="NAME")
    ] = "gguf",
    quantize: Annotated[
        str | None,
        option(
            OUTPUT,
            "Type of the weights (by default bf16 if they were saved so, else f16)",
            choices=TYPES,
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Write a model, pruned or not, as a file of another runtime.

    The file has its name only after the runtime has computed from it what transformers computes.
    """
    # Imported here, so that `--help` does not wait for PyTorch.
    from lmscout import api
    from lmscout.runs import Run, default_run_folder

    console.check_json_target(json)
    result = api.export(model, out=out, to=to, quantize=quantize)
    console.finish(result, show, json, Run(default_run_folder("export"), "export"))


def show(result: GgufFile) -> None:
    """Print the file, and how it was checked."""
    console.say(
        f"[bold]{escape(str(result.file))}[/bold]: {result.architecture}, {result.type}, "
        f"{result.parameters:,} parameters, {result.bytes / 1e6:,.1f} MB"
    )
    if result.checked == "tensors":
        console.say("checked: every tensor, read back (pip install xllamacpp to run the file)")
    else:
        console.say(
            f"checked: {result.checked} and transformers differ by {result.difference:.2g} nats at "
            "most, of the next token's log-probability"
        )
