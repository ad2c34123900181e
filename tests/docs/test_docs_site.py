"""The documentation builds without a warning, and its tutorials and notebooks run."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from myst_nb.core.read import read_myst_markdown_notebook
from nbclient import NotebookClient

import lmscout

ROOT = Path(__file__).resolve().parents[2]
DOCS, NOTEBOOKS = ROOT / "docs", ROOT / "notebooks"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built without executing the tutorials."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q"]
    built = subprocess.run(
        [*command, "-D", "nb_execution_mode=off", str(DOCS), str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    return out


def test_the_site_documents_every_public_name(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    assert set(re.findall(r'id="(?:module-)?lmscout\.(\w+)"', page)) == set(lmscout.__all__)
    assert "Path_" not in page
    assert "DeepSettings" not in page


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_committed_notebooks_are_the_tutorials(page):
    made = runpy.run_path(str(DOCS / "make_notebooks.py"))["notebook"](page)
    written = (NOTEBOOKS / f"{page.stem}.ipynb").read_text(encoding="utf-8")
    assert written == made, "run `make reference`"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of statistics that the notebooks share, empty at first."""
    return tmp_path_factory.mktemp("cache")


def executed(notebook, folder, cache):
    """Run a notebook from top to bottom in a folder; the texts that its cells put out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMSCOUT_CACHE", str(cache))
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("IPYTHONDIR", str(cache / "ipython"))
        patch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")  # ipywidgets are optional
        client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}})
        client.execute()
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    warned = [one.text for one in outputs if one.get("name") == "stderr"]
    assert not [text for text in warned if "its result is loaded" not in text]
    outputs = [one for one in outputs if one.get("name") != "stderr"]
    texts = [one.text if "text" in one else one.data.get("text/plain", "") for one in outputs]
    assert not [text for text in texts if "\x1b" in text]
    return texts


def test_the_notebook_that_discovers_runs(tmp_path, cache):
    texts = executed(nbformat.read(NOTEBOOKS / "discover.ipynb", 4), tmp_path, cache)
    assert any("48,000 proxies" in text for text in texts)
    assert (tmp_path / "runs" / "untrained" / "config.json").is_file()


def test_the_notebook_that_prunes_runs(tmp_path, cache):
    texts = executed(nbformat.read(NOTEBOOKS / "prune.ipynb", 4), tmp_path, cache)
    assert texts[-1] == "True"  # the same call loads the same result
    assert lmscout.load_result(tmp_path / "runs" / "smaller").sizes[0].keep == 0.7


def test_the_notebook_from_pairs_to_a_proxy_runs(tmp_path, cache):
    texts = executed(nbformat.read(NOTEBOOKS / "pairs-to-proxy.ipynb", 4), tmp_path, cache)
    assert "better than" in texts[-1] or "worse than" in texts[-1] or "as good as" in texts[-1]
    assert lmscout.load_result(tmp_path / "runs" / "by-proxy").objective is not None


def test_the_page_on_correlations_runs(tmp_path, cache):
    page = (DOCS / "correlations.md").read_text(encoding="utf-8")
    texts = executed(read_myst_markdown_notebook(page), tmp_path, cache)
    assert texts[0].startswith("parameter count against quality: ρ 0.889")


@pytest.mark.parametrize("name", ["own-benchmark", "own-family"])
def test_the_examples_of_a_guide_run(name):
    page = (DOCS / "howto" / f"{name}.md").read_text(encoding="utf-8")
    for code in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(compile(code, f"{name}.md", "exec"), {})
