"""Options that several commands take, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DTYPES = ("float32", "bfloat16", "float16")

BenchmarkArgument = Annotated[
    str,
    typer.Argument(
        metavar="BENCHMARK",
        help="pico, flexibert, lts:random_GPT2_wt103, or bench:DIR, flexibert:PATH, lts:PATH.",
        show_default=False,
    ),
]
WorkersOption = Annotated[
    int, typer.Option(help="Architectures read at once; -1 is one a core.", show_default=True)
]
BackendOption = Annotated[
    str, typer.Option(help="joblib backend that runs them: loky is processes here.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for the run; by default a new one under runs/.", show_default=False),
]
JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the result as JSON; - writes it to standard output instead of the table.",
        show_default=False,
    ),
]
