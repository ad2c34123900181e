"""`lmscout report`: the report of a run as one HTML file."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

from lmscout.children import load_modules
from lmscout.cli.options import OUTPUT, argument, option

_CONTENT = "Content"


def report(
    run: Annotated[
        Path, argument("RUN", "Run folder of any command, finished or not, or a saved result.")
    ],
    beside: Annotated[
        Path | None,
        option(
            _CONTENT,
            "Run folder of rank on the same benchmark, whose proxies are shown beside a discovered "
            "one.",
            metavar="FOLDER",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(OUTPUT, "The HTML file; by default report.html in the run folder.", metavar="FILE"),
    ] = None,
    open_: Annotated[bool, option(OUTPUT, "Open it in the browser.", "--open")] = False,
) -> None:
    """Write the report of a run: one HTML file with figures and tables, made from its folder.

    It needs no network, and can be sent as it is.  Of a run that has not finished it shows what is
    there; the same command writes it again.
    """
    load_modules("lmscout.reports")
    from lmscout import api

    path = api.report(run, out=out, beside=beside)
    print(f"report: {path}")
    if open_:
        webbrowser.open(path.resolve().as_uri())
