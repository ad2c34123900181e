"""What is discarded before it costs a full evaluation, and what the rest is worth.

Three sieves, each finer and dearer than the one before (LPZero's rule-based pruning strategy,
arXiv 2410.04808, and a race): rules that look at the tree alone; rules that look at its values
on a few probe architectures, without their quality; and a race, in which the probe
architectures' quality makes it unlikely that a candidate enters the front.

Several benchmarks may be searched on at once: a candidate is then worth what it is worth on the
one that it ranks worst.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from lmscout.discovery.deep.candidates import (
    OBJECTIVES,
    Candidate,
    Values,
    agreed,
    front,
    to_beat,
)
from lmscout.discovery.deep.evidence import Evidence
from lmscout.proxies.deep import SPEC_LEAVES, Node
from lmscout.proxies.deep.growing import canonical
from lmscout.proxies.deep.rules import RULES, first_broken
from lmscout.ranking import fisher_z, midranks
from lmscout.statistics.deep_values import DeepEvaluator

_ROOM = 1.64  # standard errors of Fisher's z by which a racing candidate may yet rise
_BLIND = 1e-6  # relative change with other data below which nothing of it was read

SEEN, UNDEFINED, CONSTANT = "seen before", "undefined", "constant"
DUPLICATE, BLIND, RACE = "rank duplicate", "blind to data", "race"
VALUE_RULES: Mapping[str, str] = MappingProxyType(
    {
        SEEN: "the same tree, up to the order of what commutes",
        UNDEFINED: "an architecture has no finite score",
        CONSTANT: "all probe architectures of a benchmark have one score",
        DUPLICATE: "it orders the probe architectures as one before it does, or in reverse",
        BLIND: "it reads data, and other data leave its scores as they are",
        RACE: "on the probe architectures it is too far behind the front for its size",
    }
)
NAMES = (*(rule.name for rule in RULES), *VALUE_RULES)


class Screen:
    """Judges candidates in batches; what it decides depends on the batches before alone.

    Attributes:
        evaluations: candidates evaluated on every search architecture.
        discarded: how many fell to which rule.
        best: the front so far, shortest first.
    """

    def __init__(
        self,
        evidence: Sequence[Evidence],
        *,
        objective: str = "spearman",
        rules: bool = True,
        race: bool = True,
        workers: int = 1,
    ) -> None:
        """Begin with nothing seen.

        Args:
            evidence: of the search split of each benchmark.
            objective: one of `OBJECTIVES`.
            rules: whether rules discard; a score that is not finite always does.
            race: whether the race discards.
            workers: candidates evaluated at once; the results do not depend on it.
        """
        self.evaluations = 0
        self.discarded: Counter[str] = Counter()
        self.best: list[Candidate] = []
        self._rules = rules
        self._race = race and any(len(one.probe) < len(one.quality) for one in evidence)
        self._coefficient = OBJECTIVES[objective]
        self._pool = ThreadPoolExecutor(workers)
        self._benches = [_Bench.of(one) for one in evidence]
        self._trees: set[Node] = set()
        self._orders: set[int] = set()

    def judge(self, nodes: Sequence[Node]) -> list[Candidate]:
        """Discard or evaluate a batch; one candidate a tree, in the order given."""
        fell: dict[int, Candidate] = {}
        waiting: dict[int, Node] = {}
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
        racing: dict[int, tuple[Node, int]] = {}
        for (place, node), (rule_broken, order, values) in zip(
            waiting.items(), probed, strict=True
        ):
            if why := rule_broken or self._outdone(node, order, values):
                fell[place] = Candidate(node, None, why, order)
            else:
                racing[place] = (node, order)
                self._orders.add(order)
        reached = self._pool.map(self._fitness, [node for node, _ in racing.values()])
        for (place, (node, order)), fitness in zip(racing.items(), reached, strict=True):
            defined = math.isfinite(fitness)
            fell[place] = Candidate(
                node, fitness if defined else None, "" if defined else UNDEFINED, order
            )
        judged = [fell[place] for place in range(len(nodes))]
        self._count(judged)
        return judged

    def recall(self, judged: Sequence[Candidate]) -> None:
        """Take a batch that was judged before, as if it were judged now."""
        by_tree = {rule.name for rule in RULES}
        for one in judged:
            if one.discarded not in by_tree:
                self._trees.add(one.node)
            if one.order and one.discarded in ("", UNDEFINED):
                self._orders.add(one.order)
        self._count(judged)

    def close(self) -> None:
        """Let the workers go."""
        self._pool.shutdown()

    def _count(self, judged: Sequence[Candidate]) -> None:
        self.discarded.update(one.discarded for one in judged if one.discarded)
        self.evaluations += sum(one.fitness is not None for one in judged)
        self.best = front([*self.best, *judged])

    def _probed(self, node: Node) -> tuple[str, int, list[Values]]:
        """A rule that a tree falls to by its values, the order that it makes, and the values."""
        probed = [bench.on_probe.scores(node) for bench in self._benches]
        if not all(np.isfinite(values).all() for values in probed):
            return UNDEFINED, 0, probed
        if not self._rules:
            return "", 0, probed
        if any(np.ptp(values) <= _BLIND * np.abs(values).max() for values in probed):
            return CONSTANT, 0, probed
        if _reads_data(node) and all(
            np.allclose(
                bench.other_data.scores(node), values, rtol=_BLIND, atol=0.0, equal_nan=True
            )
            for bench, values in zip(self._benches, probed, strict=True)
        ):
            return BLIND, 0, probed
        return "", _fingerprint(probed), probed

    def _outdone(self, node: Node, order: int, probed: Sequence[Values]) -> str:
        """A rule that a tree falls to beside those before it."""
        if self._rules and order in self._orders:
            return DUPLICATE
        if not self._race:
            return ""
        highest = agreed(  # what it may yet rise to
            [
                fisher_z(self._coefficient(values, bench.probe_quality, bench.probe_params))
                for bench, values in zip(self._benches, probed, strict=True)
            ],
            [_ROOM / math.sqrt(len(values) - 3) for values in probed],
        )
        return "" if highest >= fisher_z(to_beat(self.best, node.size)) else RACE

    def _fitness(self, node: Node) -> float:
        """What a tree is worth on the benchmark that it ranks worst; NaN if undefined there."""
        worst = agreed(
            [
                self._coefficient(bench.everything.scores(node), bench.quality, bench.params)
                for bench in self._benches
            ]
        )
        return float(np.maximum(worst, 0.0))


@dataclass(frozen=True)
class _Bench:
    """A benchmark's evidence, arranged for computing."""

    everything: DeepEvaluator
    on_probe: DeepEvaluator
    other_data: DeepEvaluator
    quality: Values
    params: Values
    probe_quality: Values
    probe_params: Values

    @classmethod
    def of(cls, evidence: Evidence) -> _Bench:
        probe, params = evidence.probe, evidence.sketches.spec["params"]
        return cls(
            DeepEvaluator(evidence.sketches),
            DeepEvaluator(evidence.sketches.subset(probe)),
            DeepEvaluator(evidence.other_data),
            evidence.quality,
            params,
            evidence.quality[probe],
            params[probe],
        )


def _reads_data(node: Node) -> bool:
    weights = {"weight", "mixer_weight", "mlp_weight"}
    return not node.leaves <= {*weights, *SPEC_LEAVES}


def _fingerprint(probed: Sequence[Values]) -> int:
    """A number that values of one order share, rising or falling; never 0."""
    ranks = [midranks(values) for values in probed]
    falling = [len(one) - 1 - one for one in ranks]
    ends = sorted(np.concatenate(one).tobytes() for one in (ranks, falling))
    digest = hashlib.blake2b(ends[0], digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1 | 1
