"""A process that designs, and kills itself in the middle.

Usage: `designing_process.py FOLDER AT`
"""

import os
import signal
import sys
from pathlib import Path

from lmscout.benchmarks.limits import limits_of
from lmscout.benchmarks.space import GPT2, LLAMA, Space
from lmscout.discovery import design, signed_proxy
from lmscout.statistics import Batch, Workers

SPACE = Space(
    name="tiny",
    families=(GPT2, LLAMA),
    depths=(1, 2, 3),
    widths=(8, 16, 24),
    head_sizes=(4, 8),
    expansions=(1.0, 2.0),
    groups=(1, 2),
    missing=(0.0, 0.3),
    vocabulary=32,
    max_length=16,
)
BATCH = Batch(size=2, length=8)
EVALUATIONS = 50


def design_tiny(
    folder,
    proxy="snip",
    *,
    workers=1,
    seed=0,
    limit=4000,
    limits=None,
    weights=1,
    progress=None,
    evaluations=EVALUATIONS,
):
    return design(
        SPACE,
        signed_proxy(proxy),
        limits=limits or limits_of(limit),
        evaluations=evaluations,
        seed=seed,
        weights=weights,
        cache=folder,
        batch=BATCH,
        workers=Workers(workers),
        progress=progress,
    )


def main(folder, at):
    def progress(_, done, __):
        if done == int(at):
            os.kill(os.getpid(), signal.SIGKILL)

    design_tiny(Path(folder), progress=progress)


if __name__ == "__main__":
    main(*sys.argv[1:])
