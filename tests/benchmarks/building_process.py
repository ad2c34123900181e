"""Builds the tiny benchmark: building_process.py FOLDER WORKERS [PACE]; prints worker ids.

PACE is how many seconds each training takes longer, so that there is time to kill it.
"""

import multiprocessing
import sys
import time
from pathlib import Path

from tiny_training import RECIPE, SPACE, N, text

from lmscout.benchmarks import build as module


def main():
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    pace = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0

    def progress(done, total):
        children = [child.pid for child in multiprocessing.active_children()]
        print(done, total, *children, flush=True)
        time.sleep(pace)

    module.build(SPACE, N, folder, text(), RECIPE, device="cpu", workers=workers, progress=progress)


if __name__ == "__main__":
    main()
