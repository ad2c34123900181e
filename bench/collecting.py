"""What collecting statistics costs beside the bare forward and backward of the same models.

    python bench/collecting.py [flexibert] [lts:random_GPT2_wt103] [--models N]

For a sample of each benchmark's architectures, in one process with one thread (as a worker
runs): the pass with all twenty reductions of all six inputs, beside a plain forward and
backward of the same model on the same batch; the order alternates, the best of several
rounds counts.  Peak memory is that of tensors alone, from PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from lmscout.benchmarks import load
from lmscout.statistics import OPERATIONS, Batch, read_model, unary_means

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", default=["flexibert", "lts:random_GPT2_wt103"])
    parser.add_argument("--models", type=int, default=24)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.benchmarks:
        specs = list(load(name).specs)
        random.Random(0).shuffle(specs)
        batch = Batch()
        bare = collecting = 0.0
        peaks = []
        for index, spec in enumerate(specs[: arguments.models]):
            model, tokens = spec.build(0), batch.tokens(spec)

            def plain(model=model, tokens=tokens):
                model.loss(tokens).backward()
                model.zero_grad(set_to_none=True)

            def collect(model=model, tokens=tokens):
                read_model(model, tokens, unary_means, len(OPERATIONS))

            plain()
            collect()
            times = [(seconds(plain), seconds(collect)) for _ in range(ROUNDS)]
            bare += min(first for first, _ in times)
            collecting += min(second for _, second in times)
            if index < 4:
                peaks.append((peak_bytes(plain), peak_bytes(collect)))
        ratio = collecting / bare
        print(
            f"{name}: {arguments.models} models, batch {batch.size} x {batch.length}: "
            f"bare {bare:.2f} s, collecting {collecting:.2f} s, ratio {ratio:.2f}"
        )
        for plain_peak, collect_peak in peaks:
            print(
                f"  peak of tensors: bare {plain_peak / 2**20:.1f} MiB, "
                f"collecting {collect_peak / 2**20:.1f} MiB"
            )


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_bytes(work: Callable[[], None]) -> int:
    """Most bytes of tensors alive at once above what was alive before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


if __name__ == "__main__":
    main()
