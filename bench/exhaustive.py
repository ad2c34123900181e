"""How long it takes to rank whole spaces of proxies from loaded statistics.

    python bench/exhaustive.py [--published] [--two-op]

Statistics are drawn at random with the shape and the ties of FlexiBERT's (500 architectures,
2 or 4 blocks), so that nothing has to be collected first; ranking does not depend on what
the numbers are.  SciPy is called once a proxy on a sample, and its time scaled up.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import scipy.stats

from lmscout.discovery import rank_space
from lmscout.proxies import Space, evaluate, published, two_op
from lmscout.proxies.primitives import INPUTS

SAMPLE = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--two-op", action="store_true")
    arguments = parser.parse_args()
    both = not (arguments.published or arguments.two_op)
    if arguments.published or both:
        measure(published(), architectures=500)
    if arguments.two_op or both:
        measure(two_op(), architectures=100)


def measure(space: Space, architectures: int) -> None:
    rng = np.random.default_rng(0)
    depth = rng.choice([2, 4], architectures)
    quality = np.round(rng.normal(size=architectures), 2)
    inputs = [entry.name for entry in INPUTS]
    values = rng.lognormal(size=(len(inputs), len(space.chains), architectures, 4))
    values[..., np.arange(4) >= depth[:, None]] = np.nan
    values = values.astype(np.float32)
    chain_index = {chain: index for index, chain in enumerate(space.chains)}

    def branch(name: str, chain: tuple[str, ...]) -> np.ndarray:
        return values[inputs.index(name), chain_index[chain]]

    rank_space(published(), lambda n, c: branch(n, space.chains[0]), depth, quality)  # warm up
    start = time.perf_counter()
    ranking = rank_space(space, branch, depth, quality)
    ours = time.perf_counter() - start

    sample = rng.choice(space.size, SAMPLE, replace=False)
    start = time.perf_counter()
    plain = []
    for index in sample:
        scores = evaluate(space.proxy(int(index)), branch, depth)
        plain.append(scipy.stats.spearmanr(scores, quality).statistic)
    scipy_seconds = (time.perf_counter() - start) / SAMPLE * space.size
    error = np.abs(np.array(plain) - ranking.spearman[sample]).max()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{space.name}: {space.size:,} proxies x {architectures} architectures: {ours:.2f} s; "
        f"SciPy once a proxy {scipy_seconds:,.0f} s, ratio {scipy_seconds / ours:,.0f}; "
        f"largest difference {error:.0e}; peak memory {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
