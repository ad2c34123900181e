import importlib
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_specs import EVERY_KIND, flexibert, gpt2, llama

from lmscout.errors import LmscoutError
from lmscout.proxies import primitives
from lmscout.proxies.primitives import STACKS
from lmscout.statistics import Batch, Workers, full_reading
from lmscout.statistics.sketches import (
    MOMENTS,
    OWN_STACKS,
    collect_sketches,
    joined_sketches,
    sampled_places,
    spec_values,
)

BATCH = Batch(size=3, length=6)
SETTINGS = {"name": "tiny", "batch": BATCH, "workers": Workers(1)}
SPECS = list(EVERY_KIND.values())
SIZE = (8, 12)  # smaller than most tensors here, larger than some


@pytest.fixture(scope="module")
def sketches(tmp_path_factory):
    return collect_sketches(SPECS, folder=tmp_path_factory.mktemp("all"), size=SIZE, **SETTINGS)


@pytest.fixture(scope="module")
def readings():
    return [
        full_reading(spec.build(0).double(), BATCH.tokens(spec), spec.parameters())
        for spec in SPECS
    ]


def tensors_of(reading, leaf):
    read = {**reading.inputs, "act_grad": reading.act_grad}
    return [tensor for block in read[leaf] for tensor in block]


def same(left, right):
    """All numbers equal, bit for bit."""
    for stack, one in left.stacks.items():
        other = right.stacks[stack]
        for leaf in STACKS[stack]:
            assert torch.equal(one.samples[leaf], other.samples[leaf])
            assert torch.equal(one.moments[leaf], other.moments[leaf])
        for name in ("architecture", "block", "mixes", "rows", "columns"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(left.depth, right.depth)
    for name, values in left.spec.items():
        np.testing.assert_array_equal(values, right.spec[name])


@pytest.mark.parametrize("stack", OWN_STACKS)
def test_a_sample_is_the_same_rows_and_columns_of_every_leaf_of_a_stack(sketches, readings, stack):
    sketch = sketches.stacks[stack]
    for leaf in STACKS[stack]:
        tensors = [(a, one) for a, r in enumerate(readings) for one in tensors_of(r, leaf)]
        assert sketch.samples[leaf].shape == (len(tensors), *SIZE)
        assert sketch.architecture.tolist() == [architecture for architecture, _ in tensors]
        heights, widths = sketch.sampled_sizes()
        for place, (_, tensor) in enumerate(tensors):
            matrix = tensor.reshape(len(tensor), -1)
            assert (sketch.rows[place], sketch.columns[place]) == matrix.shape
            rows, columns = sampled_places(*matrix.shape, 0, SIZE)
            expected = torch.zeros(SIZE, dtype=torch.float64)
            expected[: len(rows), : len(columns)] = matrix[rows][:, columns]
            torch.testing.assert_close(sketch.samples[leaf][place], expected)
            assert (heights[place], widths[place]) == (len(rows), len(columns))


@pytest.mark.parametrize("stack", OWN_STACKS)
def test_moments_are_those_of_the_whole_tensor(sketches, readings, stack):
    definitions = {"low": torch.amin, "high": torch.amax}
    for leaf in STACKS[stack]:
        tensors = [one for reading in readings for one in tensors_of(reading, leaf)]
        for column, name in enumerate(MOMENTS):
            formula = definitions.get(name) or getattr(primitives, name)
            expected = torch.stack([formula(one) for one in tensors])
            got = sketches.stacks[stack].moments[leaf][:, column]
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_blocks_and_mixers_are_those_of_the_model(sketches, readings):
    linear = sketches.stacks["linear"]
    mixing = [one for reading in readings for block in reading.mixing for one in block]
    assert linear.mixes.tolist() == mixing
    for stack, leaf in (("linear", "weight"), ("act", "act"), ("head", "head")):
        blocks = [
            block
            for reading in readings
            for block, tensors in enumerate(reading.inputs[leaf])
            for _ in tensors
        ]
        assert sketches.stacks[stack].block.tolist() == blocks


def test_places_are_distinct_and_follow_from_seed_and_shape():
    rows, columns = sampled_places(100, 3, 0, (16, 16))
    assert len(rows.unique()) == len(rows) == 16
    assert columns.tolist() == [0, 1, 2]
    again, _ = sampled_places.__wrapped__(100, 3, 0, (16, 16))
    assert torch.equal(rows, again)
    assert not torch.equal(rows, sampled_places(100, 3, 1, (16, 16))[0])


def test_the_configuration_is_read_of_the_spec(sketches):
    for number, spec in enumerate(SPECS):
        expected = {"depth": spec.depth, "width": spec.width, "params": spec.parameters()}
        assert {name: values[number] for name, values in sketches.spec.items()} == expected
        assert spec_values(spec) == expected
        assert sketches.depth[number] == spec.depth


def test_a_subset_is_what_its_architectures_alone_give(sketches, tmp_path):
    chosen = [4, 0, 7]
    alone = collect_sketches(
        [SPECS[index] for index in chosen], folder=tmp_path, size=SIZE, **SETTINGS
    )
    subset = sketches.subset(chosen)
    order = {  # a subset keeps the tensors as they lie
        stack: torch.argsort(one.architecture, stable=True) for stack, one in subset.stacks.items()
    }
    for stack, one in subset.stacks.items():
        for leaf in STACKS[stack]:
            expected = alone.stacks[stack].samples[leaf]
            assert torch.equal(one.samples[leaf][order[stack]], expected)
        assert torch.equal(one.block[order[stack]], alone.stacks[stack].block)
    np.testing.assert_array_equal(subset.depth, alone.depth)
    np.testing.assert_array_equal(subset.spec["params"], alone.spec["params"])
    mask = np.isin(np.arange(len(SPECS)), chosen)
    same(sketches.subset(mask), sketches.subset(sorted(chosen)))


def test_parts_joined_are_the_whole(sketches):
    every = np.arange(len(SPECS))
    same(joined_sketches([sketches.subset(one) for one in np.split(every, [1, 5])]), sketches)


def test_two_workers_give_the_same_bits_as_one(sketches, tmp_path):
    settings = SETTINGS | {"workers": Workers(2)}
    same(collect_sketches(SPECS, folder=tmp_path, size=SIZE, **settings), sketches)


def test_what_was_collected_is_read_again(tmp_path, monkeypatch):
    specs = [gpt2(), flexibert("DFT"), gpt2()]
    first = collect_sketches(specs, folder=tmp_path, **SETTINGS)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("tiny-sketches-")
    for spec in specs:
        monkeypatch.setattr(type(spec), "build", None)
    same(collect_sketches(specs, folder=tmp_path, **SETTINGS), first)


def test_interrupted_work_is_continued(sketches, tmp_path):
    def interrupt(done, _):
        if done == 5:
            raise KeyboardInterrupt

    collect = partial(collect_sketches, SPECS, folder=tmp_path, size=SIZE, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        collect(progress=interrupt)
    (path,) = tmp_path.iterdir()
    stored = load_file(path)
    done = stored["done"].astype(bool)
    assert done.sum() == 5
    assert np.isnan(stored["rows"][~done]).all()
    calls = []
    continued = collect(progress=lambda *call: calls.append(call))
    assert calls == [(n, len(SPECS)) for n in range(5, len(SPECS) + 1)]
    same(continued, sketches)


def test_a_save_that_breaks_off_leaves_what_was_saved_before(sketches, tmp_path, monkeypatch):
    # What a full disk does, or a kill: there is a part, and the file is the old one.
    collecting = importlib.import_module("lmscout.statistics.collect")
    monkeypatch.setattr(collecting, "_SAVE_EVERY", -1.0)
    store = importlib.import_module("lmscout.statistics.collect")
    saves = []

    def save(tensors, path, metadata):
        saves.append(path)
        if len(saves) > 3:
            path.write_bytes(b"half")
            raise OSError("full")
        save_file(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", save)
        with pytest.raises(LmscoutError, match="full"):
            collect_sketches(SPECS, folder=tmp_path, size=SIZE, **SETTINGS)
    calls = []
    continued = collect_sketches(
        SPECS,
        folder=tmp_path,
        size=SIZE,
        progress=lambda *call: calls.append(call),
        **SETTINGS,
    )
    assert calls[0] == (3, len(SPECS))
    same(continued, sketches)


def test_a_tensor_that_is_not_finite_is_nan_throughout(tmp_path, monkeypatch):
    spec = llama()
    model = spec.build(0)
    with torch.no_grad():
        model.probe_points()[1].linear[2].weight[3, 5] = torch.inf
    monkeypatch.setattr(type(spec), "build", lambda *_: model)
    linear = collect_sketches([spec], folder=tmp_path, **SETTINGS).stacks["linear"]
    broken = (linear.block == 1).nonzero()[2]
    assert linear.samples["weight"][broken].isnan().all()
    assert linear.moments["weight"][broken].isnan().all()
    assert linear.samples["weight"].isnan().any((1, 2)).sum() == 1


def test_more_tensors_than_there_is_room_for_are_refused(tmp_path):
    with pytest.raises(LmscoutError, match="ROOM"):
        collect_sketches([flexibert("SDP", stack=12)], folder=tmp_path, **SETTINGS)
