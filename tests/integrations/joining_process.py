"""Processes that join the measuring of a study, in which a plan takes a fifth of a second.

Usage: `joining_process.py STORAGE LOG...`

It starts a process for every LOG, to which each plan is written before and after it is measured,
and prints their ids at first, their exit codes at last.
"""

import itertools
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

PRUNING = Path(__file__).resolve().parents[1] / "pruning"
sys.path.append(str(PRUNING))

from synthetic_quality import Synthetic  # noqa: E402

from lmscout.pruning.budgets import keep_budget  # noqa: E402
from lmscout.pruning.measuring import measure_rounds  # noqa: E402
from lmscout.pruning.ranges import Ranges, Target  # noqa: E402
from lmscout.pruning.space import PlanSpace  # noqa: E402
from lmscout.pruning.study import PairStudy  # noqa: E402

MODEL = Synthetic(depth=4, groups=4, channels=60)
SETTINGS = {"model": "synthetic"}
PAIRS = 24
FIRST_STEP = 12


class LoggingDevice:
    """Measures the synthetic model."""

    def __init__(self, log, seconds):
        self.shape, self._log, self._seconds = MODEL.shape, log, seconds

    def measure(self, plans, limits=None):
        for plan, most in zip(plans, limits or itertools.repeat(()), strict=False):
            self._write("begun", plan)
            time.sleep(self._seconds)
            measurement = MODEL.in_portions(plan, most)
            self._write("measured", plan)
            yield measurement

    def _write(self, what, plan):
        with self._log.open("a") as file:
            file.write(f"{what} {plan.attention}{plan.mlp}\n")


def joined(storage, log, seconds=0.2):
    """The pairs of a study in the end."""
    with PairStudy(storage, MODEL.shape, SETTINGS) as pair_study:
        measure_rounds(
            pair_study,
            LoggingDevice(Path(log), seconds),
            MODEL.mass,
            PlanSpace(MODEL.shape),
            [Target(keep_budget(MODEL.shape, 0.7), Ranges.above(MODEL.shape))],
            pairs=PAIRS,
            seed=0,
            round_size=FIRST_STEP // 2,
            group="alike",
        )
        return pair_study.pairs()


def begin(storage, logs, **variables):
    """Start it, with variables of the environment: the program, and the ids of its processes."""
    program = subprocess.Popen(
        [sys.executable, __file__, storage, *logs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | variables,
    )
    return program, [int(one) for one in program.stdout.readline().split()]


def ended(program):
    """The exit codes of its processes, and what they wrote to standard error."""
    out, err = program.communicate(timeout=120)
    return [int(one) for one in out.split()], err


def lines(log, what):
    """The lines of a log that begin so."""
    found = log.read_text().splitlines() if log.exists() else []
    return [line for line in found if line.startswith(what)]


def measured(logs):
    """Number of plans measured."""
    return sum(len(lines(log, "measured")) for log in logs)


def wait_for(condition):
    """Wait until a condition holds, for two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alike(pairs):
    """What is the same of pairs that other processes have measured."""
    return sorted(
        (one.round, one.plan.attention, one.plan.mlp, one.value, one.origin, one.trajectory)
        for one in pairs
    )


def fork(storage, log):
    """A process that joins: its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        joined(storage, log)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    processes = [fork(sys.argv[1], log) for log in sys.argv[2:]]
    print(*processes, flush=True)
    print(*(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in processes))
