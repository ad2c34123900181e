"""Options of the commands: how they are declared, and those that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from lmscout.errors import LAST_SEED, LmscoutError, brief

SEEDS = (0, LAST_SEED)
MOST_PARAMETERS = 10**15
COMPUTATION, OUTPUT = "Computation", "Output"
MODEL_HELP = "Folder that save_pretrained wrote, or a name on the Hugging Face Hub."
TEXT_HELP = (
    "a file (plain, gzip, or FILE#FIELD of .jsonl or .parquet), FOLDER/ or "
    "hub:NAME/CONFIG:SPLIT#FIELD; a FIELD may hold chats"
)
BENCHMARK_HELP = (
    "pico, iso, flexibert, lts:random_GPT2_wt103, or bench:DIR, flexibert:PATH, lts:PATH."
)

# Names that the packages accept; repeated here, since importing these takes seconds.
SPACES = ("published", "two-op", "deep")
ENGINES = ("genetic", "regularized", "random", "exhaustive")
FITNESS = ("spearman+pearson", "spearman", "kendall", "beyond-size")
IMPORTANCES = ("obs", "taylor", "magnitude", "activation", "fluctuation", "random")
REFITS = ("sequential", "none")
COMPENSATIONS = ("least-squares", "none")
QUALITIES = ("kl", "nll")
MEASURES = ("parameters", "multiply-adds", "memory", "latency")
SHAPES = ("any", "uniform", "deci")
UNITS = "experts", "channels"
RECOVERIES = ("lora", "distill")
DTYPES = ("float32", "bfloat16", "float16")


def argument(metavar: str, text: str) -> Any:
    """Declare an argument of a command."""
    return typer.Argument(metavar=metavar, help=text, show_default=False)


def option(
    group: str,
    text: str,
    *names: str,
    metavar: str | None = None,
    whole: tuple[int, int] | None = None,
    choices: Sequence[str] | None = None,
    **more: Any,
) -> Any:
    """Declare an option of a command, see `typer.Option`, that the help lists under its group.

    `whole` has the least and the largest value of a whole number; `choices` are appended to the
    help.
    """
    if whole is not None:
        metavar, more["parser"] = metavar or "INT", _whole_number(*whole)
    if choices is not None:
        metavar, more["parser"] = metavar or "NAME", _one_of(choices)
        more["autocompletion"] = lambda: list(choices)
        text = f"{text}: {', '.join(choices[:-1])} or {choices[-1]}."
    return typer.Option(*names, help=text, rich_help_panel=group, metavar=metavar, **more)


def _whole_number(least: int, largest: int) -> Callable[[str], int]:
    def parse(text: str | int) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= largest:
            raise typer.BadParameter(
                f"no valid number (got {brief(text)}, expected {least} to {largest})"
            )
        return value

    return parse


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            from lmscout.errors import did_you_mean

            raise typer.BadParameter(
                f"unknown name (got {brief(text)}, expected {', '.join(choices)})"
                f"{did_you_mean(text, choices)}"
            )
        return text

    return parse


BenchmarkArgument = Annotated[str, argument("BENCHMARK", BENCHMARK_HELP)]
ModelArgument = Annotated[str, argument("MODEL", MODEL_HELP)]
WorkersOption = Annotated[
    int,
    option(COMPUTATION, "Architectures evaluated at once; -1: one per core.", whole=(-1024, 1024)),
]
BackendOption = Annotated[
    str, option(COMPUTATION, "joblib backend; loky: local processes.", metavar="NAME")
]
DeviceOption = Annotated[
    str,
    option(
        COMPUTATION,
        "Device that computes the statistics: cpu, cuda or cuda:1; the workers share a GPU.",
        metavar="DEVICE",
    ),
]
ClusterOption = Annotated[
    str | None,
    option(
        COMPUTATION,
        "Ray cluster that shares the work: ray://HOST:PORT, auto (the one that this machine is in) "
        "or local.",
        metavar="ADDRESS",
    ),
]
OutOption = Annotated[
    Path | None, option(OUTPUT, "Run folder; by default a new one under runs/.", metavar="FOLDER")
]
KeepOption = Annotated[
    Path | None,
    option(OUTPUT, "Run folder; by default the result is not kept.", "--out", metavar="FOLDER"),
]
JsonOption = Annotated[
    str | None,
    option(
        OUTPUT,
        "Write the result as JSON; -: to standard output, in place of the table.",
        "--json",
        metavar="FILE",
    ),
]


def refuse_given(context: typer.Context, names: Sequence[str], problem: str) -> None:
    """Raise LmscoutError if one of these parameters, which would have no effect, was given.

    The problem is the message, with {option} for the option's name.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise LmscoutError(problem.format(option=f"--{name.replace('_', '-')}"))


_LONGEST_COUNT = 60  # characters
_THOUSANDS: Mapping[str, int] = {"": 0, "k": 1, "m": 2, "g": 3, "b": 3}


def parameter_count(text: str, option: str) -> int:
    """Parse a number of parameters or multiply-adds, such as 3M, 120k, 1.5G or 2,500,000.

    k, M, and G or B are powers of 1,000.  LmscoutError, with the option, if it is no such number.
    """
    short = text.strip() if len(text) <= _LONGEST_COUNT else ""
    found = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?)\s*([kmgb]?)", short, re.IGNORECASE)
    if found:
        number, unit = found.groups()
        digits = Decimal(number.replace(",", "").replace("_", ""))
        count = int(digits * 1000 ** _THOUSANDS[unit.lower()])
        if 0 < count <= MOST_PARAMETERS and (unit or count == digits):
            return count
    raise LmscoutError(
        f"{option} {text[:_LONGEST_COUNT]}: give a number, such as 3M, 120k or 1500000"
    )
