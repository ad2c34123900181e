"""What a supervised predictor of the configuration makes of the search splits of discovery.

    python bench/supervised.py [pico=40 lts:random_GPT2_wt103=40 flexibert=100] [--seeds 5]

A Gaussian process is fitted to the quality of a search split, as in discovery, and evaluated on
the test split: what of the order can be learnt from so many architectures without reading any of
them.  Once by the leaves of the configuration that a deep proxy may read, once by all numbers in a
specification (of layers the mean and the sum, and how many of each kind), both as logarithms.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from lmscout.benchmarks import load
from lmscout.discovery.scorer import split_benchmark
from lmscout.metrics import kendall, spearman
from lmscout.models import ArchitectureSpec
from lmscout.statistics.sketches import spec_values

Features = npt.NDArray[np.float64]


def leaves(spec: ArchitectureSpec) -> dict[str, float]:
    """Depth, width and parameters, as logarithms."""
    return {name: float(np.log(value)) for name, value in spec_values(spec).items()}


def numbers(spec: ArchitectureSpec) -> dict[str, float]:
    """The leaves, and every number of a specification beside them, as logarithms."""
    return {**leaves(spec), **{name: float(np.log1p(value)) for name, value in _numbers(spec)}}


def _numbers(spec: ArchitectureSpec) -> Iterator[tuple[str, float]]:
    for name, value in vars(spec).items():
        layers = value if isinstance(value, tuple) else (value,)
        several = [vars(one) if is_dataclass(one) else {"": one} for one in layers]
        for part in sorted({part for one in several for part in one}):
            each = [one[part] for one in several if part in one]
            if all(isinstance(one, int | float) for one in each):
                yield f"{name} {part} mean", float(np.mean(each))
                yield f"{name} {part} sum", float(np.sum(each))
            else:
                yield from ((f"{name} {part} {one}", n) for one, n in Counter(each).items())


def table_of(rows: Sequence[dict[str, float]]) -> Features:
    """Features [n, d] of all that differ; 0 where a kind of architecture has no such number."""
    names = sorted({name for row in rows for name in row})
    table = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    return table[:, np.ptp(table, axis=0) > 0]


def predicted(known: Features, quality: Features, asked: Features) -> Features:
    """Of architectures [m, d], by those [n, d] whose quality [n] is known."""
    middle, width = known.mean(axis=0), known.std(axis=0) + 1e-9
    kernel = ConstantKernel() * RBF(np.full(known.shape[1], 3.0), (0.3, 100)) + WhiteKernel(0.01)
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():  # a length at its bound: an idle feature
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit((known - middle) / width, quality)
    return np.asarray(process.predict((asked - middle) / width))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = ["pico=40", "lts:random_GPT2_wt103=40", "flexibert=100"]
    parser.add_argument("benchmarks", nargs="*", default=usual)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    for asked in arguments.benchmarks:
        name, _, size = asked.rpartition("=")
        benchmark = load(name)
        for read in (leaves, numbers):
            table = table_of([read(spec) for spec in benchmark.specs])
            found = []
            for seed in range(arguments.seeds):
                split = split_benchmark(benchmark.specs, search=int(size), seed=seed)
                quality = benchmark.quality
                given = predicted(table[split.search], quality[split.search], table[split.test])
                test = quality[split.test]
                found.append((spearman(given, test), kendall(given, test)))
            rho, tau = (statistics.median(each) for each in zip(*found, strict=True))
            print(f"{name}, {size} known, {read.__name__}: median ρ {rho:.3f}, τ {tau:.3f}")


if __name__ == "__main__":
    main()
