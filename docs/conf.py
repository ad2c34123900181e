"""Sphinx's configuration of the documentation: `make docs` writes it to docs/_build/html.

`-D nb_execution_mode=off` builds it without executing the tutorials.
"""

import logging
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lmscout

project = "lmscout"
author = "the authors of lmscout"
copyright = "the authors of lmscout, Apache-2.0"
release = version = lmscout.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton"]
exclude_patterns = ["_build"]
default_role = "code"  # a name in single backticks, as docstrings have it

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# Kernels have a profile of their own, do not report that they listen on local ports, and do
# without ipywidgets.
PROFILE = TemporaryDirectory(prefix="lmscout-docs-")
os.environ["IPYTHONDIR"] = PROFILE.name
os.environ["PLOTLY_RENDERER"] = "notebook"  # figures that need no network
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
Path(PROFILE.name, "profile_default").mkdir()
Path(PROFILE.name, "profile_default", "ipython_kernel_config.py").write_text(
    "c.IPKernelApp.log_level = 'ERROR'\n"
)
logging.getLogger("traitlets").setLevel(logging.WARNING)  # which notebook is executed
nb_execution_mode = "force"
nb_execution_in_temp = True  # runs of tutorials leave nothing behind
nb_execution_timeout = 900  # seconds of one cell
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpick_ignore_regex = [("py:.*", r".*")]

html_theme = "furo"
html_title = "lmscout"
html_static_path = ["_static"]
html_css_files = ["lmscout.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = ">>> "

SHORT = {
    "Path_": "str | PathLike",
    "Progress": "bool | Callable",
    "DeepSettings": "DeepSearchConfig",
}
"""Internal name of a type -> what a user gives."""
lmscout.DeepSearchConfig.__name__ = "DeepSearchConfig"


def _signature(*event: Any) -> tuple[str, str | None] | None:
    """Signature and return annotation with public names of types, and valid defaults."""
    *_, signature, returns = event
    if signature is None:
        return None
    short = re.sub(rf"\b({'|'.join(SHORT)})\b", lambda found: SHORT[found[0]], signature)
    return re.sub(r"(\w+) = <factory>", r"\1 = \1()", short).replace("~torch.", "torch."), returns


def _docstring(*event: Any) -> None:
    """Escape bars, and list the attributes of a configuration as what it is made from."""
    _, what, *_, lines = event
    lines[:] = [line.replace("|ρ|", r"\|ρ\|") for line in lines]
    if what == "class":
        lines[:] = ["Args:" if line == "Attributes:" else line for line in lines]


def setup(app: Any) -> None:
    """Connect to autodoc, before napoleon."""
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _docstring, priority=400)
