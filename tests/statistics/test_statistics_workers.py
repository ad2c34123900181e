"""Worker processes end with the outermost call that uses them."""

import os
import signal
from pathlib import Path

import pytest
from collecting_process import collect_tiny

from lmscout.statistics.workers import worker_processes


def workers():
    """Processes of joblib's that this one has started."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", entry, "cmdline").read_text()
            status = Path("/proc", entry, "status").read_text()
        except OSError:
            continue
        if "LokyProcess" in command and f"PPid:\t{os.getpid()}\n" in status:
            found.add(int(entry))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc says what is running")
def test_no_worker_is_left_and_no_handler_is_changed(tmp_path):
    signals = [one for one in signal.Signals if one not in (signal.SIGKILL, signal.SIGSTOP)]
    handlers = [signal.getsignal(one) for one in signals]
    with worker_processes():
        one = collect_tiny(tmp_path / "one", 2)
        first = workers()
        assert len(first) == 2
        two = collect_tiny(tmp_path / "two", 2)
        assert workers() == first  # they start once
    assert workers() == set()
    assert one.values.tobytes() == two.values.tobytes()
    assert [signal.getsignal(one) for one in signals] == handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
