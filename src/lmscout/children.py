"""Child processes that end with their parent and leave SIGINT, SIGTERM and SIGHUP to it.

A killed parent runs no code, so the child has to notice.  As a script, this module runs another
script that way, without lmscout: ``python children.py PARENT SCRIPT ARGUMENT ...``
"""

from __future__ import annotations

import ctypes
import gc
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that stop a command."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_WATCH_SECONDS = 0.5


def end_with_parent(parent: int) -> None:
    """End this process within a second after its parent, which may have ended already.

    On Linux the kernel kills this process; elsewhere a thread watches the parent's process id.
    """
    if not _killed_by_kernel():
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _killed_by_kernel() -> bool:
    if not sys.platform.startswith("linux"):
        return False
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
    """Block the signals that stop a command, in this thread and in children started meanwhile.

    A terminal sends them to the children as well, which would print a traceback each.  Children
    keep them blocked; here they reach another thread, or this one at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_trackers() -> None:
    """Start what tracks resources of processes, before `signals_held`.

    Multiprocessing and loky unblock signals where they start theirs.
    """
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import resource_tracker as loky_tracker

    resource_tracker.ensure_running()
    loky_tracker.ensure_running()


def load_modules(*modules: str) -> None:
    """Import the modules with which a process begins, without garbage collection meanwhile.

    Commands import them when their options are checked, so that `--help` does not wait for PyTorch.
    A sixth of the CPU time of importing PyTorch and transformers is garbage collection.  Later
    collections, of which the last is at exit, leave out what is loaded, which is a sixth more.
    """
    gc.disable()
    try:
        for one in modules:
            import_module(one)
    finally:
        gc.enable()
    gc.freeze()


def begin_worker(parent: int, *modules: str) -> None:
    """Begin a worker process: `end_with_parent`, then `load_modules`."""
    end_with_parent(parent)
    load_modules(*modules)


def python_child(module: str, call: str, *, finishes: bool = False) -> list[str]:
    """The command line of a Python process that ends with this one; start it in `signals_held`.

    Its work is a function of a module, called without arguments; `finishes` says that it ends by
    itself when its standard input does, after the work that it was given.
    """
    begin = f"end_with_parent({os.getpid()}); "
    work = f"load_modules({module!r}); from {module} import {call}; {call}()"
    code = "from lmscout.children import end_with_parent, load_modules; "
    return [sys.executable, "-P", "-c", code + (work if finishes else begin + work)]


def run_script(
    script: str, arguments: Sequence[str], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a Python script in a process that ends with this one, and wait for it.

    The script need not import lmscout.  It begins without garbage collection, as `load_modules`
    does, and enables it when its modules are imported.
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


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    gc.disable()  # while the script imports, see `load_modules`; it enables it
    runpy.run_path(sys.argv[0], run_name="__main__")
