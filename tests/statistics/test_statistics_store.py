import hashlib
import json
import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_specs import flexibert, gpt2

from lmscout.errors import LmscoutError
from lmscout.statistics import Batch
from lmscout.statistics.collect import FORMAT, RowStore, provenance

SPECS = [gpt2(), flexibert("SDP"), flexibert("DFT")]
SHAPE = (2, 3)


def source(seed=0, specs=SPECS):
    return provenance("test", ["a", "b"], specs, seed, Batch())


def opened(folder, name="tiny", **how):
    return RowStore(folder, name, source(**how), SHAPE)


def half_done(folder):
    """A store with its first and last row on disk."""
    store = opened(folder)
    store.set_row(0, np.arange(6.0).reshape(SHAPE))
    store.set_row(2, np.full(SHAPE, np.pi))
    store.save()
    return store


def expected_rows():
    rows = np.full((3, *SHAPE), np.nan, np.float32)
    rows[0] = np.arange(6.0).reshape(SHAPE)
    rows[2] = np.float32(np.pi)
    return rows


def assert_fresh(store):
    assert not store.done.any()
    assert np.isnan(store.rows).all()


def test_rows_come_back_as_they_were_saved(tmp_path):
    saved = half_done(tmp_path / "new" / "folder")
    store = opened(tmp_path / "new" / "folder")
    assert store.path == saved.path
    np.testing.assert_array_equal(store.rows, expected_rows())
    assert store.rows.dtype == np.float32
    assert store.done.tolist() == [True, False, True]
    # And can be filled further.
    store.set_row(1, np.zeros(SHAPE))
    store.save()
    assert opened(tmp_path / "new" / "folder").done.all()
    assert os.listdir(tmp_path / "new" / "folder") == [saved.path.name]


def test_nothing_is_on_disk_before_save(tmp_path):
    store = opened(tmp_path)
    store.set_row(0, np.zeros(SHAPE))
    assert os.listdir(tmp_path) == []
    assert_fresh(opened(tmp_path))


def test_infinities_nans_and_what_is_beyond_float32(tmp_path):
    store = opened(tmp_path)
    store.set_row(1, np.array([[np.inf, -np.inf, np.nan], [1e300, -1e300, 1e-300]]))
    store.save()
    np.testing.assert_array_equal(
        opened(tmp_path).rows[1], [[np.inf, -np.inf, np.nan], [np.inf, -np.inf, 0.0]]
    )


def test_a_float64_store_keeps_float64(tmp_path):
    store = RowStore(tmp_path, "wide", source(), (2,), np.float64)
    store.set_row(0, np.array([1e300, np.pi]))
    store.save()
    again = RowStore(tmp_path, "wide", source(), (2,), np.float64)
    assert again.rows[0].tolist() == [1e300, np.pi]


def test_the_header_tells_what_the_file_depends_on(tmp_path):
    path = half_done(tmp_path).path
    with safe_open(path, framework="numpy") as stored:
        header = json.loads(stored.metadata()["provenance"])
    assert header == {
        "what": "test",
        "columns": ["a", "b"],
        "seed": 0,
        "batch": {"size": 32, "length": 32, "seed": 0},
        "architectures": [spec.to_dict() for spec in SPECS],
        "format": FORMAT,
        "torch": source()["torch"],
    }
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    assert path.name == f"tiny-{digest[:16]}.safetensors"


def test_a_store_of_other_settings_is_another_file(tmp_path):
    path = half_done(tmp_path).path
    for other in (opened(tmp_path, seed=1), opened(tmp_path, specs=SPECS[::-1])):
        assert other.path != path
        assert_fresh(other)


def test_a_file_of_the_same_name_but_other_provenance_is_not_reused(tmp_path):
    path = half_done(tmp_path).path
    other = opened(tmp_path, seed=1)
    os.replace(path, other.path)
    assert_fresh(opened(tmp_path, seed=1))
    # A file that tells nothing, though its arrays fit, is not reused either.
    save_file(load_file(other.path), path)
    assert_fresh(opened(tmp_path))


def rewritten(path, change):
    with safe_open(path, framework="numpy") as stored:
        header = stored.metadata()
    save_file(change(load_file(path)), path, metadata=header)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {"rows": arrays["rows"]},
        lambda arrays: {"done": arrays["done"]},
        lambda arrays: {**arrays, "rows": arrays["rows"][:2]},
        lambda arrays: {**arrays, "rows": arrays["rows"].astype(np.float64)},
        lambda arrays: {**arrays, "done": arrays["done"][:1]},
    ],
    ids=["no done", "no rows", "a row short", "other precision", "done short"],
)
def test_a_file_whose_arrays_do_not_fit_is_started_anew(tmp_path, change):
    rewritten(half_done(tmp_path).path, change)
    assert_fresh(opened(tmp_path))


def test_a_damaged_file_is_started_anew_and_replaced(tmp_path):
    path = half_done(tmp_path).path
    whole = path.read_bytes()
    damaged = [whole[:size] for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1)]
    damaged += [b"\0" * len(whole), b"\xff" * len(whole), whole + b"\0"]
    for content in damaged:
        path.write_bytes(content)
        assert_fresh(opened(tmp_path))
    half_done(tmp_path)
    assert path.read_bytes() == whole


def test_what_cannot_be_read_is_started_anew(tmp_path):
    path = half_done(tmp_path).path
    path.unlink()
    path.mkdir()  # the one thing that even root cannot read as a file
    assert_fresh(opened(tmp_path))


@contextmanager
def files_at_most(size):
    """A disk on which a file cannot grow beyond a size: the kernel refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_leaves_the_old_file_and_one_clear_line(tmp_path):
    store = half_done(tmp_path)
    before = store.path.read_bytes()
    store.set_row(1, np.zeros(SHAPE))
    for size in (0, 10, len(before) // 2):
        with files_at_most(size), pytest.raises(LmscoutError, match="cannot be written") as raised:
            store.save()
        assert "\n" not in str(raised.value)
        assert str(store.path) in str(raised.value)
        assert os.listdir(tmp_path) == [store.path.name]
        assert store.path.read_bytes() == before
    np.testing.assert_array_equal(opened(tmp_path).rows, expected_rows())
    store.save()  # room again
    assert opened(tmp_path).done.all()


def test_a_save_into_a_folder_that_went_away_is_one_clear_line(tmp_path):
    store = opened(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    with pytest.raises(LmscoutError, match="cannot be written") as raised:
        store.save()
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    # Below a regular file and below /proc not even root can make a folder.
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(LmscoutError, match="LMSCOUT_CACHE") as raised:
            opened(folder)
        assert str(folder) in str(raised.value)
        assert "\n" not in str(raised.value)
    if os.path.isdir("/proc/self"):
        with pytest.raises(LmscoutError, match="cannot be written"):
            opened(Path("/proc/self/lmscout"))


@contextmanager
def ordinary_user():
    """Root may write into read-only folders: step down from it for a moment."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_read_only_folder_is_one_clear_line():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o555)
        with ordinary_user(), pytest.raises(LmscoutError, match="Permission denied") as raised:
            opened(folder)
        folder.chmod(0o755)
    assert name in str(raised.value)
    assert "LMSCOUT_CACHE" in str(raised.value)
    assert "\n" not in str(raised.value)
