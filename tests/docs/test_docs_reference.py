import re
import runpy
from pathlib import Path

import lmscout

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_committed_reference_is_what_the_tables_say():
    written = runpy.run_path(str(DOCS / "make_reference.py"))["reference"]()
    assert (DOCS / "proxies.md").read_text(encoding="utf-8") == written, "run `make reference`"


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
