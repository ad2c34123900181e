"""Write notebooks/*.ipynb from the tutorials in docs/tutorials: `make reference`.

A tutorial and its notebook have one text; links lead from the notebook to the pages.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook

TUTORIALS = Path(__file__).parent / "tutorials"
TARGET = TUTORIALS.parents[1] / "notebooks"
_LINK = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")


def notebook(page: Path) -> str:
    """The notebook of a tutorial, not executed, as JSON."""
    made = read_myst_markdown_notebook(page.read_text(encoding="utf-8"))
    name = page.stem
    for number, cell in enumerate(made.cells):
        cell["id"] = f"{name}-{number}"
        if cell.cell_type == "markdown":
            cell["source"] = _LINK.sub(_from_notebooks, cell["source"])
    made.metadata = {"kernelspec": dict(made.metadata["kernelspec"])}
    made.nbformat, made.nbformat_minor = 4, 5
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


def _from_notebooks(link: re.Match[str]) -> str:
    """A link of a tutorial as it is from the folder of notebooks."""
    target = link[1]
    if target.startswith("../"):
        return f"](../docs/{target[3:]})"
    return f"]({target.replace('.md', '.ipynb')})"


def main() -> None:
    """Write all of them."""
    TARGET.mkdir(exist_ok=True)
    for page in sorted(TUTORIALS.glob("*.md")):
        (TARGET / f"{page.stem}.ipynb").write_text(notebook(page), encoding="utf-8")


if __name__ == "__main__":
    main()
