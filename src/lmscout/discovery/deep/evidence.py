"""What a search is given of a benchmark: its search split, as sketches and as full tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.discover import cache_name
from lmscout.discovery.splits import Split
from lmscout.stages import StageProgress
from lmscout.statistics import Batch, Workers, score_proxies
from lmscout.statistics.sketches import Sketches, collect_sketches

PROBE = 24  # architectures that are looked at first
_LOOKS = 3  # after it, each at half of the architectures that are left, the last at all

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """What candidates are judged by: a benchmark's search split and nothing else.

    Attributes:
        sketches: of the search architectures.
        quality: [n], higher is better.
        looks: rows of the architectures, in the order in which values are looked at; those of
            the first are the probe.
        other_data: of the probe, read with another batch.
    """

    sketches: Sketches
    quality: Scores
    looks: tuple[npt.NDArray[np.int64], ...]
    other_data: Sketches


def draw_looks(n: int, seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """In which order n search architectures are looked at: `PROBE` of them first, or all.

    Returns:
        Rows of each look, all of them once; the last looks are empty where there are few.
    """
    order = np.random.default_rng(seed).permutation(n)
    ends = [min(PROBE, n)]
    for _ in range(_LOOKS - 1):
        ends.append(ends[-1] + (n - ends[-1]) // 2)
    return tuple(np.sort(one) for one in np.split(order, ends))


@dataclass(frozen=True)
class SplitBenchmark:
    """A benchmark, how it is split, and how its architectures are read.

    Attributes:
        benchmark: architectures with measured quality.
        split: which of them a choice may see.
        cache: where sketches and scores are kept.
        batch: what the models read.
        workers: how architectures are spread over processes.
    """

    benchmark: Benchmark
    split: Split
    cache: Path
    batch: Batch
    workers: Workers

    def evidence(self, seed: int, progress: StageProgress | None = None) -> Evidence:
        """Sketch the search architectures, and their probe with other data."""
        known = self.benchmark.subset(self.split.search)
        looks = draw_looks(len(known), seed)
        sketches, other_data = (
            collect_sketches(
                one.specs,
                name=cache_name(self.benchmark.name),
                folder=self.cache,
                batch=batch,
                workers=self.workers,
                progress=progress,
            )
            for one, batch in (
                (known, self.batch),
                (known.subset(looks[0]), self.batch.other()),
            )
        )
        return Evidence(sketches, known.quality, looks, other_data)

    def scores(
        self, rows: npt.NDArray[np.int64], texts: Sequence[str], progress: StageProgress | None
    ) -> dict[str, Scores]:
        """Scores of some architectures by some proxies, on full tensors."""
        return score_proxies(
            self.benchmark.subset(rows).specs,
            texts,
            name=cache_name(self.benchmark.name),
            folder=self.cache,
            batch=self.batch,
            workers=self.workers,
            progress=progress,
        )
