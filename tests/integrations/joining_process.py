"""Joins the measuring of a study, in which a plan takes a fifth of a second.

Usage: `joining_process.py STORAGE LOG`

It begins when there is a file "go" beside LOG, to which every plan is written before and after it
is measured.
"""

import itertools
import sys
import time
from pathlib import Path

from synthetic_quality import Synthetic

from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.measuring import measure_rounds
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import PairStudy

MODEL = Synthetic(depth=4, groups=4, channels=60)
PAIRS = 40


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
    with PairStudy(storage, MODEL.shape, {"model": "synthetic"}) as pair_study:
        measure_rounds(
            pair_study,
            LoggingDevice(Path(log), seconds),
            MODEL.mass,
            PlanSpace(MODEL.shape),
            [Target(keep_budget(MODEL.shape, 0.7), Ranges.above(MODEL.shape))],
            pairs=PAIRS,
            seed=0,
            round_size=10,
            group="alike",
        )
        return pair_study.pairs()


if __name__ == "__main__":
    print("ready", flush=True)
    while not (Path(sys.argv[2]).parent / "go").exists():
        time.sleep(0.02)
    joined(*sys.argv[1:])
