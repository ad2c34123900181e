"""Write docs/options.md from the options of the commands: `make reference`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

import lmscout
from lmscout.cli.main import app

TARGET = Path(__file__).with_name("options.md")
HEAD = """<!-- Written by docs/make_options.py; do not edit. -->

# Options

Every command and its options, as `lmscout COMMAND -h` shows them. `--json` and run folders are
described in [json.md](json.md). In Python an option has the same name (`--n-search` is `n_search`)
unless the last column has another.
"""

FUNCTIONS = {
    "lmscout eval": "evaluate",
    "lmscout bench build": "build_benchmark",
    "lmscout bench check": "check_benchmark",
}
"""Command -> its function, if the names differ."""
CONFIGS = {
    "discover": ("DeepSearchConfig",),
    "prune": ("PruneConfig", "CalibrationConfig"),
}
"""Function -> classes of its further options."""
OTHERS = {
    "json": "`result.to_json()`",
    "dry_run": "",
    "open_": "",
    "latex": "`result.latex`",
    "torch": "`result.torch`",
    "feature": "`PruneConfig(features=)`",
    "worse_by": "`PruneConfig(max_increase=)`",
    "compensation": "`CalibrationConfig(compensate=)`",
    "calibration_windows": "`CalibrationConfig(windows=)`",
    "calibration_tokens": "`CalibrationConfig().of_tokens()`",
    **{name: f"`RecoveryConfig.of({name}=)`" for name in ("recover", "elastic")},
    **{
        f"recover_{name}": f"`RecoveryConfig.of({name}=)`"
        for name in ("steps", "tokens", "minutes", "rank", "rate", "batch")
    },
}
"""Parameter of a command -> its equivalent in Python, if it has another name there."""


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
    function = FUNCTIONS.get(name, name.rsplit(maxsplit=1)[-1])
    if function != "demo":
        yield f"In Python: `lmscout.{function}`.\n"
    for one in arguments:
        yield f"- `{one.metavar}`: {_cell(one.help)}"
    yield ""
    groups: dict[str, list[Any]] = {}
    for one in command.params:
        if one not in arguments and not one.hidden and one.name != "help":
            groups.setdefault(one.rich_help_panel or "Options", []).append(one)
    for group, options in groups.items():
        yield f"| {group} | | Default | Python |\n|---|---|---|---|"
        for one in options:
            flags = ", ".join(f"`{flag}`" for flag in (*one.opts, *one.secondary_opts))
            kind = "" if one.is_flag else f" `{_cell(one.metavar)}`"
            cells = f"{_cell(one.help)} | {_default(one)} | {_python(function, one.name)}"
            yield f"| {flags}{kind} | {cells} |"
        yield ""


def _python(function: str, name: str) -> str:
    """What a parameter of a command is in Python; empty if it has the same name."""
    if function == "demo":
        return ""
    if (function, name) == ("design", "out"):
        return "`result.save_pretrained()`"
    if name in inspect.signature(getattr(lmscout, function)).parameters:
        return ""
    for config in CONFIGS.get(function, ()):
        if name in {one.name for one in fields(getattr(lmscout, config))}:
            return f"`{config}({name}=)`"
    return OTHERS[name]


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
