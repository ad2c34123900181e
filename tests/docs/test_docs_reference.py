import re
import runpy
from pathlib import Path

import lmscout

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_committed_reference_is_what_the_tables_say():
    written = runpy.run_path(str(DOCS / "make_reference.py"))["reference"]()
    assert (DOCS / "proxies.md").read_text(encoding="utf-8") == written, "run `make reference`"


def test_the_house_has_a_line_for_every_module():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    house = text.split("src/lmscout/\n")[1].split("```")[0]
    described = set()
    rooms: list[str] = []
    for indent, name in re.findall(r"^( +)(\S+)", house, re.MULTILINE):
        rooms = rooms[: len(indent) // 2 - 1]
        if name.endswith("/"):
            rooms.append(name)
        else:
            described.add("".join(rooms) + name)
    root = Path(lmscout.__file__).parent
    modules = {str(path.relative_to(root).as_posix()) for path in root.rglob("*.py")}
    assert described == {name for name in modules if not name.endswith("__init__.py")}
