import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscout.builtin import END_OF_DOCUMENT, SIDES, corpus_digest, corpus_text, documents, side_of

SCRIPT = Path(__file__).with_name("corpus_process.py")
SOURCE = SCRIPT.parents[2] / "src"
OTHERS = [name for name in ("python3.11", "python3.12", "python3.13") if shutil.which(name)]


def run(python, **environment):
    return subprocess.run(
        [python, "-B", SCRIPT],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(SOURCE), "PYTHONIOENCODING": "utf-8"} | environment,
        check=False,
    )


def long_lines(text):
    lines = {" ".join(line.split()) for line in text.splitlines()}
    return {line for line in lines if len(line) > 40}


@given(st.text(st.characters(codec="utf-8")))
def test_the_side_is_a_hash_of_the_name(name):
    twentieth = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 20
    assert side_of(name) == {0: "validation", 1: "test"}.get(twentieth, "train")


def test_sides_do_not_move():
    pinned = {
        "lib/argparse.py": "train",
        "lib/json/decoder.py": "train",
        "topics/assert": "train",
        "lib/configparser.py": "validation",
        "lib/unittest/mock.py": "validation",
        "topics/debugger": "validation",
        "lib/asyncio/tasks.py": "test",
        "lib/tarfile.py": "test",
        "topics/imaginary": "test",
    }
    assert {name: side_of(name) for name in pinned} == pinned
    assert pinned.items() <= {one.name: one.side for one in documents()}.items()


def test_documents_have_the_side_of_their_name_and_are_in_its_order():
    names = [one.name for one in documents()]
    assert names == sorted(set(names))
    assert all(one.side == side_of(one.name) and one.text.strip() for one in documents())


def test_there_is_enough_text_and_most_of_it_is_to_train_on():
    characters = Counter()
    for one in documents():
        characters[one.side] += len(one.text)
    assert 6e6 < characters.total() < 12e6
    assert 0.87 < characters["train"] / characters.total() < 0.95
    assert min(characters["validation"], characters["test"]) > 0.02 * characters.total()
    topics = sum(len(one.text) for one in documents() if one.name.startswith("topics/"))
    assert topics > 4e5


def test_no_held_out_document_is_mostly_a_copy_from_another_side():
    lines = {side: [] for side in SIDES}
    for one in documents():
        lines[one.side].append((one.name, long_lines(one.text)))
    for side in ("validation", "test"):
        others = set().union(*(own for other in SIDES if other != side for _, own in lines[other]))
        for name, own in lines[side]:
            assert len(own & others) <= len(own) / 2, name


def test_what_no_installation_need_have_is_left_out():
    parts = {part for one in documents() for part in Path(one.name).parts}
    assert not parts & {"test", "tests", "site-packages", "idlelib", "tkinter", "encodings"}
    assert not parts & {"topics.py", "entities.py", "sitecustomize.py"}
    assert not any(part.startswith("_sysconfigdata") for part in parts)


def test_sources_are_whole():
    decoder = next(one for one in documents() if one.name == "lib/json/decoder.py")
    file = Path(sysconfig.get_path("stdlib"), "json", "decoder.py")
    assert decoder.text == file.read_text(encoding="utf-8")
    package = next(one for one in documents() if one.name == "lib/json.py")
    assert "JSON" in ast.get_docstring(ast.parse(package.text))


@pytest.mark.parametrize("side", SIDES)
def test_a_side_is_its_documents_and_what_stands_between_them(side):
    texts = [one.text for one in documents() if one.side == side]
    assert corpus_text(side).split(END_OF_DOCUMENT) == texts
    assert corpus_digest(side) == hashlib.sha256(corpus_text(side).encode()).hexdigest()


def test_an_unknown_side():
    with pytest.raises(ValueError, match="train, validation, test, not 'dev'"):
        corpus_text("dev")


@pytest.mark.parametrize("python", OTHERS)
def test_other_pythons_agree_on_the_sides(python):
    if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} is on the path, but does not run")
    done = run(python)
    assert done.returncode == 0, done.stderr
    others = {name: (side, text) for name, side, text in json.loads(done.stdout)}
    mine = {one.name: one.side for one in documents()}
    common = mine.keys() & others.keys()
    assert len(common) > 0.7 * len(mine)
    assert {name: mine[name] for name in common} == {name: others[name][0] for name in common}
    # What one trains on, another does not test on.
    trained = set().union(*(long_lines(one.text) for one in documents() if one.side == "train"))
    for name, (side, text) in others.items():
        own = long_lines(text)
        assert side == "train" or len(own & trained) <= len(own) / 2, name


@pytest.fixture(scope="module")
def zipped_python(tmp_path_factory):
    """A Python whose standard library is in a zip file, as in the embeddable one of Windows."""
    home = tmp_path_factory.mktemp("zipped")
    stdlib = Path(sysconfig.get_path("stdlib"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (home / "lib" / f"python{version}").mkdir(parents=True)
    with zipfile.ZipFile(home / "lib" / f"python{version.replace('.', '')}.zip", "w") as archive:
        # Which modules are packages differs from version to version, so all are packed.
        packages = [stdlib / name for name in sys.stdlib_module_names - {"pydoc_data"}]
        for file in (*stdlib.glob("*.py"), *chain(*(one.rglob("*.py") for one in packages))):
            archive.write(file, file.relative_to(stdlib))
    dynamic = sysconfig.get_config_var("DESTSHARED")
    return {"PYTHONHOME": str(home), "PYTHONPATH": os.pathsep.join((str(SOURCE), str(dynamic)))}


@pytest.mark.skipif(os.name == "nt", reason="built for the layout that POSIX systems have")
def test_a_python_without_sources_is_one_line(zipped_python):
    done = run(sys._base_executable, **zipped_python)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("LmscoutError: this Python has no pydoc_data.topics")


@pytest.mark.skipif(os.name == "nt", reason="built for the layout that POSIX systems have")
def test_a_python_whose_sources_are_packed_is_one_line(zipped_python, tmp_path):
    shutil.copytree(Path(sysconfig.get_path("stdlib"), "pydoc_data"), tmp_path / "pydoc_data")
    path = os.pathsep.join((str(tmp_path), zipped_python["PYTHONPATH"]))
    done = run(sys._base_executable, **zipped_python | {"PYTHONPATH": path})
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "holds 0 source files of the standard library" in done.stderr
