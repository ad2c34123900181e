"""Filters of the symbolic search: they discard candidates before a full evaluation.

Three stages of increasing cost (LPZero's rule-based pruning strategy, arXiv 2410.04808, and
racing): rules on the tree; rules on its scores of a few probe architectures, without their quality;
and racing, which drops a candidate at the first rung of architectures whose quality makes it
unlikely that the candidate enters the front.  On several benchmarks fitness is the minimum over
them.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.discovery.engines import (
    DEFAULT_OBJECTIVE,
    OBJECTIVES,
    Candidate,
    front,
    joint_fitness,
    to_beat,
)
from lmscout.discovery.scorer import Indices, Scorer, Scores, Split, mean_of
from lmscout.metrics import fisher_z, midranks
from lmscout.progress import StageProgress
from lmscout.proxies import Expression, canonical
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.proxies.rules import RULES, first_broken
from lmscout.statistics.deep_values import DeepEvaluator
from lmscout.statistics.sketches import Sketches, joined_sketches

PROBE = 24  # architectures of the first rung
_RUNGS = 3  # after it, each half of the architectures that are left, the last all of them
_ROOM = 1.0  # standard errors by which the z of a racing candidate may increase
_BLIND = 1e-6  # relative change with other data below which a candidate reads no data
_DISTURBED = 4  # probe architectures on which the effect of rounding is tried
_ROUNDING, _MOST_CHANGE = 1e-11, 1e-8  # relative changes of tensors, and the most of a score

SEEN, UNDEFINED, CONSTANT = "seen before", "undefined", "constant"
DUPLICATE, BLIND, NOISE, RACE = "rank duplicate", "blind to data", "rounding noise", "race"
VALUE_RULES: Mapping[str, str] = MappingProxyType(
    {
        SEEN: "the same tree, up to the order of what commutes",
        UNDEFINED: "an architecture has no finite score",
        CONSTANT: "all probe architectures of a benchmark have one score",
        DUPLICATE: "it orders the probe architectures as an earlier candidate does, or in reverse",
        BLIND: "it reads data, and other data leave its scores as they are",
        NOISE: "tensors changed by 1e-11 of their values change a score by more than 1e-8 of it",
        RACE: "on the architectures seen so far it is too far behind the front for its size",
    }
)
NAMES = (*(rule.name for rule in RULES), *VALUE_RULES)


@dataclass(frozen=True)
class SearchData:
    """The search split of a benchmark, on which candidates are evaluated."""

    sketches: Sketches  # of the search architectures
    quality: Scores  # [n], higher is better
    rungs: tuple[Indices, ...]  # rows in the order of evaluation, the probe first
    other_data: Sketches  # of the probe, on another batch
    more_draws: tuple[Sketches, ...] = ()  # of other initial weights and data


def draw_rungs(n: int, seed: int) -> tuple[Indices, ...]:
    """Rows of each rung of n search architectures, `PROBE` first; the last may be empty."""
    order = np.random.default_rng(seed).permutation(n)
    ends = [min(PROBE, n)]
    for _ in range(_RUNGS - 1):
        ends.append(ends[-1] + (n - ends[-1]) // 2)
    return tuple(np.sort(one) for one in np.split(order, ends))


@dataclass(frozen=True)
class SplitBenchmark:
    """A benchmark with its split and the scorer of all its architectures."""

    benchmark: Benchmark
    split: Split
    scorer: Scorer

    def search_data(
        self, seed: int, weights: int = 1, progress: StageProgress | None = None
    ) -> SearchData:
        """Sketch the search architectures with each draw, and their probe on other data."""
        rows = self.split.search
        rungs = draw_rungs(len(rows), seed)
        searched = self.scorer.subset(rows)
        sketches, *more = (one.sketches(progress) for one in searched.draws(weights))
        other_data = searched.subset(rungs[0]).with_other_data().sketches(progress)
        quality = self.benchmark.quality[rows]
        return SearchData(sketches, quality, rungs, other_data, tuple(more))


@dataclass(frozen=True)
class _Partial:
    """A tree with its scores up to a rung."""

    node: Expression
    values: tuple[Scores, ...]  # on each benchmark: [architectures up to the rung]
    order: int = 0  # fingerprint of its order of the probe, 0 if not computed

    def discard(self, rule: str) -> Candidate:
        return Candidate(self.node, None, rule, self.order)

    @property
    def finite(self) -> bool:
        return all(np.isfinite(values).all() for values in self.values)


@dataclass(frozen=True)
class _Probed:
    """What the probe of one benchmark says of a tree."""

    scores: Scores  # [architectures of the probe]
    noise: bool  # whether the scores owe much to rounding
    blind: bool  # whether other data leave them as they are


class _Bench:
    """The search data of one benchmark, in the order of the rungs."""

    def __init__(self, data: SearchData) -> None:
        order = np.concatenate(data.rungs)
        draws = (data.sketches, *data.more_draws)
        self._rungs = [
            [DeepEvaluator(one.subset(rows)) for one in draws] if len(rows) else []
            for rows in data.rungs[1:]
        ]
        probe, *others = (one.subset(data.rungs[0]) for one in draws)
        self._more_draws = [DeepEvaluator(one) for one in others]
        few = data.sketches.subset(data.rungs[0][:_DISTURBED]).disturbed(_ROUNDING)
        # All at once: most of the time of so few architectures is overhead.
        self._probe = DeepEvaluator(joined_sketches([probe, few, data.other_data]))
        self._ends = np.cumsum([len(one.depth) for one in (probe, few)])
        self.quality = data.quality[order]
        self.params = data.sketches.spec["params"][order]

    def probed(self, node: Expression) -> _Probed:
        """Scores of the probe, averaged over draws, and what changes them."""
        own, disturbed, other = np.split(self._probe.scores(node), self._ends)
        draws = [own, *(one.scores(node) for one in self._more_draws)]
        return _Probed(
            mean_of(np.array(draws)),
            not _close(disturbed, own[: len(disturbed)], _MOST_CHANGE),
            _close(other, own, _BLIND),
        )

    def scores(self, node: Expression, rung: int) -> Scores:
        """Scores of the architectures of a rung after the probe, averaged over draws."""
        draws = [one.scores(node) for one in self._rungs[rung - 1]]
        return mean_of(np.array(draws)) if draws else np.zeros(0)


class Filters:
    """Filters and evaluation of candidates in batches; each depends on the batches before alone.

    Attributes:
        evaluations: candidates evaluated on every search architecture.
        discarded: number of candidates that each rule discarded.
        best: the front, shortest first.
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
        """Start without candidates; even without rules, scores that are not finite discard one."""
        self.evaluations = 0
        self.discarded: Counter[str] = Counter()
        self.best: list[Candidate] = []
        self._rules, self._race = rules, race
        self._coefficient = OBJECTIVES[objective]
        self._pool = ThreadPoolExecutor(workers)
        self._map = self._pool.map if workers > 1 else map
        self._benches = [_Bench(one) for one in search_data]
        self._rungs = max(len(one.rungs) for one in search_data)
        self._trees: set[Expression] = set()
        self._shortest: dict[int, int] = {}  # size of the shortest tree of every order

    def evaluate(self, nodes: Sequence[Expression]) -> list[Candidate]:
        """Discard or evaluate a batch: one candidate per tree, in the order given."""
        done: dict[int, Candidate] = {}
        waiting: dict[int, Expression] = {}
        for place, node in enumerate(map(canonical, nodes)):
            if self._rules and (rule := self._broken_rule(node)):
                done[place] = Candidate(node, None, rule)
            else:
                self._trees.add(node)
                waiting[place] = node
        racing: dict[int, _Partial] = {}
        probed = self._map(self._probe, waiting.values())
        for place, one in zip(waiting, probed, strict=True):
            if isinstance(one, Candidate):
                done[place] = one
            elif self._rules and one.node.size >= self._shortest.get(one.order, math.inf):
                done[place] = one.discard(DUPLICATE)
            else:
                self._remember(one.order, one.node)
                if dropped := self._drop(one):
                    done[place] = dropped
                else:
                    racing[place] = one
        for rung in range(1, self._rungs):
            extended = self._map(partial(self._extend, rung=rung), racing.values())
            racing = dict(zip(racing, extended, strict=True))
            for place, one in list(racing.items()):
                if dropped := self._drop(one) if one.finite else one.discard(UNDEFINED):
                    del racing[place]
                    done[place] = dropped
        done |= {place: self._finished(one) for place, one in racing.items()}
        evaluated = [done[place] for place in range(len(nodes))]
        self._count(evaluated)
        return evaluated

    def recall(self, evaluated: Sequence[Candidate]) -> None:
        """Restore the state after a batch that was evaluated before."""
        by_tree = {rule.name for rule in RULES}
        for one in evaluated:
            if one.discarded not in by_tree:
                self._trees.add(one.node)
            if one.order:
                self._remember(one.order, one.node)
        self._count(evaluated)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    def _count(self, evaluated: Sequence[Candidate]) -> None:
        self.discarded.update(one.discarded for one in evaluated if one.discarded)
        self.evaluations += sum(one.fitness is not None for one in evaluated)
        self.best = front([*self.best, *evaluated])

    def _remember(self, order: int, node: Expression) -> None:
        self._shortest[order] = min(node.size, self._shortest.get(order, node.size))

    def _broken_rule(self, node: Expression) -> str:
        """Name of the rule on the tree alone that discards it, or ""."""
        rule = first_broken(node)
        return rule.name if rule else SEEN if node in self._trees else ""

    def _probe(self, node: Expression) -> Candidate | _Partial:
        """A tree's scores of the probe; a candidate if these break a rule."""
        found = [bench.probed(node) for bench in self._benches]
        probed = tuple(each.scores for each in found)
        one = _Partial(node, probed)
        if not one.finite:
            return one.discard(UNDEFINED)
        if not self._rules:
            return one
        if any(np.ptp(values) <= _BLIND * np.abs(values).max() for values in probed):
            return one.discard(CONSTANT)
        if any(each.noise for each in found):
            return one.discard(NOISE)
        if _reads_data(node) and all(each.blind for each in found):
            return one.discard(BLIND)
        return replace(one, order=_fingerprint(probed))

    def _extend(self, one: _Partial, rung: int) -> _Partial:
        more = (bench.scores(one.node, rung) for bench in self._benches)
        return replace(one, values=tuple(map(np.append, one.values, more)))

    def _drop(self, one: _Partial) -> Candidate | None:
        """The candidate if it is unlikely to enter the front, by its scores up to here.

        The standard error of the difference between z of m pairs and z of n pairs that include
        them is sqrt(1 / (m - 3) - 1 / (n - 3)).
        """
        seen = [len(values) for values in one.values]
        whole = [len(bench.quality) for bench in self._benches]
        if not self._race or seen == whole:
            return None
        coefficients = self._coefficients(one)
        slack = [
            _ROOM * math.sqrt(1 / max(m - 3, 1) - 1 / max(n - 3, 1))
            for m, n in zip(seen, whole, strict=True)
        ]
        highest = joint_fitness([fisher_z(each) for each in coefficients], slack)
        if highest >= fisher_z(to_beat(self.best, one.node.size)):
            return None
        return replace(one.discard(RACE), estimate=max(joint_fitness(coefficients), 0.0))

    def _finished(self, one: _Partial) -> Candidate:
        """The candidate with its fitness, all its scores known."""
        fitness = joint_fitness(self._coefficients(one))
        if not math.isfinite(fitness):
            return one.discard(UNDEFINED)
        return Candidate(one.node, max(fitness, 0.0), "", one.order)

    def _coefficients(self, one: _Partial) -> list[float]:
        return [
            self._coefficient(values, bench.quality[: len(values)], bench.params[: len(values)])
            for bench, values in zip(self._benches, one.values, strict=True)
        ]


def _reads_data(node: Expression) -> bool:
    return not node.leaves <= {"weight", "mixer_weight", "mlp_weight", *SPEC_LEAVES}


@np.errstate(invalid="ignore")
def _close(x: Scores, y: Scores, tolerance: float) -> bool:
    """Whether all differences are below a share of finite scores y [n]."""
    return bool((np.abs(x - y) <= tolerance * np.abs(y)).all())


def _fingerprint(probed: Sequence[Scores]) -> int:
    """A nonzero number shared by scores of one order or its reverse."""
    ranks = [midranks(values) for values in probed]
    falling = [len(one) - 1 - one for one in ranks]
    ends = sorted(np.concatenate(one).tobytes() for one in (ranks, falling))
    digest = hashlib.blake2b(ends[0], digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1 | 1
