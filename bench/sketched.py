"""A whole benchmark's sketches, once, for searches on many splits of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmscout.benchmarks import Benchmark
from lmscout.discovery.filters import SearchData, SplitBenchmark, draw_rungs
from lmscout.discovery.scorer import Scorer, Split, cache_name
from lmscout.statistics import Batch, Workers
from lmscout.statistics.sketches import Sketches


@dataclass(frozen=True)
class WholeSketches:
    """Of every architecture of a benchmark, with the batch and with other data."""

    sketches: Sketches
    others: Sketches

    def search_data(self, benchmark: Benchmark, split: Split, seed: int) -> SearchData:
        """As collected for the search architectures alone: a sketch depends on its own model."""
        known, rungs = split.search, draw_rungs(len(split.search), seed)
        return SearchData(
            self.sketches.subset(known),
            benchmark.quality[known],
            rungs,
            self.others.subset(known[rungs[0]]),
        )


@dataclass(frozen=True)
class SketchedBenchmark(SplitBenchmark):
    """A benchmark on whose search split nothing has to be collected any more."""

    whole: WholeSketches

    def search_data(self, seed: int, weights: int = 1, progress: object = None) -> SearchData:
        """Of the search architectures."""
        return self.whole.search_data(self.benchmark, self.split, seed)


def whole_sketches(
    benchmark: Benchmark, folder: Path, batch: Batch, workers: Workers
) -> WholeSketches:
    """Collected, or read from the folder."""
    scorer = Scorer(benchmark.specs, cache_name(benchmark.name), folder, batch, workers)
    return WholeSketches(scorer.sketches(), scorer.with_other_data().sketches())
