import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from collecting_process import SPECS, collect_tiny
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

SCRIPT = Path(__file__).with_name("collecting_process.py")


def process(*arguments):
    """Start it in a group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *filter(None, sys.path)])},
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return collect_tiny(tmp_path_factory.mktemp("undisturbed"), 1)


def stored(folder):
    (path,) = folder.glob("tiny-*.safetensors")
    return path, load_file(path)


def assert_continued(folder, undisturbed):
    """The next call measures what is missing, and that alone."""
    path, arrays = stored(folder)
    done = arrays["done"].astype(bool)
    assert 0 < done.sum() < len(SPECS)
    assert np.isnan(arrays["rows"][~done]).all()
    # A mark on a row that is done: measuring it again would wipe it away.
    marked = int(np.flatnonzero(done)[0])
    assert arrays["rows"][marked, 0, 0, 0] == undisturbed.values[marked, 0, 0, 0]
    arrays["rows"][marked, 0, 0, 0] = -123.0
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
    save_file(arrays, path, metadata=header)

    calls = []
    statistics = collect_tiny(folder, 1, lambda *call: calls.append(call))
    assert calls == [(n, len(SPECS)) for n in range(done.sum(), len(SPECS) + 1)]
    assert statistics.path == path
    assert statistics.values[marked, 0, 0, 0] == -123.0
    expected = undisturbed.values.copy()
    expected[marked, 0, 0, 0] = -123.0
    assert statistics.values.tobytes() == expected.tobytes()
    assert stored(folder)[1]["done"].all()


def test_a_process_killed_in_the_middle_is_continued(tmp_path, undisturbed):
    run = process(tmp_path, 1, "SIGKILL", 5)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL, errors
    assert output.splitlines()[-1] == f"5 {len(SPECS)}"
    # It was killed between measuring the fifth row and saving it.
    assert stored(tmp_path)[1]["done"].sum() == 4
    assert_continued(tmp_path, undisturbed)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """Folders that a process with two workers filled: one whole, one until Control-C."""
    whole, cut = (tmp_path_factory.mktemp(name) for name in ("whole", "cut"))
    run = process(cut, 2, "wait", 3, whole)
    seen = [run.stdout.readline() for _ in range(4)]
    os.killpg(run.pid, signal.SIGINT)  # a terminal interrupts the whole group
    _, errors = run.communicate(timeout=60)
    assert seen[-1] == f"3 {len(SPECS)}\n", errors
    return whole, cut, run.returncode, errors


def test_two_workers_give_the_same_bits_as_one(two_workers, undisturbed):
    whole, *_ = two_workers
    assert stored(whole)[0].read_bytes() == undisturbed.path.read_bytes()


def test_control_c_with_workers_saves_what_is_done(two_workers, undisturbed):
    _, cut, code, errors = two_workers
    assert code in (-signal.SIGINT, 130), errors
    assert errors.rstrip().endswith("KeyboardInterrupt")  # and no advice from a library
    assert stored(cut)[1]["done"].sum() == 3
    assert_continued(cut, undisturbed)


def test_an_interruption_in_this_process_saves_what_is_done(tmp_path, undisturbed):
    def progress(done, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_tiny(tmp_path, 1, progress)
    assert stored(tmp_path)[1]["done"].sum() == 2
    assert_continued(tmp_path, undisturbed)


def test_a_failing_model_saves_what_is_done_before_it(tmp_path, undisturbed, monkeypatch):
    def build(spec, seed):
        raise MemoryError("no room for this one")

    with monkeypatch.context() as patch:
        patch.setattr(type(SPECS[-1]), "build", build)  # the last four are GPT-2
        with pytest.raises(MemoryError, match="this one"):
            collect_tiny(tmp_path, 1)
    assert stored(tmp_path)[1]["done"].sum() == 7
    assert_continued(tmp_path, undisturbed)
