"""Colours, axes and texts that all figures share, and figures in HTML.

Figures have transparent backgrounds and colours that can be read on white and on black, so that
they fit light and dark notebooks; the page of a report gives texts and grids its own.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import count
from string import Template

import plotly.graph_objects as go

COLOURS = {
    "found": "#12a594",  # what lmscout found
    "uniform": "#e5872b",  # uniform cuts, configuration baselines
    "dense": "#8d95a1",
    "literature": "#8e6fe0",
    "searched": "#93a7c4",  # what the choice has used: measured pairs, search split
    "predicted": "#3f8ae0",
    "attention": "#0c7f72",
    "mlp": "#55bdb0",
    "bad": "#dd5454",
}
"""One meaning, one colour, in every figure."""

_INK, _GRID = "#7d8590", "rgba(128,134,142,0.22)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_AXIS = {
    "gridcolor": _GRID,
    "linecolor": _GRID,
    "zeroline": False,
    "automargin": True,
    "ticks": "",
    "title": {"standoff": 10},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 13, "color": _INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": list(COLOURS.values()),
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "font": {"family": _FONT, "size": 13}},
        "legend": {
            "orientation": "h",
            "yanchor": "bottom",
            "y": 1.01,
            "xanchor": "left",
            "x": 0,
            "itemdoubleclick": "toggleothers",
            "font": {"size": 12},
        },
        "margin": {"l": 8, "r": 12, "t": 40, "b": 8},
        "bargap": 0.3,
    }
)


def figure(title: str, x: str = "", y: str = "", *, height: int = 420) -> go.Figure:
    """An empty figure with a title and titles of its axes."""
    made = go.Figure(layout={"template": TEMPLATE, "height": height, "title": {"text": title}})
    made.update_layout(margin_t=70)
    made.update_xaxes(title_text=x)
    made.update_yaxes(title_text=y)
    return made


def safe(text: object, most: int = 120) -> str:
    """A text for a figure, which reads a few tags of HTML: escaped, and not too long."""
    shown = str(text)
    return html.escape(shown if len(shown) <= most else shown[: most - 1] + "…")


def wrapped(text: object, width: int = 60, lines: int = 6) -> str:
    """A long text, such as a formula, in lines for a label that shows on hovering."""
    rest = str(text)
    shown: list[str] = []
    while rest and len(shown) < lines:
        cut = rest.rfind(" ", 1, width) if len(rest) > width else len(rest)
        cut = width if cut < 1 else cut
        shown.append(html.escape(rest[:cut].strip()))
        rest = rest[cut:]
    return "<br>".join(shown) + ("…" if rest else "")


def finite(values: Sequence[float | None]) -> list[float | None]:
    """Numbers for JSON, which has no NaN: None for those that are not finite."""
    return [None if one is None or not math.isfinite(one) else one for one in values]


def dots(
    made: go.Figure,
    name: str,
    colour: str,
    x: Sequence[float | None],
    y: Sequence[float | None],
    **more: object,
) -> None:
    """Add points of one kind; of those with texts, these alone show on hovering."""
    marker = {"color": COLOURS[colour], "size": 8, "line": {"width": 0}}
    given = more.pop("marker", None)
    marker |= given if isinstance(given, dict) else {}
    more = ({"hoverinfo": "text"} if "text" in more else {}) | more
    made.add_scatter(name=name, mode="markers", x=finite(x), y=finite(y), marker=marker, **more)


def line(
    made: go.Figure,
    name: str,
    colour: str,
    x: Sequence[float | None],
    y: Sequence[float | None],
    *,
    dash: str = "solid",
    shape: str = "linear",
    **more: object,
) -> None:
    """Add a line of one kind."""
    style = {"color": COLOURS[colour], "width": 2, "dash": dash, "shape": shape}
    given = {"hoverinfo": "skip"} | more
    made.add_scatter(name=name, mode="lines", x=finite(x), y=finite(y), line=style, **given)


def bars(
    title: str,
    x: str,
    names: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    *,
    colours: Sequence[str] = (),
    hover: Sequence[str] = (),
    **more: object,
) -> go.Figure:
    """Horizontal bars from top to bottom, each with its text, and another one on hovering."""
    rows = list(range(len(names)))
    made = figure(title, x, height=110 + 32 * len(rows))
    shown = hover or [f"{name}: {text}" for name, text in zip(names, texts, strict=True)]
    made.add_bar(
        **({"textposition": "auto"} | more),
        y=rows,
        x=finite(values),
        orientation="h",
        marker={"color": [COLOURS[one] for one in colours or ["found"] * len(rows)]},
        text=texts,
        cliponaxis=False,
        customdata=list(map(safe, shown)),
        hovertemplate="%{customdata}<extra></extra>",
    )
    names = [safe(one, 40) for one in names]
    made.update_yaxes(autorange="reversed", tickvals=rows, ticktext=names)
    return made


def errors(
    above: Sequence[float], below: Sequence[float] | None = None, colour: str | None = None
) -> dict[str, object]:
    """Error bars of these lengths, the same on both sides unless `below` is given."""
    sides = {} if below is None else {"symmetric": False, "arrayminus": finite(below)}
    drawn = {"type": "data", "array": finite(above), "thickness": 1.5, "width": 0}
    return drawn | sides | ({} if colour is None else {"color": COLOURS[colour]})


def mark(made: go.Figure, x: float, text: str, colour: str) -> None:
    """Add a dotted vertical line with a text at its upper end."""
    made.add_vline(x, line={"color": COLOURS[colour], "width": 2, "dash": "dot"})
    made.add_annotation(
        x=x,
        y=1,
        yref="paper",
        text=text,
        showarrow=False,
        xanchor="right",
        font={"color": COLOURS[colour]},
    )


def short(value: float) -> str:
    """A round number for an axis: 0.02, 500, 20k, 3M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= max(size, 1e4):
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def logarithmic(values: Sequence[float]) -> dict[str, object]:
    """An axis of positive values on a logarithmic scale, with ticks at 1, 2 and 5."""
    low, high = math.log10(min(values)), math.log10(max(values))
    digits = (1, 2, 5) if high - low < 2.2 else (1, 3) if high - low < 3.5 else (1,)
    ticks = [
        digit * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for digit in digits
    ]
    return {"type": "log", "tickvals": ticks, "ticktext": [short(one) for one in ticks]}


