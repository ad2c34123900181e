"""Signals end a command within five seconds, with one line, its code, and no process left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from forked import errors

linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc says what is running")

CONTINUES = "lmscout: interrupted; the same command continues where this one stopped\n"
DESIGN = ["design", "nano", "--proxy", "snip", "--max-params", "100k", "--evaluations", "2000"]
PRELUDE = """
    import signal
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def begin(code, folder, *arguments):
    """A process in a group of its own; who runs the tests may have had it ignore signals."""
    environment = os.environ | {"LMSCOUT_CACHE": str(folder), "STOPPING_TEST": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )


def begin_command(folder, *arguments):
    return begin("from lmscout.__main__ import main; main()", folder, *arguments)


def processes(folder, name=""):
    """Those that have the environment of a process that `begin` began in a folder."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            variables = Path("/proc", entry, "environ").read_bytes().split(b"\0")
            command = Path("/proc", entry, "cmdline").read_text()
        except OSError:
            continue
        if f"STOPPING_TEST={folder}".encode() in variables and name in command:
            found.append(int(entry))
    return found


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def designing(tmp_path):
    """A search whose two workers have begun, and have saved what they read."""
    run = begin_command(tmp_path, *DESIGN, "--workers", "2")
    wait_for(lambda: run.poll() is not None or len(processes(tmp_path, "LokyProcess")) == 2)
    wait_for(
        lambda: run.poll() is not None or list(tmp_path.glob("statistics/design-*.safetensors"))
    )
    assert run.poll() is None, run.communicate()
    yield run
    run.kill()
    run.communicate()


@linux
def test_sigterm_to_the_main_process_ends_it_as_control_c_does(designing, tmp_path):
    started = time.monotonic()
    designing.send_signal(signal.SIGTERM)
    out, err = designing.communicate(timeout=60)
    err = errors(err)
    assert time.monotonic() - started < 5
    assert (designing.returncode, out, err) == (128 + signal.SIGTERM, "", CONTINUES)
    wait_for(lambda: not processes(tmp_path), 10)


@linux
def test_workers_end_with_a_main_process_that_was_killed(designing, tmp_path):
    designing.kill()
    wait_for(lambda: not processes(tmp_path), 10)


@linux
def test_a_killed_worker_is_one_line(designing, tmp_path):
    os.kill(processes(tmp_path, "LokyProcess")[0], signal.SIGKILL)
    out, err = designing.communicate(timeout=60)
    err = errors(err)
    assert (designing.returncode, out) == (2, "")
    assert err.startswith("lmscout: a worker process has ended (")
    assert err.endswith("run the same command again with fewer workers\n")
    assert err.count("\n") == 1
    assert not processes(tmp_path, "LokyProcess")


LATE = """
    import os, time
    from lmscout.cli import stopping

    stopping.listen()
    with stopping.stoppable():
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            print("ending", flush=True)
            time.sleep(60)
"""


def test_a_second_signal_ends_at_once(tmp_path):
    run = begin(LATE, tmp_path)
    assert run.stdout.readline() == "begun\n"
    run.send_signal(signal.SIGINT)
    assert run.stdout.readline() == "ending\n"
    time.sleep(0.2)
    started = time.monotonic()
    run.send_signal(signal.SIGINT)
    err = errors(run.communicate(timeout=60)[1])
    assert time.monotonic() - started < 2
    assert (run.returncode, err) == (130, CONTINUES)


def test_what_does_not_end_in_time_is_ended(tmp_path):
    run = begin(LATE, tmp_path)
    assert run.stdout.readline() == "begun\n"
    started = time.monotonic()
    run.send_signal(signal.SIGHUP)
    err = errors(run.communicate(timeout=60)[1])
    assert time.monotonic() - started < 6
    assert (run.returncode, err) == (128 + signal.SIGHUP, CONTINUES)


LOST = """
    import time
    from lmscout.cli import stopping


    class Dropped:
        def __del__(self):
            print("begun", flush=True)
            time.sleep(60)


    stopping.listen()
    with stopping.stoppable():
        Dropped()
        time.sleep(60)
"""


def test_an_interruption_that_a_destructor_drops_is_not_lost(tmp_path):
    run = begin(LOST, tmp_path)
    assert run.stdout.readline() == "begun\n"
    started = time.monotonic()
    run.send_signal(signal.SIGTERM)
    err = errors(run.communicate(timeout=60)[1])
    assert time.monotonic() - started < 3.5
    assert (run.returncode, err) == (143, CONTINUES)


EARLY = """
    import os, sys, time
    from lmscout.__main__ import main


    class Slow:
        def find_spec(self, name, path, target=None):
            if name == os.environ["SLOW_MODULE"]:
                print("begun", flush=True)
                time.sleep(60)


    sys.meta_path.insert(0, Slow())
    main()
"""


@pytest.mark.parametrize("module", ["lmscout.cli.stopping", "typer", "torch"])
def test_control_c_while_modules_are_loaded_is_one_line(tmp_path, monkeypatch, module):
    monkeypatch.setenv("SLOW_MODULE", module)
    run = begin(EARLY, tmp_path, *DESIGN)
    assert run.stdout.readline() == "begun\n"
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    err = errors(err)
    assert (run.returncode, out) == (130, "")
    assert err.startswith("lmscout: interrupted")
    assert err.count("\n") == 1
