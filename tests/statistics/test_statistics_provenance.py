import json
import shutil
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from tiny_specs import EVERY_KIND, flexibert, gpt2

from lmscout.statistics import Batch
from lmscout.statistics import provenance as module
from lmscout.statistics.provenance import code_digest, provenance

COLUMNS = ["abs", "abs|log"]


def told(what="means", columns=COLUMNS, specs=None, seed=0, batch=None):
    return provenance(what, columns, specs or [gpt2(), flexibert("SDP")], seed, batch or Batch())


def test_equal_settings_have_equal_digests():
    assert told() == told()
    assert told().digest() == told().digest()
    assert told().to_json() == told().to_json()
    assert len(told().digest()) == 16
    assert int(told().digest(), 16) >= 0


def test_every_setting_is_in_the_digest():
    first = told()
    others = [
        told(what="scores"),
        told(columns=COLUMNS[::-1]),
        told(columns=[*COLUMNS, "exp"]),
        told(columns=["abs|abs", "log"]),
        told(seed=1),
        told(batch=Batch(size=31)),
        told(batch=Batch(length=31)),
        told(batch=Batch(seed=1)),
        told(specs=[flexibert("SDP"), gpt2()]),
        told(specs=[gpt2()]),
        told(specs=[gpt2(), flexibert("WMA")]),
        told(specs=[gpt2(), replace(flexibert("SDP"), vocabulary=51)]),
        replace(first, code="0" * 16),
        replace(first, torch="0"),
        replace(first, device="cuda"),
    ]
    digests = {one.digest() for one in [first, *others]}
    assert len(digests) == len(others) + 1


def test_the_kind_of_device_is_in_the_digest_and_its_number_is_not():
    specs, batch = [gpt2()], Batch()
    on = {
        device: provenance("means", COLUMNS, specs, 0, batch, device=device)
        for device in ("cpu", "cuda", "cuda:1")
    }
    assert on["cpu"] == provenance("means", COLUMNS, specs, 0, batch)
    assert on["cuda"] == on["cuda:1"]
    assert json.loads(on["cuda"].to_json())["device"] == "cuda"
    assert "device" not in json.loads(on["cpu"].to_json())


def test_the_json_is_canonical_and_whole():
    one = told(specs=list(EVERY_KIND.values()))
    text = one.to_json()
    loaded = json.loads(text)
    assert json.dumps(loaded, sort_keys=True, separators=(",", ":")) == text
    assert loaded["architectures"] == [spec.to_dict() for spec in EVERY_KIND.values()]
    assert loaded["torch"] == torch.__version__
    assert loaded["code"] == code_digest()
    assert set(loaded) == {"what", "columns", "seed", "batch", "architectures", "code", "torch"}


@pytest.fixture
def copied_source(tmp_path, monkeypatch):
    """The package's source, copied to where it can be changed, as what is digested."""
    root = tmp_path / "lmscout"
    shutil.copytree(str(files("lmscout")), root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "files", lambda _: root)
    return root


def test_the_code_digest_is_that_of_the_rooms_that_decide(copied_source):
    digest = code_digest.__wrapped__  # not the cached one
    before = digest()
    assert before == code_digest()  # the copy's is that of the running source
    for path in ("discovery/discover.py", "cli/main.py", "ranking/correlation.py", "errors.py"):
        with (copied_source / path).open("a") as file:
            file.write("# no number depends on this\n")
    (copied_source / "statistics" / "notes.txt").write_text("nor on this")
    (copied_source / "statistics" / "__pycache__").mkdir()
    (copied_source / "statistics" / "__pycache__" / "store.pyc").write_bytes(b"nor on this")
    assert digest() == before


@pytest.mark.parametrize(
    "path", ["statistics/plain_walk.py", "proxies/formulas.py", "architectures/layers.py"]
)
def test_a_change_of_deciding_code_changes_the_digest(copied_source, path):
    digest = code_digest.__wrapped__
    before = digest()
    file = copied_source / path
    source = file.read_text()
    file.write_text(source + "\n")
    changed = digest()
    file.rename(file.with_name("renamed.py"))
    renamed = digest()
    file.with_name("renamed.py").unlink()
    assert len({before, changed, renamed, digest()}) == 4
    file.write_text(source)
    assert digest() == before
