"""Processes that begin with lmscout's modules loaded, which take most of the time of short ones.

A server, started once, has imported them and forks for each process; nothing has run in it.
"""

import multiprocessing
import signal

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["lmscout.pruning.workflow", "lmscout.discovery"])


def start(function, *arguments, daemon=True):
    """Start a process that calls a function of a module, with arguments that can be pickled.

    A daemon ends with the tests, and cannot have children by multiprocessing.
    """
    process = _SERVER.Process(target=_call, args=(function, *arguments), daemon=daemon)
    process.start()
    return process


def exit_code(process, seconds=120):
    """Wait for a process; its exit code, minus the number of the signal that ended it."""
    process.join(seconds)
    assert process.exitcode is not None
    return process.exitcode


def pipe():
    """Both ends of a connection, which can be arguments."""
    return _SERVER.Pipe()


def _call(function, *arguments):
    # Whoever runs the tests in the background may have had them ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function(*arguments)
