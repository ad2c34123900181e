"""A benchmark that is scored again and again: by trees that differ a little, after changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.discover import cache_name
from lmscout.proxies import Expression, format_expression
from lmscout.stages import Stages
from lmscout.statistics import Batch, Workers, score_proxies
from lmscout.statistics.deep_values import DeepEvaluator
from lmscout.statistics.sketches import collect_sketches

Scores = npt.NDArray[np.float64]

SCORES, SKETCHES = "scores", "sketches"
OTHER_DATA, OTHER_WEIGHTS = "other data", "other weights"


class ScoredBenchmark:
    """Scores of proxies on full tensors, each read once, and of trees on sketches.

    All that is asked for in one call is scored in one pass through each architecture.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        *,
        seed: int,
        batch: Batch,
        cache: Path,
        workers: Workers | None,
        stages: Stages,
    ) -> None:
        """Score nothing yet.

        Args:
            benchmark: the architectures.
            seed: of the models' weights.
            batch: what the models read.
            cache: where scores and sketches are kept.
            workers: how the work is spread over processes.
            stages: told how far each reading is.
        """
        self._read = partial(
            score_proxies,
            benchmark.specs,
            name=cache_name(benchmark.name),
            folder=cache,
            workers=workers,
        )
        self._sketch = partial(
            collect_sketches,
            benchmark.specs,
            name=cache_name(benchmark.name),
            folder=cache,
            seed=seed,
            batch=batch,
            workers=workers,
        )
        self._seed, self._batch, self._stages = seed, batch, stages
        self._known: dict[str, Scores] = {}

    def scores(self, names: Iterable[str]) -> dict[str, Scores]:
        """Scores on full tensors: name or expression -> [n]."""
        wanted = list(dict.fromkeys(names))
        if unread := [name for name in wanted if name not in self._known]:
            with self._stages(SCORES) as told:
                self._known |= self._read(unread, seed=self._seed, batch=self._batch, progress=told)
        return {name: self._known[name] for name in wanted}

    def tree_scores(self, trees: Sequence[Expression]) -> dict[Expression, Scores]:
        """The same of trees."""
        scores = self.scores(map(format_expression, trees))
        return {tree: scores[format_expression(tree)] for tree in trees}

    def with_other_data(self, name: str) -> Scores:
        """Scores of one proxy where the models read other tokens: [n]."""
        other = self._batch.other()
        with self._stages(OTHER_DATA) as told:
            return self._read([name], seed=self._seed, batch=other, progress=told)[name]

    def with_other_weights(self, name: str) -> Scores:
        """Scores of one proxy where the models' weights are of another seed: [n]."""
        with self._stages(OTHER_WEIGHTS) as told:
            return self._read([name], seed=self._seed + 1, batch=self._batch, progress=told)[name]

    def with_ones(self, name: str, read: str) -> Scores:
        """Scores of one proxy that is given ones for the tensors of an input: [n]."""
        with self._stages(f"ones for {read}") as told:
            return self._read([name], seed=self._seed, batch=self._batch, ones=read, progress=told)[
                name
            ]

    def evaluator(self) -> DeepEvaluator:
        """What scores trees on sketches of all architectures."""
        with self._stages(SKETCHES) as told:
            return DeepEvaluator(self._sketch(progress=told))
