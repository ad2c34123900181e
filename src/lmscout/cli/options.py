"""Options that several commands take, each said once."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from lmscout.errors import LmscoutError

LAST_SEED = 2**63 - 1  # that PyTorch's generators take
MOST_PARAMETERS = 10**15
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
    int,
    typer.Option(max=1024, help="Architectures read at once; -1 is one a core.", show_default=True),
]
BackendOption = Annotated[
    str, typer.Option(help="joblib backend that runs them: loky is processes here.")
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where statistics are computed: cpu, or a GPU as cuda or cuda:1, on which one "
        "architecture follows the other.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for the run; by default a new one under runs/.", show_default=False),
]
KeepOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for the result and its settings; by default they are not kept.",
        show_default=False,
    ),
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

_LONGEST_COUNT = 60  # characters
_THOUSANDS = {"": 0, "k": 1, "m": 2, "g": 3, "b": 3}


def parameter_count(text: str, option: str) -> int:
    """Read a number of parameters, such as 3M, 120k, 1.5G or 2,500,000.

    Args:
        text: a number above 0; k, M, and G or B, are a thousand times each other.
        option: that it was given to, for the error.

    Raises:
        LmscoutError: it is none.
    """
    short = text.strip() if len(text) <= _LONGEST_COUNT else ""
    found = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?)\s*([kmgb]?)", short, re.IGNORECASE)
    if found:
        number, unit = found.groups()
        digits = Decimal(number.replace(",", "").replace("_", ""))
        count = int(digits * 1000 ** _THOUSANDS[unit.lower()])
        if 0 < count <= MOST_PARAMETERS:
            return count
    raise LmscoutError(
        f"{option} {text[:_LONGEST_COUNT]}: give a number of parameters, such as 3M, 120k or "
        "1500000"
    )