def time_spent(seconds: Mapping[str, float]) -> go.Figure:
    """Where the time of a run went, by stage."""
    stages = [name for name, value in seconds.items() if math.isfinite(value)]
    spent = [seconds[name] for name in stages]
    texts = [f"{one:,.1f} s, {one / (sum(spent) or 1.0):.0%}" for one in spent]
    colours = ["searched"] * len(stages)
    return bars("Where the time went", "seconds", stages, spent, texts, colours=colours)


_JS_VERSION = "4.1.1"  # of the file in `plotlyjs`, as plotly distributes it
_numbers = count()

_DRAW = Template("""<div id="${name}" style="min-height:${height}px"></div>
<script>${library}</script>
<script>
(() => {
  const figure = ${figure};
  const draw = () => Plotly.newPlot("${name}", figure.data, figure.layout, {responsive: true});
  if (window.Plotly) { draw(); return; }
  const script = document.createElement("script");
  script.src = "https://cdn.plot.ly/plotly-cartesian-${version}.min.js";
  script.onload = draw;
  document.head.append(script);
})();
</script>
""")


@cache
def plotly_js() -> str:
    """plotly.js with cartesian traces alone, which a browser loads in a third of the time."""
    folder = files("lmscout.plots").joinpath("plotlyjs")
    return folder.joinpath("plotly-cartesian.min.js").read_text(encoding="utf-8")


def script_json(figure: go.Figure) -> str:
    """Data and layout as JSON in which no end of a script can be hidden."""
    text = str(figure.to_json())
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def embedded(figure: go.Figure) -> str:
    """The figure in HTML for a notebook's cell.

    The first one in a process holds plotly.js, 1.5 MB, so that a notebook needs no network.  A
    frontend that shows cells apart, or a notebook without its first cell, loads it from plotly.
    """
    number = next(_numbers)
    return _DRAW.substitute(
        name=f"lmscout-figure-{number}",
        height=figure.layout.height or 420,
        version=_JS_VERSION,
        library="" if number else plotly_js(),
        figure=script_json(figure),
    )
