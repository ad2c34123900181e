"""`lmscout`: one command a module, and one place where errors become one line."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

import lmscout
from lmscout.cli.bench import app as bench_app
from lmscout.cli.demo import demo
from lmscout.cli.design import design
from lmscout.cli.discover import discover
from lmscout.cli.eval import evaluate
from lmscout.cli.explain import explain
from lmscout.cli.prune import prune
from lmscout.cli.rank import rank
from lmscout.errors import LmscoutError

INTERRUPTED = 130
_LONGEST = 1000  # characters of an error

_CONTINUES = "; the same command continues where this one stopped"
# Where that is not so.
_AFTER_STOP = {
    "eval": "; the same command begins anew",
    "demo": "; the same command begins anew, with what was read of the architectures",
}

app = typer.Typer(
    help="Judge language-model architectures cheaply.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(demo)
app.command()(discover)
app.command()(rank)
app.command()(explain)
app.command()(design)
app.command()(prune)
app.command("eval")(evaluate)
app.add_typer(bench_app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(lmscout.__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Judge language-model architectures cheaply."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; what the user can mend is one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except LmscoutError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which `--help` does not import
            raise
        _fail(f"out of memory ({error}): use a larger device, or fewer tokens at once")
    except BrokenPipeError:  # the reader of a pipe has gone: nothing is left to say to it
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"no space is left to write to ({error.filename or 'the output'}): make room")
    if code == INTERRUPTED:  # which is also what typer makes of Control-C
        (command,) = sys.argv[1:2] or ("",)
        print(f"lmscout: interrupted{_AFTER_STOP.get(command, _CONTINUES)}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print(f"lmscout: {_shown(message)}", file=sys.stderr)
    sys.exit(2)


def _shown(message: str) -> str:
    """One line; what a terminal would act on, or cannot show, is escaped."""
    line = " ".join(message.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 200]} ... {line[-190:]}"
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in line
    )
