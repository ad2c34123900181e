"""Scores, statistics and sketches of a benchmark's architectures, cached on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Required, TypedDict

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.errors import LmscoutError
from lmscout.models import ArchitectureSpec
from lmscout.progress import StageProgress, part_of
from lmscout.proxies import Expression, format_expression
from lmscout.statistics import Batch, Statistics, Workers, collect, score_proxies
from lmscout.statistics.sketches import Sketches, collect_sketches

Scores = npt.NDArray[np.float64]


class ScorerOptions(TypedDict, total=False):
    """Attributes of `Scorer` that callers choose."""

    cache: Required[Path]
    batch: Batch | None
    workers: Workers | None


@dataclass(frozen=True)
class Scorer:
    """Evaluates architectures; numbers of one call and precision come from one pass of each."""

    specs: Sequence[ArchitectureSpec]
    name: str  # prefix of the cache files' names
    cache: Path  # cache folder
    batch: Batch | None = None  # input of the models; `Batch()` if None
    workers: Workers | None = None  # `Workers()` if None
    seed: int = 0  # of the models' weights
    _known: dict[tuple[str, str], Scores] = field(default_factory=dict, init=False, repr=False)

    @property
    def _settings(self) -> dict[str, Any]:
        names = ("name", "batch", "workers", "seed")
        return {"folder": self.cache, **{name: getattr(self, name) for name in names}}

    def with_other_data(self) -> Scorer:
        """The same with other tokens."""
        return replace(self, batch=(self.batch or Batch()).other())

    def draws(self, n_weights: int) -> Iterator[Scorer]:
        """The same with draws of initial weights and data; the first has the own seeds.

        LmscoutError if there is none.
        """
        if n_weights < 1:
            raise LmscoutError(
                f"{n_weights} draws of initial weights: there has to be one at least"
            )
        batch = self.batch or Batch()
        for draw in range(n_weights):
            yield replace(self, seed=self.seed + draw, batch=replace(batch, seed=batch.seed + draw))

    def subset(self, rows: npt.NDArray[np.int64]) -> Scorer:
        """The same for some of the architectures."""
        return replace(self, specs=[self.specs[row] for row in rows])

    def statistics(
        self, chains: Sequence[tuple[str, ...]], progress: StageProgress | None = None
    ) -> Statistics:
        """Block values under chains, see `collect`."""
        return collect(self.specs, chains, progress=progress, **self._settings)

    def sketches(self, progress: StageProgress | None = None) -> Sketches:
        """Samples of all tensors, see `collect_sketches`."""
        return collect_sketches(self.specs, progress=progress, **self._settings)

    def scores(
        self, names: Iterable[str], progress: StageProgress | None = None, *, ones: str = ""
    ) -> dict[str, Scores]:
        """Scores [architectures] on full tensors, each computed once, see `score_proxies`."""
        wanted = list(dict.fromkeys(names))
        if missing := [name for name in wanted if (name, ones) not in self._known]:
            found = score_proxies(
                self.specs, missing, ones=ones, progress=progress, **self._settings
            )
            self._known.update({(name, ones): scores for name, scores in found.items()})
        return {name: self._known[name, ones] for name in wanted}

    def tree_scores(
        self, trees: Sequence[Expression], progress: StageProgress | None = None
    ) -> dict[Expression, Scores]:
        """Scores of trees on full tensors."""
        scores = self.scores(map(format_expression, trees), progress)
        return {tree: scores[format_expression(tree)] for tree in trees}

    def drawn_scores(
        self, names: Iterable[str], n_weights: int, progress: StageProgress | None = None
    ) -> dict[str, Scores]:
        """Scores [draws, architectures] over draws of initial weights and data, see `draws`."""
        names, n = list(names), len(self.specs)
        draws = [
            one.scores(names, part_of(progress, draw * n, n_weights * n))
            for draw, one in enumerate(self.draws(n_weights))
        ]
        return {name: np.array([scores[name] for scores in draws]) for name in names}


def run_settings(
    benchmark: Benchmark | str, seed: int, options: ScorerOptions, **more: object
) -> dict[str, object]:
    """Settings of a run folder; a benchmark that is not loaded, a name, has no digest.

    Of the device, its kind counts and not its number.
    """
    named: dict[str, object] = {"benchmark": benchmark}
    if isinstance(benchmark, Benchmark):
        named = {"benchmark": benchmark.name, "benchmark_sha256": benchmark.digest}
    workers = options.get("workers") or Workers()
    return {"seed": seed, "device": workers.device_kind, **named, **more}


def mean_of(draws: Scores) -> Scores:
    """Mean scores [n] over draws [draws, n]; not finite if one of the draws is not."""
    with np.errstate(invalid="ignore"):  # of infinities of both signs
        mean: Scores = np.mean(draws, axis=0)
    return mean


def cache_name(benchmark: str) -> str:
    """A benchmark's name as the prefix of a file's name."""
    tail = benchmark.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in tail)
