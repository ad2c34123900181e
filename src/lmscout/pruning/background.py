"""Processes that work beside the one that measures, and end with it.

What is done in Python beside the threads that launch work on GPUs holds them up, as one thread of
a process alone is in the interpreter at a time.  So it is done elsewhere.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, ParamSpec, Self, TypeVar, cast

from lmscout.children import python_child, signals_held
from lmscout.errors import LmscoutError

_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")

_LENGTH = struct.Struct("!Q")
_PATIENCE = 5  # seconds in which a process that is told to end does so


def begin_process(
    module: str, *, text: bool = False, finishes: bool = False
) -> subprocess.Popen[Any]:
    """Run a module's `serve` in a process that reads from this one, and answers it.

    It ends with this process, however that ends, and leaves signals that stop a command to it.

    Args:
        module: by its whole name.
        text: whether what is told and answered is text.
        finishes: whether it ends with its standard input, when what it was given is done; else it
            ends at once.
    """
    here = os.getcwd()
    with signals_held():
        return subprocess.Popen(
            python_child(module, "serve", finishes=finishes),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=text,
            # Modules are found where they are found here, and nowhere else.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(one or here for one in sys.path)},
        )


class Beside(Executor):
    """A process that calls functions, one after the other: to be used in a ``with`` block.

    What it is doing ends with the block, or with this process, if that is killed.
    """

    def __init__(self, doing: str) -> None:
        """Begin the process.

        Args:
            doing: what it does, for the message where it has ended: ``proposes plans``.
        """
        self._doing = doing
        self._process: subprocess.Popen[bytes] = begin_process(__name__)
        self._waiting = ThreadPoolExecutor(1)
        _OPEN.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it is doing, and those that it began."""
        _OPEN.discard(self)
        self._waiting.shutdown(wait=False, cancel_futures=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # what was not told any more
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        self._process.kill()
        self._process.wait()
        self._waiting.shutdown()
        self._process.stdout.close()

    def submit(
        self,
        function: Callable[_Arguments, _Result],
        /,
        *arguments: _Arguments.args,
        **named: _Arguments.kwargs,
    ) -> Future[_Result]:
        """Have a function called there.

        Args:
            function: one that can be imported.
            arguments: of it; what they hold is copied.
            named: the same.

        Returns:
            What comes of it, an error as well.
        """
        return self._waiting.submit(self._call, function, arguments, named)

    def _call(
        self,
        function: Callable[..., _Result],
        arguments: tuple[object, ...],
        named: dict[str, object],
    ) -> _Result:
        update = pickle.dumps((function, arguments, named), pickle.HIGHEST_PROTOCOL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError, ValueError):  # it has ended, or is to: there is no answer
            _write(self._process.stdin, update)
        answer = _read(self._process.stdout)
        if answer is None:
            raise LmscoutError(
                f"the process that {self._doing} has ended (exit code {self._process.wait()}): "
                "run the same command again; it goes on where this one stopped"
            )
        good, result = pickle.loads(answer)
        if not good:
            raise result
        return cast(_Result, result)


_OPEN: set[Beside] = set()  # that this process has begun


def serve() -> None:
    """Call what standard input asks for, one after the other, until it ends."""
    # What libraries print is not for who asks.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asked: SimpleQueue[bytes] = SimpleQueue()

    def listen() -> None:
        while (update := _read(sys.stdin.buffer)) is not None:
            asked.put(update)
        for one in tuple(_OPEN):
            one.close()
        os._exit(0)  # nobody is there any more, whatever is under way

    Thread(target=listen, daemon=True).start()
    while True:
        _write(answers, _answered(asked.get()))


def _answered(update: bytes) -> bytes:
    """Whether a call came to an end, and what came of it."""
    try:
        function, arguments, named = pickle.loads(update)
        return pickle.dumps((True, function(*arguments, **named)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever it is, who asks has to hear of it
        if not isinstance(error, LmscoutError):
            error.add_note(f"in another process: {traceback.format_exc().rstrip()}")
        try:
            return pickle.dumps((False, error))
        except Exception:  # one that holds what cannot be told
            return pickle.dumps((False, RuntimeError(traceback.format_exc().rstrip())))


def _write(stream: IO[bytes], message: bytes) -> None:
    stream.write(_LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
    """A message; None where the stream has ended."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    message = stream.read(length)
    return message if len(message) == length else None
