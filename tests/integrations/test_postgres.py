"""Three processes on one study in PostgreSQL: one is killed, and the server crashes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "pruning"))
import joining_process  # noqa: E402

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'lmscout[postgres]'")


def programs():
    """The folder of initdb and pg_ctl, which Debian keeps off the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not folders:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return folders[0]


class Server:
    """A PostgreSQL server of its own; it refuses to run as root."""

    def __init__(self, folder):
        self._bin, self._data = programs(), folder / "data"
        self._as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self._as:
            for one in [folder, *folder.parents]:  # pytest's folders are for their owner alone
                if one.owner() == "root" and str(one).startswith("/tmp/"):
                    one.chmod(one.stat().st_mode | 0o011)
            shutil.chown(folder, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://lmscout@127.0.0.1:{self._port}/postgres"
        self._run("initdb", "-U", "lmscout", "-A", "trust", "--no-sync")
        self._options = f"-p {self._port} -k {folder} -h 127.0.0.1"
        self.control("start")

    def control(self, command, *arguments):
        self._run("pg_ctl", command, "-w", "-o", self._options, "-l", "/dev/null", *arguments)

    def _run(self, program, *arguments):
        subprocess.run(
            [*self._as, self._bin / program, "-D", self._data, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("postgres"))
    try:
        yield found
    finally:
        found.control("stop", "-m", "immediate")


def begin(url, log):
    paths = [str(TESTS / "pruning"), *filter(None, sys.path)]
    return subprocess.Popen(
        [sys.executable, joining_process.__file__, url, log],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def lines(log, what):
    found = log.read_text().splitlines() if log.exists() else []
    return [line for line in found if line.startswith(what)]


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def measured(logs):
    return sum(len(lines(log, "measured")) for log in logs)


def alike(pairs):
    return sorted(
        (one.round, one.plan.attention, one.plan.mlp, one.value, one.origin, one.trajectory)
        for one in pairs
    )


# One run in about seven ends with an error of a process while the server starts again.
@pytest.mark.slow
def test_no_pair_is_lost_or_measured_twice(server, tmp_path):
    expected = joining_process.joined(tmp_path / "alone", tmp_path / "alone.log", seconds=0.0)
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    processes = [begin(server.url, log) for log in logs]
    assert [one.stdout.readline() for one in processes] == ["ready\n"] * 3
    (tmp_path / "go").touch()
    wait_for(lambda: all(measured([log]) for log in logs))
    processes[0].send_signal(signal.SIGKILL)
    processes[0].communicate()
    wait_for(lambda: measured(logs) > 24)  # in the second step
    server.control("restart", "-m", "immediate")
    errors = [one.communicate(timeout=120)[1] for one in processes[1:]]
    assert [one.returncode for one in processes] == [-signal.SIGKILL, 0, 0], errors
    pairs = joining_process.joined(server.url, tmp_path / "later.log")
    assert alike(pairs) == alike(expected)
    assert len(pairs) == joining_process.PAIRS
    assert lines(tmp_path / "later.log", "begun") == []
    begun = Counter(line for log in logs for line in lines(log, "begun"))
    assert len(begun) == joining_process.PAIRS
    # The killed process loses the plan that it was measuring, and one that it was handing over.
    again = {line for line, count in begun.items() if count > 1}
    assert again <= set(lines(logs[0], "begun")[-2:])
    assert all(lines(log, "measured") for log in logs)
