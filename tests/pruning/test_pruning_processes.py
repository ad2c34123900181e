"""A process that calls functions: what comes back, what goes wrong, and that it ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from operator import truediv
from pathlib import Path

import pytest

from lmscout.errors import LmscoutError
from lmscout.pruning.background import Beside
from lmscout.pruning.plan import Plan, Shape

linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc says what is running")


def gone(pid, seconds=20):
    """Whether a process is there no more, after some time at most; one that waits to be read is."""
    until = time.monotonic() + seconds
    while os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_it_answers_and_passes_errors_on_and_ends():
    with Beside("counts") as there:
        own = there.submit(os.getpid)
        others = [there.submit(truediv, place, 2) for place in range(4)]
        assert own.result() not in (os.getpid(), os.getppid())
        assert [one.result() for one in others] == [0.0, 0.5, 1.0, 1.5]
        there.submit(print, "not for who asks", flush=True).result()
        shape = Shape((2,), (3,), (1,), (1,))
        with pytest.raises(LmscoutError, match=r"^plan: block 0 keeps 9 units of attention"):
            there.submit(shape.check, Plan((9,), (1,))).result()
        with pytest.raises(ZeroDivisionError) as caught:
            there.submit(truediv, 1, 0).result()
        assert "in another process" in caught.value.__notes__[0]
        os.kill(own.result(), signal.SIGINT)  # Control-C is for who asks
        assert there.submit(truediv, 8, 2).result() == 4
        under_way = there.submit(time.sleep, 60)
        while not under_way.running():
            time.sleep(0.01)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert isinstance(under_way.exception(), LmscoutError)
    with pytest.raises(ProcessLookupError):
        os.kill(own.result(), 0)


def test_one_that_was_killed_is_told_of():
    with Beside("counts") as there:
        there.submit(os.kill, there.submit(os.getpid).result(), signal.SIGKILL)
        with pytest.raises(LmscoutError, match=r"the process that counts has ended \(exit code -9"):
            there.submit(truediv, 1, 2).result()


BEGUN = """
    import os, signal, time
    from operator import truediv
    from lmscout.pruning import background as processes


    first = processes.Beside("counts")
    first.submit(exec, "import builtins; from lmscout.pruning import background as processes;"
                       "builtins.second = processes.Beside('counts')").result()
    second = first.submit(eval, "second.submit(__import__('os').getpid).result()").result()
    print(first.submit(os.getpid).result(), second, flush=True)
    first.submit(exec, "second.submit(__import__('time').sleep, 60)").result()
    first.submit(time.sleep, 60)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@linux
def test_who_began_it_is_killed_and_it_ends_with_all_that_it_began():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BEGUN)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    first, second = map(int, done.stdout.split())
    assert gone(first)
    assert gone(second)
