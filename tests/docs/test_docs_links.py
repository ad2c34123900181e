"""Links of documents and notebooks lead to files and headings that exist; nothing is fetched."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
    *(ROOT / "notebooks").glob("*.ipynb"),
]
FENCE = re.compile(r"^(`{3,}).*?^\1", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(<?((?!https?:|mailto:)[^)\s>]+)>?\)")
HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)


def prose(page):
    """The Markdown of a page, without its code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(one["source"]) for one in cells if one["cell_type"] == "markdown")
    return FENCE.sub("", text)


def anchors(page):
    """The anchors that GitHub and the site give to a page's headings."""
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", one) for one in HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", one.strip().lower()).replace(" ", "-") for one in plain}


def broken(page):
    """The links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(prose(page)):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    assert not broken(page)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text("# One `two` (3)\n\n[x](b.md) [y](#one-two-3) [z](#one-two)\n")
    assert broken(tmp_path / "a.md") == ["b.md", "#one-two"]


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {
        line for block in re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL)
        for line in block.splitlines() if line and not line.startswith(":")
    }  # fmt: skip
    docs = ROOT / "docs"
    pages = {str(one.relative_to(docs).with_suffix("")) for one in PAGES if docs in one.parents}
    assert listed == pages - {"index"}


def test_the_workflow_calls_commands_that_exist():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step for job in jobs.values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == [".ci/run", "make docs"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    assert "docs" in targets
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", one["uses"]) for one in steps if "uses" in one)
    (site,) = [one["with"]["path"] for one in steps if "upload-pages" in one.get("uses", "")]
    assert f" docs {site}\n" in (ROOT / "Makefile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for version in jobs["test"]["strategy"]["matrix"]["python-version"]:
        assert f"Programming Language :: Python :: {version}" in project["classifiers"]
    assert set(jobs["publish"]["needs"]) <= set(jobs)
    assert workflow[True]["push"]["branches"] == ["main"]  # YAML 1.1 has true for `on`
