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

PROBE = 24  # architectures on which values are looked at before all are computed

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """What candidates are judged by: a benchmark's search split and nothing else.

    Attributes:
        sketches: of the search architectures.
        quality: [n], higher is better.
        probe: rows of the architectures on which values are looked at first.
        other_data: of these, read with another batch.
    """

    sketches: Sketches
    quality: Scores
    probe: npt.NDArray[np.int64]
    other_data: Sketches


def probe_rows(n: int, seed: int) -> npt.NDArray[np.int64]:
    """Which of n search architectures are the probe: `PROBE` of them, or all."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:PROBE])


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
        probe = probe_rows(len(known), seed)
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
                (known.subset(probe), self.batch.other()),
            )
        )
        return Evidence(sketches, known.quality, probe, other_data)

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
