"""Figures in HTML: as JSON within a script, and as the output of a notebook's cell."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from itertools import count
from string import Template

import plotly.graph_objects as go

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
