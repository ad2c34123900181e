"""The page of a report: one self-contained HTML file of sections with figures and tables.

Every string is escaped where it is filled in, and the page's content security policy lets neither
scripts but its own run nor requests leave it.
"""

from __future__ import annotations

import hashlib
import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from latex2mathml.converter import convert
from markupsafe import Markup

from lmscout.plots.style import plotly_js, script_json, time_spent
from lmscout.proxies import Expression, format_expression, to_latex
from lmscout.version import __version__

DASH = "–"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    what: ClassVar[str] = "text"


@dataclass(frozen=True)
class Code:
    """A block of code under a title, which opens by a click."""

    title: str
    text: str
    what: ClassVar[str] = "code"


@dataclass(frozen=True)
class Formula:
    """An expression, typeset and as text."""

    expression: Expression
    what: ClassVar[str] = "formula"

    @property
    def text(self) -> str:
        """The expression as the command line reads it."""
        return format_expression(self.expression)

    @property
    def mathml(self) -> Markup:
        """MathML, which browsers typeset; of lmscout's own LaTeX, whose words are all known."""
        return Markup(convert(to_latex(self.expression), display="block"))


@dataclass(frozen=True)
class Figure:
    """A plotly figure with a caption that says how to read it; its own title becomes the page's."""

    figure: go.Figure
    caption: str
    what: ClassVar[str] = "figure"

    @property
    def title(self) -> str:
        """The figure's title without tags."""
        shown = Markup(str(self.figure.layout.title.text or "Figure").replace("<br>", " "))
        return shown.unescape()

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.figure.layout.height or 420)

    @property
    def json(self) -> Markup:
        """Data and layout without the title, as JSON for a script."""
        plain = go.Figure(self.figure)
        plain.layout.title = None
        named = [one for one in plain.data if one.name and one.showlegend is not False]
        plain.layout.margin.t = 40 if len(named) > 1 else 12
        return Markup(script_json(plain))


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and the format of its numbers or "wide" for long texts."""

    title: str
    format: str

    @property
    def kind(self) -> str:
        """Class of its cells: "n" for numbers, "w" for long texts."""
        return "w" if self.format == "wide" else "n" if self.format else ""

    def shown(self, value: object) -> str:
        """A value as the table shows it; a dash where there is none."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return DASH
        if self.kind != "n" or isinstance(value, str):
            return str(value)
        return "infinite" if math.isinf(float(value)) else format(value, self.format)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and downloaded."""

    title: str  # of the table
    headings: str  # separated by "; ", each with the format of its numbers after a colon, or wide
    rows: Sequence[Sequence[object]]  # a value for each column
    note: str = ""  # how to read it
    found: Sequence[int] = ()  # numbers of the rows that hold what was found
    long: bool = False  # whether it is left out in print
    what: ClassVar[str] = "table"

    @property
    def columns(self) -> list[Column]:
        """The columns of the headings."""
        parts = [one.partition(":") for one in self.headings.split("; ")]
        return [Column(title, form) for title, _, form in parts]

    @property
    def file(self) -> str:
        """Name of the CSV file."""
        return f"{re.sub('[^a-z0-9]+', '-', self.title.lower()).strip('-') or 'table'}.csv"

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Rows as the template reads them."""
        columns = self.columns
        return [
            {
                "kind": "found" if number in self.found else "",
                "cells": [
                    {"text": column.shown(value), "kind": column.kind}
                    for column, value in zip(columns, row, strict=True)
                ],
            }
            for number, row in enumerate(self.rows)
        ]


Part = Text | Code | Formula | Figure | Table


@dataclass(frozen=True)
class Section:
    """A section with a title and an identifier for links."""

    title: str
    parts: Sequence[Part]

    @property
    def id(self) -> str:
        """The identifier, from the title."""
        return re.sub("[^a-z0-9]+", "-", self.title.lower()).strip("-")


def time_section(seconds: Mapping[str, float], *more: Part) -> Section:
    """Where the time of a run went, by stage, and further parts."""
    parts: list[Part] = []
    if len(seconds) > 1:
        parts.append(Figure(time_spent(seconds), "By stage."))
    else:
        parts += [Text(f"{stage}: {spent:,.1f} s.") for stage, spent in seconds.items()]
    return Section("Where the time went", [*parts, *more])


@dataclass(frozen=True)
class Verdict:
    """A sentence under the headline; "good", "bad" or "warn"."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Content:
    """What a report says of a result."""

    headline: str  # what was found, how good it is, against what: one sentence with numbers
    sections: Sequence[Section]  # those without parts are left out
    verdicts: Sequence[Verdict] = ()
    tiles: Sequence[tuple[str, str, str]] = ()  # important numbers: name, value, and a note or ""


@dataclass(frozen=True)
class Page:
    """A report."""

    command: str  # whose run it is
    title: str  # what it was run on
    content: Content  # what it says
    state: str = ""  # of an unfinished run, or ""
    source: str = "a result"  # what the page was made from
    again: str = "result.save_report(path)"  # the command that writes it again


def render(page: Page) -> str:
    """The page as HTML."""
    sections = [one for one in page.content.sections if one.parts]
    scripts = [plotly_js(), _asset("page.js")] if _draws(sections) else [_asset("page.js")]
    text: str = _template().render(
        page={**vars(page), **vars(page.content), "sections": sections},
        version=__version__,
        css=Markup(_asset("page.css")),
        scripts=list(map(Markup, scripts)),
        digests=" ".join(f"'sha256-{_digest(one)}'" for one in scripts),
    )
    return text


def _draws(sections: Sequence[Section]) -> bool:
    return any(isinstance(part, Figure) for one in sections for part in one.parts)


def _digest(script: str) -> str:
    return b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("page.html"))


@cache
def _asset(name: str) -> str:
    return files("lmscout.reports").joinpath(name).read_text(encoding="utf-8")
