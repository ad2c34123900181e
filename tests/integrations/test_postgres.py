"""Studies in PostgreSQL: processes are killed, the server crashes, and answers are lost."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from joining_process import (
    FIRST_STEP,
    PAIRS,
    alike,
    begin,
    ended,
    joined,
    lines,
    measured,
    wait_for,
)
from test_pruning_study import SETTINGS, SHAPE, pair, plans

from lmscout.errors import LmscoutError
from lmscout.pruning.study import PairStudy

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
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://lmscout@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-U", "lmscout", "-A", "trust", "--no-sync")
        self._options = f"-p {self.port} -k {folder} -h 127.0.0.1"
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


def test_no_pair_is_lost_or_measured_twice(server, tmp_path):
    expected = joined(tmp_path / "alone", tmp_path / "alone.log", seconds=0.0)
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    program, processes = begin(server.url, logs)
    wait_for(lambda: all(measured([log]) for log in logs))
    os.kill(processes[0], signal.SIGKILL)
    wait_for(lambda: measured(logs) > FIRST_STEP)
    server.control("restart", "-m", "immediate")
    codes, errors = ended(program)
    assert codes == [-signal.SIGKILL, 0, 0], errors
    pairs = joined(server.url, tmp_path / "later.log")
    assert alike(pairs) == alike(expected)
    assert len(pairs) == PAIRS
    assert lines(tmp_path / "later.log", "begun") == []
    begun = Counter(line for log in logs for line in lines(log, "begun"))
    assert len(begun) == PAIRS
    # The killed process loses the plan that it was measuring, and one that it was handing over.
    again = {line for line, count in begun.items() if count > 1}
    assert again <= set(lines(logs[0], "begun")[-2:])


def opened(url, name, **options):
    return PairStudy(url, SHAPE, SETTINGS, study=name, **options)


def add(study):
    study.add(pair(plans(3)[2]))


def lock(study):
    with study.locked(group="alike"):
        pass


ACCESSES = {  # of a study within a lock
    "open": lambda study: opened(study.opening[0], "new", patient=True).close(),
    "read": lambda study: study.refresh(),
    "add": add,
    "read a note": lambda study: study.note("tail"),
    "write a note": lambda study: study.note("tail", "0.5"),
    "see others": lambda study: study.others,
    "claim": lambda study: study.claim(plans(3), 2),
}


def test_every_access_waits_for_a_server_that_is_away(server):
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        studies = {name: stack.enter_context(opened(server.url, name)) for name in ACCESSES}
        ending = stack.enter_context(ExitStack())
        for study in studies.values():
            ending.enter_context(study.locked(group="alike"))
        unlocked = stack.enter_context(opened(server.url, "unlocked"))
        server.control("stop", "-m", "immediate")
        started = time.monotonic()
        with pytest.raises(LmscoutError, match="refused; check the storage's URL"):
            opened(server.url, "first")
        assert time.monotonic() - started < 5
        work = [threads.submit(access, studies[name]) for name, access in ACCESSES.items()]
        work.append(threads.submit(lock, unlocked))
        time.sleep(1)
        assert not any(one.done() for one in work)
        server.control("start")
        found = dict(zip(ACCESSES, [one.result(timeout=60) for one in work], strict=False))
        assert len(studies["add"]) == 1
        assert found["write a note"] == "0.5"
        assert found["claim"] == plans(3)[:2]
        server.control("stop", "-m", "immediate")
        work = threads.submit(ending.close)
        time.sleep(1)
        assert not work.done()
        server.control("start")
        work.result(timeout=60)
        with unlocked.locked():  # all locks are gone
            names = {one.study_name for one in unlocked._storage.get_all_studies()}
            assert sum("|lock|" in name for name in names) == 1


def test_a_process_does_not_wait_for_its_own_lock_that_it_could_not_release(server):
    with opened(server.url, "interrupted") as study:
        with suppress(KeyboardInterrupt), study.locked():
            server.control("stop", "-m", "immediate")
            raise KeyboardInterrupt
        server.control("start")
        with study.locked():
            pass


class Network:
    """Passes bytes on to a server; loses the answer to one commit, and the connection with it."""

    def __init__(self, server, lose=0):
        self._server, self._lose = server, lose
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = server.url.replace(str(server.port), str(self._listening.getsockname()[1]))
        self.commits = 0  # of transactions that write
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server.port))
                lost = threading.Event()
                for work in (self._ask, self._answer):
                    threading.Thread(target=work, args=(client, server, lost), daemon=True).start()

    def _ask(self, client, server, lost):
        written = False
        with suppress(OSError):
            while request := client.recv(1 << 16):
                written |= any(one in request for one in (b"INSERT", b"UPDATE", b"DELETE"))
                if written and b"COMMIT" in request:
                    written = False
                    self.commits += 1
                    if self.commits == self._lose:
                        lost.set()
                server.sendall(request)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _answer(self, client, server, lost):
        with client, server, suppress(OSError):
            while (answer := server.recv(1 << 16)) and not lost.is_set():
                client.sendall(answer)
            client.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listening.close()


def written(url, name):
    """Everything that is written to a study, through a network: what was found meanwhile."""
    three = plans(3)
    with opened(url, name) as study:
        note = study.note("tail", "0.5")
        with study.locked(group="alike"):
            claimed = study.claim(three, 2)
            for plan in claimed:
                study.add(pair(plan))
        return note, claimed, [one.plan for one in study.pairs()]


def test_a_commit_whose_answer_is_lost_does_nothing_twice(server):
    two = plans(3)[:2]
    opened(server.url, "tables").close()
    with Network(server) as network:
        assert written(network.url, "whole") == ("0.5", two, two)
        commits = network.commits
    assert commits > 10

    def lose(number):
        with Network(server, number) as network:
            assert written(network.url, f"lost {number}") == ("0.5", two, two)
            assert network.commits >= number

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lose, range(1, commits + 1)))
    with opened(server.url, "whole") as study:
        storage = study._storage
        found = [one for one in storage.get_all_studies() if one.study_name.startswith("lost")]
        assert len(found) == commits
        for one in found:
            assert len(storage.trial_numbers(one._study_id)) == 2
            assert one.user_attrs.keys() == study.study.user_attrs.keys()
