"""How a command ends when a signal stops it: one line, within five seconds, no traceback.

The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the main thread, so that finished
work is saved as for Control-C.  A second one ends the process at once; so does a thread that
receives signals even while the main thread runs compiled code.  Child processes end with this one
(`lmscout.children`).  No library call installs any of this.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from lmscout.children import STOPPING

SECONDS = 4.0
"""From the first signal to the end of the process, at most."""

_TOGETHER = 0.1  # seconds within which signals are one: of `timeout`, of a terminal that closes
_QUIET = "ignore:resource_tracker:UserWarning"
_CONTINUES = "; the same command continues where this one stopped"
_AFTER_STOP = {
    "eval": "; the same command starts again",
    "demo": "; the same command starts again, with the cached statistics",
}


class _State:
    """Signals received, and their effect."""

    def __init__(self) -> None:
        self.working = False  # whether a KeyboardInterrupt ends the work
        self.received = 0  # number of the first signal; 0 before
        self.first = 0.0  # its time
        self.again = False  # whether the KeyboardInterrupt was lost and is raised again
        self.resent = 0  # own signals that `_watch` has not received yet
        self.printed = False  # whether the line has been printed
        self.ending = threading.Lock()
        self.receiver, self.sender = socket.socketpair()
        self.sender.setblocking(False)

    def is_second(self) -> bool:
        return time.monotonic() - self.first > _TOGETHER


_listening: list[_State] = []  # one at most


def listen() -> Callable[[], None]:
    """Install the signal handlers, in the main thread of a command; returns what undoes it."""
    state = _State()
    _listening[:] = [state]
    handlers = {
        one: signal.getsignal(one) for one in STOPPING if signal.getsignal(one) != signal.SIG_IGN
    }
    wakeup = signal.set_wakeup_fd(state.sender.fileno(), warn_on_full_buffer=False)
    for one in handlers:
        signal.signal(one, _handle)
    # If the process ends at once, a process of joblib's removes its semaphores, with a warning.
    known = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (known, _QUIET)))
    unraisable, in_thread = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = _quiet_after_stop(unraisable)
    threading.excepthook = _quiet_after_stop(in_thread)
    thread = threading.Thread(target=_watch, args=(state,), daemon=True)
    thread.start()

    def undo() -> None:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook, threading.excepthook = unraisable, in_thread
        state.sender.close()
        thread.join(1.0)  # ends since its socket is closed
        state.receiver.close()
        del os.environ["PYTHONWARNINGS"]
        if known is not None:
            os.environ["PYTHONWARNINGS"] = known
        _listening.clear()

    return undo


def finish() -> None:
    """Ignore further signals: the work is done, and unloading modules takes a while."""
    for one in STOPPING:
        if signal.getsignal(one) is _handle:
            signal.signal(one, signal.SIG_IGN)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a signal interrupt the block; then print one line and exit with 128 + its number.

    SystemExit if a signal was received, whatever the block raised.
    """
    undo = None if _listening else listen()
    (state,) = _listening
    try:
        state.working = True
        try:
            yield
        finally:
            state.working = False
    except BaseException as error:
        if not state.received and isinstance(error, KeyboardInterrupt):
            state.received = signal.SIGINT  # raised by no signal
        if not state.received:
            raise
    finally:
        if undo:
            undo()
    if state.received:
        _print_line(state)
        if undo is None:  # unloading all modules may take seconds
            atexit._run_exitfuncs()
            os._exit(128 + state.received)
        sys.exit(128 + state.received)


def is_stopping() -> bool:
    """Whether a signal that ends the command has been received."""
    return any(state.received for state in _listening)


def _handle(number: int, _: FrameType | None) -> None:
    """The Python handler, which the main thread runs between two instructions."""
    (state,) = _listening
    if state.again or (state.working and not state.received):
        if not state.received:
            state.received, state.first = number, time.monotonic()
        state.again = False
        warnings.simplefilter("ignore")  # of interrupted libraries
        raise KeyboardInterrupt
    if not state.received or state.is_second():
        _end(state, number)


def _watch(state: _State) -> None:
    """End the process if the main thread does not in time."""
    until, first = None, 0
    while True:
        state.receiver.settimeout(None if until is None else max(0.0, until - time.monotonic()))
        try:
            numbers = state.receiver.recv(64)
        except TimeoutError:
            _end(state, first)
        if not numbers:  # the socket is closed
            return
        for number in numbers:
            if number not in STOPPING or signal.getsignal(number) is not _handle:
                continue
            if state.resent:
                state.resent -= 1
                continue
            if until is None and (state.working or state.received):
                until, first = time.monotonic() + SECONDS, number
                state.first = state.first or time.monotonic()
            elif until is None or state.is_second():
                _end(state, number)


def _end(state: _State, number: int) -> NoReturn:
    """End the process now; files are written atomically, and children end by themselves."""
    if not state.ending.acquire(blocking=False):
        while True:  # another thread ends the process
            time.sleep(1)
    state.received = state.received or number
    _print_line(state)
    os._exit(128 + state.received)


def _print_line(state: _State) -> None:
    if state.printed:
        return
    state.printed = True
    (command,) = sys.argv[1:2] or ("",)
    line = f"lmscout: interrupted{_AFTER_STOP.get(command, _CONTINUES)}\n"
    with suppress(OSError, ValueError, AttributeError):  # the terminal may be gone
        sys.stdout.flush()
    with suppress(OSError):
        if os.isatty(2):
            line = f"\x1b[?25h\r\x1b[K{line}"  # a progress bar hides the cursor
        os.write(2, line.encode())


def _quiet_after_stop(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """A hook for uncaught exceptions that is silent once a signal has been received.

    A KeyboardInterrupt that was raised where it is dropped, as in a destructor, is raised again.
    """

    def quiet(error: Any) -> None:
        if not is_stopping():
            hook(error)
        elif isinstance(error.exc_value, KeyboardInterrupt) and _listening[0].working:
            _listening[0].again = True
            _listening[0].resent += 1
            threading.Timer(0.01, _raise_again, (_listening[0].received,)).start()

    return quiet


def _raise_again(number: int) -> None:
    if hasattr(signal, "pthread_kill"):  # a call in which the main thread waits ends as well
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)
