import re
import runpy
from pathlib import Path

import lmscout

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_committed_reference_is_what_the_tables_say():
    written = runpy.run_path(str(DOCS / "make_reference.py"))["reference"]()
    assert (DOCS / "proxies.md").read_text(encoding="utf-8") == written, "run `make reference`"


def test_the_committed_options_are_those_of_the_commands():
    written = runpy.run_path(str(DOCS / "make_options.py"))["reference"]()
    assert (DOCS / "options.md").read_text(encoding="utf-8") == written, "run `make reference`"


def test_the_readme_is_short_and_names_options_and_files_that_exist():
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    options = (DOCS / "options.md").read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    ours = "\n".join(line for line in shell.splitlines() if "lmscout" in line.split("#")[0])
    used = set(re.findall(r"(?<= )--[a-z-]+", ours))
    assert len(used) > 10
    assert not [one for one in used if f"`{one}`" not in options]
    for target in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (DOCS.parent / target).exists(), target


def test_every_module_that_the_architecture_names_is_there():
    text = (DOCS / "architecture.md").read_text()
    packages = {path.parent.name for path in Path(lmscout.__file__).parent.glob("*/__init__.py")}
    assert packages <= set(re.findall(r"\b(\w+)/", text))
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    assert len(named) > 30
    assert not [name for name in named if "FAMILY" not in name and "NAME" not in name
                and "COMMAND" not in name and not (Path(lmscout.__file__).parent / name).is_file()
                and not (DOCS.parent / name).is_file()]  # fmt: skip
    assert len(text.encode()) <= 15_000
