"""Write pairs to a study from a separate process.

A study writes a row per parameter of a plan, which takes as long as a plan of a small model on a
GPU and would hold up the threads that launch its work.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from typing import Any, Self

from lmscout.children import python_child, signals_held
from lmscout.errors import LmscoutError
from lmscout.pruning.storage import masked, shown_url
from lmscout.pruning.study import Pair, PairStudy

_ENDED = (
    "the process that writes it has ended; pairs written before are kept: run the same command "
    "again"
)


class StudyWriter:
    """Adds pairs to an open study, one pair behind: a context manager."""

    def __init__(self, pair_study: PairStudy) -> None:
        self._pair_study = pair_study
        self._process: Any = None  # starts with the first pair
        self._pending: Pair | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            with suppress(*[LmscoutError] if error else []):  # the first error counts
                self.flush()
        finally:
            if self._process is not None:
                self._process.communicate()

    def add(self, pair: Pair) -> None:
        """Hand a pair to the process; LmscoutError if the one before could not be written."""
        self._pair_study.check(pair)
        self.flush()
        if self._process is None:
            self._process = _start()
            self._send(self._pair_study.opening)
        self._pending = pair
        self._send(pair)

    def flush(self) -> None:
        """Wait until every pair is written; LmscoutError if one could not be."""
        if self._pending is None:
            return
        pair, self._pending = self._pending, None
        try:
            problem = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            problem = _ENDED
        if problem:
            raise LmscoutError(f"study at {self._pair_study.url}: {problem}")
        self._pair_study.remember(pair)

    def _send(self, message: object) -> None:
        with suppress(BrokenPipeError):  # the process has ended; `flush` reports why
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()


def _start() -> subprocess.Popen[bytes]:
    """Start the process, which ends with its standard input, after the last pair."""
    here = os.getcwd()
    with signals_held():
        return subprocess.Popen(
            python_child(__name__, "serve", finishes=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(one or here for one in sys.path)},
        )


def serve() -> None:
    """Add pairs from standard input to a study, and answer each with "" or the problem."""

    def answer(problem: str) -> None:
        pickle.dump(problem, sys.stdout.buffer)
        sys.stdout.flush()

    storage, shape, settings, study = pickle.load(sys.stdin.buffer)
    try:
        opened = PairStudy(storage, shape, settings, study=study, patient=True)
        with opened as pair_study, suppress(EOFError):
            while True:
                pair_study.add(pickle.load(sys.stdin.buffer))
                answer("")
    except Exception as error:  # any error is a problem of the run
        problem = " ".join(masked(str(error), storage).split()) or type(error).__name__
        answer(problem.removeprefix(f"study at {shown_url(storage)}: "))
