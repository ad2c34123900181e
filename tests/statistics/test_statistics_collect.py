import importlib
import os
import time
from dataclasses import replace
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_specs import EVERY_KIND, flexibert, gpt2

from lmscout.errors import LmscoutError
from lmscout.statistics import (
    INPUT_NAMES,
    OPERATIONS,
    Batch,
    Workers,
    chain_means,
    collect,
    read_model,
)
from lmscout.statistics.collect import RowStore, fill, one_thread, provenance

# Of depths one to three; the second and the last are equal.
SPECS = [
    gpt2(heads=(2,), inner=(8,)),
    flexibert("DSC5", "SDP"),
    flexibert("DFT", "DCT", "WMA"),
    flexibert("DSC5", "SDP"),
]
CHAINS = [*((name,) for name in OPERATIONS), ("square", "log"), ("abs", "softmax", "std")]
BATCH = Batch(size=3, length=6)
SETTINGS = {"name": "tiny", "batch": BATCH, "workers": Workers(1)}


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    return collect(SPECS, CHAINS, folder=tmp_path_factory.mktemp("collected"), **SETTINGS)


def test_a_row_is_what_the_pass_and_the_reductions_give(collected):
    assert collected.values.shape == (4, 6, 22, 3)
    assert collected.values.dtype == np.float32
    assert collected.depth.tolist() == [1, 2, 3, 2]
    assert collected.chains == tuple(CHAINS)
    for spec, row in zip(SPECS, collected.values, strict=True):
        means = partial(chain_means, chains=CHAINS)
        expected = read_model(spec.build(0), BATCH.tokens(spec), means, 22)
        np.testing.assert_array_equal(row[:, :, : spec.depth], expected.astype(np.float32))
        assert not np.isnan(row[:, :, : spec.depth]).any()
        assert np.isnan(row[:, :, spec.depth :]).all()


def test_a_branch_is_an_input_under_a_chain(collected):
    got = collected.branch("head", ("square", "log"))
    place = INPUT_NAMES.index("head"), CHAINS.index(("square", "log"))
    np.testing.assert_array_equal(got, collected.values[:, *place])
    assert got.shape == (4, 3)


