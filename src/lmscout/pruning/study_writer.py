"""Write pairs in a process of its own, while the next plans are measured.

A study writes every number of a plan by itself.  That takes as long as a plan of a small model
does on a GPU, and within one process it holds up whoever launches work on one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Self

from lmscout.errors import LmscoutError
from lmscout.pruning.background import begin_process
from lmscout.pruning.plan import Plan, Shape
from lmscout.pruning.storage import masked, shown_url
from lmscout.pruning.study import Pair, PairStudy

_WRITTEN = "written"


class StudyWriter:
    """Adds pairs to a study that is open here, one behind: to be used in a ``with`` block."""

    def __init__(self, pair_study: PairStudy) -> None:
        """Take the study; the process begins with the first pair."""
        self._pair_study = pair_study
        self._process: subprocess.Popen[str] | None = None
        self._pending: Pair | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self.settle()
            else:
                with suppress(LmscoutError):  # what went wrong first is what counts
                    self.settle()
        finally:
            if self._process is not None:
                self._process.communicate()

    def add(self, pair: Pair) -> None:
        """Have a pair written; what was handed over before is written by then.

        Raises:
            LmscoutError: the pair's value is not finite, or the pair before could not be written.
        """
        self._pair_study.check(pair)
        self.settle()
        if self._process is None:
            self._begin()
        self._pending = pair
        self._tell(asdict(pair))

    def settle(self) -> None:
        """Wait until everything is written.

        Raises:
            LmscoutError: it cannot be.
        """
        if self._pending is None:
            return
        pair, self._pending = self._pending, None
        assert self._process is not None
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if answer != _WRITTEN:
            reason = answer or (
                "the process that writes it has ended; pairs written before are kept: run the same "
                "command again"
            )
            raise LmscoutError(f"study at {self._pair_study.url}: {reason}")
        self._pair_study.remember(pair)

    def _begin(self) -> None:
        self._process = begin_process(__name__, text=True, finishes=True)
        self._tell(self._pair_study.opening)

    def _tell(self, what: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and its answer says why
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()


def serve() -> None:
    """Add to a study what standard input says, a line a pair, until it ends."""
    opening = json.loads(sys.stdin.readline())
    try:
        with PairStudy(**opening | {"shape": Shape(*map(tuple, opening["shape"]))}) as pair_study:
            for line in sys.stdin:
                pair_study.add(_pair(json.loads(line)))
                print(_WRITTEN, flush=True)
    except Exception as error:  # whatever it is, who measures has to hear of it
        url = str(opening["storage"])
        words = " ".join(masked(str(error), url).split()) or type(error).__name__
        print(words.removeprefix(f"study at {shown_url(url)}: "), flush=True)


def _pair(update: dict[str, Any]) -> Pair:
    """The pair of which `asdict` gave this."""
    plan = Plan(tuple(update["plan"]["attention"]), tuple(update["plan"]["mlp"]))
    trajectory = tuple((tokens, loss_increase) for tokens, loss_increase in update["trajectory"])
    return Pair(**update | {"plan": plan, "trajectory": trajectory})
