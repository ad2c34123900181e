"""Rounds with a tail, on devices that take their time: called, or run as a script to be killed.

Usage: `measuring_process.py FOLDER DEVICES PAIRS SIZE [STOP]`

With STOP pairs in the study the process kills itself.
"""

import itertools
import os
import random
import signal
import sys
import time
import zlib
from unittest.mock import patch

import numpy as np
from synthetic_quality import Synthetic

from lmscout.errors import LmscoutError
from lmscout.pruning import proposer
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.devices import ParallelEvaluator
from lmscout.pruning.features import Column
from lmscout.pruning.measuring import measure_rounds
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.sampler import propose
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import PairStudy

MODEL = Synthetic(depth=4, groups=4, channels=60)
TAIL = 0.4


def sensitive_propose(space, targets, *, seed, pairs, predictor, waiting=(), **asked):
    """Propose plans by a seed of all that is known: any other knowledge gives other plans."""
    known = sorted((pair.plan.attention, pair.plan.mlp, pair.value) for pair in pairs)
    taken = sorted((plan.attention, plan.mlp) for plan in waiting)
    drawn = zlib.crc32(repr((seed, known, taken)).encode())
    return propose(
        space, targets, seed=drawn, pairs=pairs, predictor=None, waiting=waiting, **asked
    )


class SlowDevice:
    """Measures the synthetic model; no two take the same time for a plan.  One may fail."""

    def __init__(self, number, seconds=0.004, fails_at=None):
        self.shape, self.measured, self._fails_at = MODEL.shape, [], fails_at
        self._random, self._seconds = random.Random(number), seconds

    def measure(self, plans, limits=None):
        for plan, most in zip(plans, limits or itertools.repeat(()), strict=False):
            if len(self.measured) == self._fails_at:
                raise LmscoutError("the device is full")
            measurement = MODEL.in_portions(plan, most)
            time.sleep(self._random.uniform(0, self._seconds))
            self.measured.append(plan)
            yield measurement


def measured(
    folder,
    devices=1,
    pairs=20,
    size=3,
    watch=None,
    proposing=sensitive_propose,
    space=None,
    keep=0.7,
    tail=TAIL,
    another_process=False,
    fails_at=None,
):
    """The pairs of a study after a run, what the run learnt, and the plans that it measured.

    A column that says nothing keeps what is proposed in this process, and seconds low.
    """
    nothing = Column("nothing", lambda rows: np.zeros(len(rows)))
    each = [SlowDevice(number, fails_at=fails_at) for number in range(devices)]
    target = Target(keep_budget(MODEL.shape, keep), Ranges.above(MODEL.shape))
    with (
        PairStudy(folder, MODEL.shape, {"model": "synthetic"}) as pair_study,
        patch.object(proposer, "propose", proposing),
    ):
        try:
            fitted = measure_rounds(
                pair_study,
                ParallelEvaluator(each),
                MODEL.mass,
                space or PlanSpace(MODEL.shape),
                [target],
                pairs=pairs,
                seed=0,
                round_size=size,
                tail=tail,
                extra=() if another_process else (nothing,),
                progress=None if watch is None else lambda done, _: watch(done),
            )
        except KeyboardInterrupt:
            fitted = None
        return pair_study.pairs(), fitted, [plan for one in each for plan in one.measured]


def alike(pairs):
    """Pairs but for their order and the seconds that they took."""
    return sorted(
        (one.round, one.plan.attention, one.plan.mlp, one.value, one.origin, one.trajectory)
        for one in pairs
    )


def main(folder, devices, pairs, size, stop=None):
    def watch(done):
        if stop is not None and done >= int(stop):
            os.kill(os.getpid(), signal.SIGKILL)

    measured(folder, int(devices), int(pairs), int(size), watch)


if __name__ == "__main__":
    main(*sys.argv[1:])
