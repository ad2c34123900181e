import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from recorded_values import RECORD, VALUES
from tiny_specs import EVERY_KIND, flexibert, gpt2

from lmscout.statistics import Batch
from lmscout.statistics.collect import FORMAT, RowStore, provenance

COLUMNS = ["abs", "abs|log"]


def source(what="means", columns=COLUMNS, specs=None, seed=0, batch=None):
    return provenance(what, columns, specs or [gpt2(), flexibert("SDP")], seed, batch or Batch())


def file_name(source, folder):
    return RowStore(folder, "x", source, (1,)).path.name


def test_equal_settings_have_equal_digests(tmp_path):
    assert source() == source()
    digest = file_name(source(), tmp_path).removeprefix("x-").removesuffix(".safetensors")
    assert len(digest) == 16
    assert int(digest, 16) >= 0


def test_every_setting_is_in_the_digest(tmp_path):
    first = source()
    others = [
        source(what="scores"),
        source(columns=COLUMNS[::-1]),
        source(columns=[*COLUMNS, "exp"]),
        source(columns=["abs|abs", "log"]),
        source(seed=1),
        source(batch=Batch(size=31)),
        source(batch=Batch(length=31)),
        source(batch=Batch(seed=1)),
        source(specs=[flexibert("SDP"), gpt2()]),
        source(specs=[gpt2()]),
        source(specs=[gpt2(), flexibert("WMA")]),
        source(specs=[gpt2(), replace(flexibert("SDP"), vocabulary=51)]),
        {**first, "format": 0},
        {**first, "torch": "0"},
        {**first, "device": "cuda"},
    ]
    names = {file_name(one, tmp_path) for one in [first, *others]}
    assert len(names) == len(others) + 1


def test_the_kind_of_device_counts_and_its_number_does_not():
    specs, batch = [gpt2()], Batch()
    on = {
        device: provenance("means", COLUMNS, specs, 0, batch, device=device)
        for device in ("cpu", "cuda", "cuda:1")
    }
    assert on["cpu"] == provenance("means", COLUMNS, specs, 0, batch)
    assert on["cuda"] == on["cuda:1"]
    assert on["cuda"]["device"] == "cuda"
    assert "device" not in on["cpu"]


def test_it_holds_everything_that_the_numbers_depend_on():
    one = source(specs=list(EVERY_KIND.values()))
    assert json.loads(json.dumps(one)) == one
    assert one["architectures"] == [spec.to_dict() for spec in EVERY_KIND.values()]
    assert one["torch"] == torch.__version__
    assert one["format"] == FORMAT
    assert set(one) == {"what", "columns", "seed", "batch", "architectures", "format", "torch"}


@pytest.mark.parametrize("kind", VALUES)
def test_numbers_change_with_the_format_alone(kind, tmp_path):
    """Where this fails, raise `FORMAT` and run tests/statistics/recorded_values.py."""
    recorded = json.loads(RECORD.read_text("utf-8"))
    assert recorded["format"] == FORMAT, "FORMAT was raised: record the numbers again"
    before, after = recorded["values"][kind], VALUES[kind](tmp_path)
    assert before.keys() == after.keys()
    for name, values in after.items():
        least = 1e-6 * np.abs(before[name]).max()
        np.testing.assert_allclose(values, before[name], rtol=1e-3, atol=least, err_msg=name)