def test_the_numbers_do_not_depend_on_the_threads_of_the_caller(collected, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = collect(SPECS, CHAINS, folder=tmp_path, **SETTINGS)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert again.values.tobytes() == collected.values.tobytes()


def test_one_thread_gives_the_threads_back_after_an_error():
    def fail():
        with one_thread():
            inside.append(torch.get_num_threads())
            raise ZeroDivisionError

    before, inside = torch.get_num_threads(), []
    torch.set_num_threads(3)
    with pytest.raises(ZeroDivisionError):
        fail()
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert (inside, after) == ([1], 3)


def test_a_second_call_reads_the_file_and_builds_nothing(tmp_path, monkeypatch):
    first = collect(SPECS, CHAINS, folder=tmp_path, **SETTINGS)
    arrays = load_file(first.path)
    with safe_open(first.path, framework="numpy") as stored:
        header = stored.metadata()
    arrays["rows"][2, 1, 3, 0] = 42.0
    save_file(arrays, first.path, metadata=header)
    written = first.path.stat().st_mtime_ns

    def build(spec, seed):
        raise AssertionError("a model was built")

    for spec in SPECS:
        monkeypatch.setattr(type(spec), "build", build)
    calls = []
    second = collect(
        SPECS, CHAINS, folder=tmp_path, **SETTINGS, progress=lambda *call: calls.append(call)
    )
    assert calls == [(4, 4)]
    assert second.values[2, 1, 3, 0] == 42.0
    expected = first.values.copy()
    expected[2, 1, 3, 0] = 42.0
    assert second.values.tobytes() == expected.tobytes()
    assert second.path.stat().st_mtime_ns == written


def test_other_settings_are_collected_into_another_file(tmp_path, monkeypatch):
    def values(specs=SPECS[:2], chains=(("abs",), ("exp",)), **changed):
        return collect(specs, list(chains), folder=tmp_path, **SETTINGS | changed)

    first = values()
    others = {
        "seed": values(seed=1),
        "size": values(batch=Batch(size=4, length=6)),
        "tokens": values(batch=Batch(size=3, length=6, seed=1)),
        "chains": values(chains=[("abs",), ("log",)]),
        "order": values(chains=[("exp",), ("abs",)]),
        "specs": values(specs=[SPECS[0], flexibert("WMA", "SDP")]),
        "vocabulary": values(specs=[SPECS[0], replace(SPECS[1], vocabulary=49)]),
        "name": values(name="small"),
    }
    module = importlib.import_module("lmscout.statistics.collect")
    monkeypatch.setattr(module, "FORMAT", 0)
    others["format"] = values()
    paths = {first.path, *(other.path for other in others.values())}
    assert len(paths) == len(others) + 1
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    np.testing.assert_array_equal(others["order"].values, first.values[:, :, ::-1])
    assert others["format"].values.tobytes() == first.values.tobytes()
    for name in ("seed", "size", "tokens", "chains", "specs", "vocabulary"):
        assert not np.array_equal(others[name].values, first.values, equal_nan=True), name


class Counting:
    """Measures a spec by its depth, and records the specs."""

    def __init__(self):
        self.specs = []

    def __call__(self, spec):
        self.specs.append(spec)
        return np.array([spec.depth, len(self.specs)], float)


def test_equal_architectures_are_measured_once(tmp_path):
    store = RowStore(tmp_path, "tiny", provenance("test", ["a"], SPECS, 0, BATCH), (2,))
    measure, calls = Counting(), []
    fill(store, SPECS, measure, Workers(1), lambda *call: calls.append(call))
    assert measure.specs == SPECS[:3]
    assert store.rows.tolist() == [[1, 1], [2, 2], [3, 3], [2, 2]]
    assert calls == [(0, 4), (1, 4), (3, 4), (4, 4)]


def test_an_equal_architecture_that_is_done_is_not_measured_again(tmp_path):
    store = RowStore(tmp_path, "tiny", provenance("test", ["a"], SPECS, 0, BATCH), (2,))
    store.set_row(3, np.array([7.0, 8.0]))
    measure, calls = Counting(), []
    fill(store, SPECS, measure, Workers(1), lambda *call: calls.append(call))
    assert measure.specs == [SPECS[0], SPECS[2]]
    assert store.rows.tolist() == [[1, 1], [7, 8], [3, 2], [7, 8]]
    assert calls == [(2, 4), (3, 4), (4, 4)]


def test_a_worker_that_has_grown_is_replaced_without_a_word(tmp_path, recwarn):
    def measure(_):
        joblib.held = [*getattr(joblib, "held", []), np.ones(80_000_000)]  # for ever
        time.sleep(1.1)  # joblib checks the memory of a worker once a second
        return np.array([os.getpid()], float)

    specs = [gpt2(width=16 * (1 + number)) for number in range(5)]
    store = RowStore(tmp_path, "tiny", provenance("test", ["a"], specs, 0, BATCH), (1,))
    fill(store, specs, measure, Workers(2))
    assert store.done.all()
    assert len(np.unique(store.rows)) > 2
    assert not recwarn.list


def test_what_was_measured_is_saved_as_it_goes(tmp_path, monkeypatch):
    source = provenance("test", ["a"], SPECS, 0, BATCH)
    store = RowStore(tmp_path, "tiny", source, (2,))
    on_disk = []

    def progress(*_):
        on_disk.append(int(RowStore(tmp_path, "tiny", source, (2,)).done.sum()))

    module = importlib.import_module("lmscout.statistics.collect")
    monkeypatch.setattr(module, "_SAVE_EVERY", -1.0)
    fill(store, SPECS, Counting(), Workers(1), progress)
    assert on_disk == [0, 0, 1, 3]
    assert RowStore(tmp_path, "tiny", source, (2,)).done.all()


def test_every_kind_of_architecture_has_every_statistic(tmp_path):
    specs = list(EVERY_KIND.values())
    singles = [(name,) for name in OPERATIONS]
    statistics = collect(specs, singles, folder=tmp_path, **SETTINGS)
    assert statistics.values.shape == (len(specs), 6, 20, 3)
    # Gradients through the LayerNorm of a hidden state this small are beyond what exp can hold.
    for spec, row in zip(specs, statistics.values, strict=True):
        assert not np.isnan(row[:, :, : spec.depth]).any()
    overflowed = {
        (INPUT_NAMES[place[1]], OPERATIONS[place[2]])
        for place in np.argwhere(np.isinf(statistics.values))
    }
    assert overflowed <= {("jacob", "exp"), ("grad", "exp")}


def test_a_folder_that_cannot_be_written_is_one_clear_line_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    calls = []
    with pytest.raises(LmscoutError, match="cannot be written") as raised:
        collect(
            SPECS,
            CHAINS,
            folder=tmp_path / "file" / "cache",
            **SETTINGS,
            progress=lambda *call: calls.append(call),
        )
    assert "\n" not in str(raised.value)
    assert calls == []
