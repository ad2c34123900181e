"""Write docs/options.md from the options of the commands: `make reference`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from lmscout.cli.main import app

TARGET = Path(__file__).with_name("options.md")
HEAD = """<!-- Written by docs/make_options.py; do not edit. -->

# Options

Every command and its options, as `lmscout COMMAND -h` shows them. `--json` and run folders are
described in [json.md](json.md).
"""


def reference() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *_commands(typer.main.get_command(app), "lmscout")])


def _commands(command: Any, name: str) -> Iterator[str]:
    for child, one in getattr(command, "commands", {}).items():
        if hasattr(one, "commands"):
            yield from _commands(one, f"{name} {child}")
        else:
            yield from _section(one, f"{name} {child}")


def _section(command: Any, name: str) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = [name, *(one.metavar if one.required else f"[{one.metavar}]" for one in arguments)]
    yield f"## `{' '.join(usage)}`\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    for one in arguments:
        yield f"- `{one.metavar}`: {_cell(one.help)}"
    yield ""
    groups: dict[str, list[Any]] = {}
    for one in command.params:
        if one not in arguments and not one.hidden and one.name != "help":
            groups.setdefault(one.rich_help_panel or "Options", []).append(one)
    for group, options in groups.items():
        yield f"| {group} | | |\n|---|---|---|"
        for one in options:
            flags = ", ".join(f"`{flag}`" for flag in (*one.opts, *one.secondary_opts))
            kind = "" if one.is_flag else f" `{_cell(one.metavar)}`"
            yield f"| {flags}{kind} | {_cell(one.help)} | {_default(one)} |"
        yield ""


def _default(one: Any) -> str:
    if one.required:
        return "required"
    if one.default is None or (one.is_flag and not one.secondary_opts):
        return ""
    return "on" if one.default is True else f"`{one.default}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
