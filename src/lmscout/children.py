"""Child processes that end with their parent and leave the signals that stop a command to it.

A parent that is killed runs no code, so a child has to notice by itself.  Run as a script, this
module does so for another script, without lmscout:

    python children.py PARENT SCRIPT ARGUMENT ...
"""

from __future__ import annotations

import ctypes
import os
import pickle
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a command to stop."""

WORKER_ENDED = (
    "a worker process has ended ({}), perhaps because memory ran out; finished work is kept: run "
    "the same command again with fewer --workers"
)
"""The error where a worker ends early; takes what is known of its end."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_WATCH_SECONDS = 0.5


def end_with_parent(parent: int) -> None:
    """End this process within a second after its parent has ended, however that ended.

    On Linux the kernel kills this process; elsewhere a thread watches the parent.

    Args:
        parent: process id of the parent, which may have ended already.
    """
    watched = sys.platform.startswith("linux") and _killed_by_kernel()
    if not watched:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _killed_by_kernel() -> bool:
    try:
        done: int = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    except (OSError, AttributeError):
        return False
    return done == 0


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back the signals that stop a command, in this thread and in children started meanwhile.

    A terminal sends them to the children as well, which would print a traceback each.  Children
    keep them blocked; here they are delivered to another thread, or at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def python_child(module: str, call: str, *, finishes: bool = False) -> list[str]:
    """The command line of a Python process for `signals_held`, that ends with this one.

    Args:
        module: full name of a module.
        call: name of a function of the module without arguments, the work of the process.
        finishes: whether the function ends by itself with its standard input, and finishes before
            that what it was given.
    """
    begin = f"from lmscout.children import end_with_parent; end_with_parent({os.getpid()}); "
    work = f"from {module} import {call}; {call}()"
    return [sys.executable, "-P", "-c", work if finishes else begin + work]


def run_script(
    script: str, arguments: Sequence[str], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a Python script in a process that ends with this one, and wait for its end.

    Args:
        script: path of the script; it need not know lmscout.
        arguments: of the script.
        env: its environment.

    Returns:
        Its exit code and what it printed.
    """
    command = [sys.executable, "-P", __file__, str(os.getpid()), script, *arguments]
    with signals_held():
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    with process:
        try:
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_pickled(parent: int, call: bytes, *arguments: Any) -> None:
    """Call a function in a child, which ends with its parent from before the function's imports on.

    Args:
        parent: process id of the parent.
        call: a pickled tuple of the function and its first arguments.
        arguments: further arguments.
    """
    end_with_parent(parent)
    function, *first = pickle.loads(call)
    function(*first, *arguments)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
