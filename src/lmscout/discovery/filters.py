"""Filters: what is discarded before it costs a full evaluation, and the search data they use.

What a search is given of a benchmark: its search split, as sketches and as full tensors.

What is discarded before it costs a full evaluation, and what the rest is worth.

Three sieves, each finer and dearer than the one before (LPZero's rule-based pruning strategy,
arXiv 2410.04808, and a race): rules that look at the tree alone; rules that look at its values
on a few probe architectures, without their quality; and a race, which drops a candidate as soon
as the quality of the architectures seen so far makes it unlikely that it enters the front.

Several benchmarks may be searched on at once: a candidate is then worth what it is worth on the
one that it ranks worst.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.discover import cache_name
from lmscout.discovery.engines import (
    DEFAULT_OBJECTIVE,
    OBJECTIVES,
    Candidate,
    Values,
    agreed,
    front,
    to_beat,
)
from lmscout.discovery.splits import Split
from lmscout.metrics import fisher_z, midranks
from lmscout.progress import StageProgress
from lmscout.proxies import Expression, canonical
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.proxies.rules import RULES, first_broken
from lmscout.statistics import Batch, Workers, score_proxies
from lmscout.statistics.deep_values import DeepEvaluator
from lmscout.statistics.sketches import Sketches, collect_sketches

PROBE = 24  # architectures that are looked at first
_RUNGS = 3  # after it, each at half of the architectures that are left, the last at all

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SearchData:
    """What candidates are judged by: a benchmark's search split and nothing else.

    Attributes:
        sketches: of the search architectures.
        quality: [n], higher is better.
        rungs: rows of the architectures, in the order in which values are looked at; those of
            the first are the probe.
        other_data: of the probe, read with another batch.
    """

    sketches: Sketches
    quality: Scores
    rungs: tuple[npt.NDArray[np.int64], ...]
    other_data: Sketches


def draw_rungs(n: int, seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """In which order n search architectures are looked at: `PROBE` of them first, or all.

    Returns:
        Rows of each look, all of them once; the last looks are empty where there are few.
    """
    order = np.random.default_rng(seed).permutation(n)
    ends = [min(PROBE, n)]
    for _ in range(_RUNGS - 1):
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

    def search_data(self, seed: int, progress: StageProgress | None = None) -> SearchData:
        """Sketch the search architectures, and their probe with other data."""
        known = self.benchmark.subset(self.split.search)
        rungs = draw_rungs(len(known), seed)
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
                (known.subset(rungs[0]), self.batch.other()),
            )
        )
        return SearchData(sketches, known.quality, rungs, other_data)

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


_ROOM = 1.0  # standard errors by which the z of a racing candidate may yet rise
_BLIND = 1e-6  # relative change with other data below which nothing of it was read

SEEN, UNDEFINED, CONSTANT = "seen before", "undefined", "constant"
DUPLICATE, BLIND, RACE = "rank duplicate", "blind to data", "race"
VALUE_RULES: Mapping[str, str] = MappingProxyType(
    {
        SEEN: "the same tree, up to the order of what commutes",
        UNDEFINED: "an architecture has no finite score",
        CONSTANT: "all probe architectures of a benchmark have one score",
        DUPLICATE: "it orders the probe as one before it that is no longer does, or in reverse",
        BLIND: "it reads data, and other data leave its scores as they are",
        RACE: "on the architectures seen so far it is too far behind the front for its size",
    }
)
NAMES = (*(rule.name for rule in RULES), *VALUE_RULES)


class FilterChain:
    """Judges candidates in batches; what it decides depends on the batches before alone.

    Attributes:
        evaluations: candidates evaluated on every search architecture.
        discarded: how many fell to which rule.
        best: the front so far, shortest first.
    """

    def __init__(
        self,
        search_data: Sequence[SearchData],
        *,
        objective: str = DEFAULT_OBJECTIVE,
        rules: bool = True,
        race: bool = True,
        workers: int = 1,
    ) -> None:
        """Begin with nothing seen.

        Args:
            search_data: of the search split of each benchmark.
            objective: one of `OBJECTIVES`.
            rules: whether rules discard; a score that is not finite always does.
            race: whether the race discards.
            workers: candidates evaluated at once; the results do not depend on it.
        """
        self.evaluations = 0
        self.discarded: Counter[str] = Counter()
        self.best: list[Candidate] = []
        self._rules = rules
        self._race = race
        self._coefficient = OBJECTIVES[objective]
        self._pool = ThreadPoolExecutor(workers)
        self._benches = [_Bench.of(one) for one in search_data]
        self._rungs = max(len(one.rungs) for one in search_data)
        self._trees: set[Expression] = set()
        self._shortest: dict[int, int] = {}  # by the order that a tree makes, its words

    def evaluate(self, nodes: Sequence[Expression]) -> list[Candidate]:
        """Discard or evaluate a batch; one candidate a tree, in the order given."""
        fell: dict[int, Candidate] = {}
        waiting: dict[int, Expression] = {}
        for place, node in enumerate(map(canonical, nodes)):
            rule = first_broken(node) if self._rules else None
            if rule is not None:
                fell[place] = Candidate(node, None, rule.name)
            elif node in self._trees and self._rules:
                fell[place] = Candidate(node, None, SEEN)
            else:
                self._trees.add(node)
                waiting[place] = node
        probed = self._pool.map(self._probed, waiting.values())
        racing: dict[int, _Racer] = {}
        for place, (why, racer) in zip(waiting, probed, strict=True):
            fallen = _fallen(racer, why or self._known(racer)) or self._outdone(racer)
            if fallen:
                fell[place] = fallen
            else:
                racing[place] = racer
            if not fallen or fallen.discarded == RACE:
                self._remember(racer.order, racer.node)
        for look in range(1, self._rungs):
            seen = self._pool.map(partial(self._seen, look=look), racing.values())
            racing = dict(zip(racing, seen, strict=True))
            for place, racer in list(racing.items()):
                if fallen := _fallen(racer, _undefined(racer)) or self._outdone(racer):
                    del racing[place]
                    fell[place] = fallen
        for place, racer in racing.items():
            fell[place] = self._arrived(racer)
        evaluated = [fell[place] for place in range(len(nodes))]
        self._count(evaluated)
        return evaluated

    def recall(self, evaluated: Sequence[Candidate]) -> None:
        """Take a batch that was judged before, as if it were judged now."""
        by_tree = {rule.name for rule in RULES}
        for one in evaluated:
            if one.discarded not in by_tree:
                self._trees.add(one.node)
            if one.order:
                self._remember(one.order, one.node)
        self._count(evaluated)

    def close(self) -> None:
        """Let the workers go."""
        self._pool.shutdown()

    def _count(self, evaluated: Sequence[Candidate]) -> None:
        self.discarded.update(one.discarded for one in evaluated if one.discarded)
        self.evaluations += sum(one.fitness is not None for one in evaluated)
        self.best = front([*self.best, *evaluated])

    def _probed(self, node: Expression) -> tuple[str, _Racer]:
        """A rule that a tree falls to by its values on the probe, and how it stands there."""
        probed = tuple(bench.scores(node, 0) for bench in self._benches)
        racer = _Racer(node, probed)
        if undefined := _undefined(racer):
            return undefined, racer
        if not self._rules:
            return "", racer
        if any(np.ptp(values) <= _BLIND * np.abs(values).max() for values in probed):
            return CONSTANT, racer
        if _reads_data(node) and all(
            np.allclose(
                bench.other_data.scores(node), values, rtol=_BLIND, atol=0.0, equal_nan=True
            )
            for bench, values in zip(self._benches, probed, strict=True)
        ):
            return BLIND, racer
        return "", replace(racer, order=_fingerprint(probed))

    def _seen(self, racer: _Racer, look: int) -> _Racer:
        """With the values of one look more."""
        more = (bench.scores(racer.node, look) for bench in self._benches)
        return replace(racer, values=tuple(map(np.append, racer.values, more)))

    def _known(self, racer: _Racer) -> str:
        shortest = self._shortest.get(racer.order, math.inf) if self._rules else math.inf
        return DUPLICATE if racer.node.size >= shortest else ""

    def _remember(self, order: int, node: Expression) -> None:
        self._shortest[order] = min(node.size, self._shortest.get(order, node.size))

    def _outdone(self, racer: _Racer) -> Candidate | None:
        """A tree that is unlikely to enter the front, by the architectures seen so far.

        These are among those on which the front's fitness was taken, so the two correlations
        differ by what the others may bring: z of m pairs and of n pairs that hold them differ
        by sqrt(1 / (m - 3) - 1 / (n - 3)).
        """
        seen = [len(values) for values in racer.values]
        whole = [len(bench.quality) for bench in self._benches]
        if not self._race or seen == whole:
            return None
        coefficients = self._coefficients(racer)
        highest = agreed(  # what it may yet rise to
            [fisher_z(one) for one in coefficients],
            [
                _ROOM * math.sqrt(1 / max(m - 3, 1) - 1 / max(n - 3, 1))
                for m, n in zip(seen, whole, strict=True)
            ],
        )
        if highest >= fisher_z(to_beat(self.best, racer.node.size)):
            return None
        return Candidate(racer.node, None, RACE, racer.order, max(agreed(coefficients), 0.0))

    def _arrived(self, racer: _Racer) -> Candidate:
        """What a tree is worth, all its values seen: on the benchmark that it ranks worst."""
        worst = agreed(self._coefficients(racer))
        if not math.isfinite(worst):
            return Candidate(racer.node, None, UNDEFINED, racer.order)
        return Candidate(racer.node, max(worst, 0.0), "", racer.order)

    def _coefficients(self, racer: _Racer) -> list[float]:
        return [
            self._coefficient(values, bench.quality[: len(values)], bench.params[: len(values)])
            for bench, values in zip(self._benches, racer.values, strict=True)
        ]


@dataclass(frozen=True)
class _Racer:
    """A tree on its way.

    Attributes:
        node: the tree.
        values: on each benchmark: [architectures seen so far].
        order: fingerprint of how it orders the probe, 0 where that was not seen.
    """

    node: Expression
    values: tuple[Values, ...]
    order: int = 0


@dataclass(frozen=True)
class _Bench:
    """A benchmark's evidence, architectures in the order in which they are looked at."""

    by_look: tuple[DeepEvaluator | None, ...]
    other_data: DeepEvaluator
    quality: Values
    params: Values

    @classmethod
    def of(cls, search_data: SearchData) -> _Bench:
        order = np.concatenate(search_data.rungs)
        return cls(
            tuple(
                DeepEvaluator(search_data.sketches.subset(rows)) if len(rows) else None
                for rows in search_data.rungs
            ),
            DeepEvaluator(search_data.other_data),
            search_data.quality[order],
            search_data.sketches.spec["params"][order],
        )

    def scores(self, node: Expression, look: int) -> Values:
        """Of the architectures of one look."""
        evaluator = self.by_look[look]
        return np.zeros(0) if evaluator is None else evaluator.scores(node)


def _fallen(racer: _Racer, why: str) -> Candidate | None:
    return Candidate(racer.node, None, why, racer.order) if why else None


def _undefined(racer: _Racer) -> str:
    return "" if all(np.isfinite(values).all() for values in racer.values) else UNDEFINED


def _reads_data(node: Expression) -> bool:
    weights = {"weight", "mixer_weight", "mlp_weight"}
    return not node.leaves <= {*weights, *SPEC_LEAVES}


def _fingerprint(probed: Sequence[Values]) -> int:
    """A number that values of one order share, rising or falling; never 0."""
    ranks = [midranks(values) for values in probed]
    falling = [len(one) - 1 - one for one in ranks]
    ends = sorted(np.concatenate(one).tobytes() for one in (ranks, falling))
    digest = hashlib.blake2b(ends[0], digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1 | 1
