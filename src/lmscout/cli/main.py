"""The command `lmscout`: its commands, and errors as one line."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from lmscout.cli import stopping
from lmscout.cli.bench import app as bench_app
from lmscout.cli.demo import demo
from lmscout.cli.design import design
from lmscout.cli.discover import discover
from lmscout.cli.eval import evaluate
from lmscout.cli.explain import explain
from lmscout.cli.export import export
from lmscout.cli.prune import prune
from lmscout.cli.rank import rank
from lmscout.cli.report import report
from lmscout.errors import LmscoutError, out_of_memory, path_problem, without_passwords
from lmscout.files import storage_problem
from lmscout.version import __version__

INTERRUPTED = 130  # what typer makes of KeyboardInterrupt
_LONGEST = 1000  # characters of an error
_ABOUT = "Discover zero-cost proxies, design architectures, prune and evaluate language models."
_DISCOVER, _PRUNE, _SEE = "Discover and design", "Prune and evaluate", "See"

app = typer.Typer(
    help=_ABOUT,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (demo, discover, rank, explain, design):
    app.command(rich_help_panel=_DISCOVER if command is not demo else None)(command)
app.add_typer(bench_app, name="bench", rich_help_panel=_DISCOVER)
app.command(rich_help_panel=_PRUNE)(prune)
app.command("eval", rich_help_panel=_PRUNE)(evaluate)
app.command(rich_help_panel=_PRUNE)(export)
app.command(rich_help_panel=_SEE)(report)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; user errors print one line to stderr and exit with code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # characters that the locale lacks
    with stopping.stoppable():
        _run()


def _run() -> None:
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except LmscoutError as error:
        _fail(str(error))
    except typer.Abort:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has ended
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if unusable := path_problem(error):
            _fail(unusable)
        if out_of_memory(error):
            reason = "".join(str(error).strip().splitlines()[:1]) or "none is left"
            _fail(f"out of memory ({reason}): use a larger device, or fewer tokens at once")
        problem = storage_problem(error)
        if problem is None:
            raise
        where = getattr(error, "filename", None) or "the output, or a file of the run"
        _fail(f"{where} cannot be written ({problem}): free some space")
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    if stopping.is_stopping():  # an error that the interruption caused
        raise KeyboardInterrupt
    print(f"lmscout: {_shown(without_passwords(message))}", file=sys.stderr)
    sys.exit(2)


def _shown(message: str) -> str:
    """One line; control characters, and those that a terminal cannot show, are escaped."""
    line = " ".join(message.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 200]} ... {line[-190:]}"
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in line
    )
