"""A process that collects until it is stopped.

Usage: `collecting_process.py FOLDER WORKERS SIGNAL AT [OTHER]`

Prints the rows done as it goes.  At AT rows it sends itself SIGNAL, or, where that is "wait",
waits for others to stop it.  Before, it collects undisturbed into OTHER, if there is one: the
start of the workers, which takes seconds, then serves two tests.
"""

import importlib
import os
import signal
import sys
import time
from pathlib import Path

from tiny_specs import EVERY_KIND, gpt2

from lmscout.statistics import Batch, Workers, collect

SPECS = [*EVERY_KIND.values(), *(gpt2(inner=(size, size)) for size in (8, 12, 20))]
CHAINS = [("abs",), ("square", "log"), ("softmax",)]
BATCH = Batch(size=3, length=6)


def collect_tiny(folder, workers, progress=None):
    return collect(
        SPECS,
        CHAINS,
        name="tiny",
        folder=folder,
        batch=BATCH,
        workers=Workers(workers),
        progress=progress,
    )


def main(folder, workers, how, at, undisturbed=None):
    # Save after every row, where the process will have no chance to do it at its end.
    if how == "SIGKILL":
        importlib.import_module("lmscout.statistics.collect")._SAVE_EVERY = -1.0

    def progress(done, total):
        print(done, total, flush=True)
        if how == "wait" and done >= int(at):
            time.sleep(30)
        elif how.startswith("SIG") and done == int(at):
            os.kill(os.getpid(), getattr(signal, how))

    if undisturbed:
        collect_tiny(Path(undisturbed), int(workers))
    collect_tiny(Path(folder), int(workers), progress)


if __name__ == "__main__":
    # Whoever runs the tests in the background may have had us ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(*sys.argv[1:])
