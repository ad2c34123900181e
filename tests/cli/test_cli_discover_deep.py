"""A search of the deep space as a process: killed and continued, by one worker or two."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SEARCH = ("--space", "deep", "--search", 12, "--evaluations", 10, "--searches", 2, "--json", "-")


@pytest.fixture(scope="module")
def command(flexibert_file, cache):
    def arguments(out, workers):
        lmscout = Path(sys.executable).with_name("lmscout")
        where = f"flexibert:{flexibert_file}"
        given = ("discover", where, *SEARCH, "--out", out, "--workers", workers)
        return [str(lmscout), *map(str, given)]

    return arguments


@pytest.fixture(scope="module")
def environment(cache):
    return os.environ | {"LMSCOUT_CACHE": str(cache)}


@pytest.fixture(scope="module")
def finished(server, environment, tmp_path_factory):
    """Run a command to its end: its result."""

    def run(command):
        folder = tmp_path_factory.mktemp("output")
        files = folder / "out", folder / "err"
        assert server.run(command[1:], folder, environment, *files, seconds=300) == 0, files
        result = json.loads(files[0].read_text())
        return {name: one for name, one in result.items() if name != "seconds"}

    return run


@pytest.fixture(scope="module")
def undisturbed(command, finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return finished(command(out, 1)), (out / "hall_of_fame.csv").read_text()


def test_killed_and_continued_it_ends_with_the_same_hall_of_fame(
    command, environment, finished, undisturbed, tmp_path
):
    out = tmp_path / "run"
    with subprocess.Popen(
        command(out, 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        until = time.monotonic() + 120
        while not list(out.glob("evaluations/*.parquet")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (out / "result.json").exists()
    result, hall = undisturbed
    assert finished(command(out, 1)) == result
    assert (out / "hall_of_fame.csv").read_text() == hall


def test_two_workers_end_with_the_same_hall_of_fame(command, finished, undisturbed, tmp_path):
    result, hall = undisturbed
    assert finished(command(tmp_path / "run", 2)) == result
    assert (tmp_path / "run" / "hall_of_fame.csv").read_text() == hall
