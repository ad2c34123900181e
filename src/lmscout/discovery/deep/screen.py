"""What is discarded before it costs a full evaluation, and what the rest is worth.

Three sieves, each finer and dearer than the one before (LPZero's rule-based pruning strategy,
arXiv 2410.04808, and a race): rules that look at the tree alone; rules that look at its values
on a few probe architectures, without their quality; and a race, in which the probe
architectures' quality makes it unlikely that a candidate enters the front.
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
import numpy.typing as npt

from lmscout.discovery.deep.candidates import OBJECTIVES, Candidate, Values, front, to_beat
from lmscout.proxies.deep import SPEC_LEAVES, Node
from lmscout.proxies.deep.growing import canonical
from lmscout.proxies.deep.rules import RULES, first_broken
from lmscout.ranking import midranks
from lmscout.statistics.deep_values import DeepEvaluator
from lmscout.statistics.sketches import Sketches

PROBE = 24  # architectures on which values are looked at before all are computed
_ROOM = 1.64  # standard errors of Fisher's z by which a racing candidate may yet rise
_BLIND = 1e-6  # relative change with other data below which nothing of it was read

SEEN, UNDEFINED, CONSTANT = "seen before", "undefined", "constant"
DUPLICATE, BLIND, RACE = "rank duplicate", "blind to data", "race"
VALUE_RULES: Mapping[str, str] = MappingProxyType(
    {
        SEEN: "the same tree, up to the order of what commutes",
        UNDEFINED: "an architecture has no finite score",
        CONSTANT: "all probe architectures have one score",
        DUPLICATE: "it orders the probe architectures as one before it does, or in reverse",
        BLIND: "it reads data, and other data leave its scores as they are",
        RACE: "on the probe architectures it is too far behind the front for its size",
    }
)
NAMES = (*(rule.name for rule in RULES), *VALUE_RULES)


@dataclass(frozen=True)
class Evidence:
    """What candidates are judged by: the search split and nothing else.

    Attributes:
        sketches: of the search architectures.
        quality: [n], higher is better.
        probe: rows of the architectures on which values are looked at first.
        other_data: of these, read with another batch.
    """

    sketches: Sketches
    quality: Values
    probe: npt.NDArray[np.int64]
    other_data: Sketches


def probe_rows(n: int, seed: int) -> npt.NDArray[np.int64]:
    """Which of n search architectures are the probe: `PROBE` of them, or all."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:PROBE])


class Screen:
    """Judges candidates in batches; what it decides depends on the batches before alone.

    Attributes:
        evaluations: candidates evaluated on every search architecture.
        discarded: how many fell to which rule.
        best: the front so far, shortest first.
    """

    def __init__(
        self,
        evidence: Evidence,
        *,
        objective: str = "spearman",
        rules: bool = True,
        race: bool = True,
        workers: int = 1,
    ) -> None:
        """Begin with nothing seen.

        Args:
            evidence: of the search split.
            objective: one of `OBJECTIVES`.
            rules: whether rules discard; a score that is not finite always does.
            race: whether the race discards.
            workers: candidates evaluated at once; the results do not depend on it.
        """
        probe = evidence.probe
        self.evaluations = 0
        self.discarded: Counter[str] = Counter()
        self.best: list[Candidate] = []
        self._rules, self._race = rules, race and len(probe) < len(evidence.quality)
        self._fitness = OBJECTIVES[objective]
        self._quality, self._probe = evidence.quality, probe
        self._params = evidence.sketches.spec["params"]
        self._pool = ThreadPoolExecutor(workers)
        self._everything = DeepEvaluator(evidence.sketches)
        self._on_probe = DeepEvaluator(evidence.sketches.subset(probe))
        self._other_data = DeepEvaluator(evidence.other_data)
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
        every = self._pool.map(self._everything.scores, [node for node, _ in racing.values()])
        for (place, (node, order)), scores in zip(racing.items(), every, strict=True):
            fell[place] = self._evaluated(node, order, scores)
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

    def _probed(self, node: Node) -> tuple[str, int, Values]:
        """A rule that a tree falls to by its values, the order that it makes, and the values."""
        values = self._on_probe.scores(node)
        if not np.isfinite(values).all():
            return UNDEFINED, 0, values
        if not self._rules:
            return "", 0, values
        if np.ptp(values) <= _BLIND * np.abs(values).max():
            return CONSTANT, 0, values
        if _reads_data(node):
            others = self._other_data.scores(node)
            if np.allclose(others, values, rtol=_BLIND, atol=0.0, equal_nan=True):
                return BLIND, 0, values
        return "", _fingerprint(values), values

    def _outdone(self, node: Node, order: int, values: Values) -> str:
        """A rule that a tree falls to beside those before it."""
        if self._rules and order in self._orders:
            return DUPLICATE
        if not self._race:
            return ""
        rows = self._probe
        reached = abs(self._fitness(values, self._quality[rows], self._params[rows]))
        behind = _z(to_beat(self.best, node.size)) - _z(reached)
        return RACE if not behind <= _ROOM / math.sqrt(len(rows) - 3) else ""

    def _evaluated(self, node: Node, order: int, scores: Values) -> Candidate:
        fitness = abs(self._fitness(scores, self._quality, self._params))
        if not math.isfinite(fitness):
            return Candidate(node, None, UNDEFINED, order)
        return Candidate(node, fitness, "", order)


def _reads_data(node: Node) -> bool:
    weights = {"weight", "mixer_weight", "mlp_weight"}
    return not node.leaves <= {*weights, *SPEC_LEAVES}


def _fingerprint(values: Values) -> int:
    """A number that values of one order share, rising or falling; never 0."""
    ranks = midranks(values)
    ends = sorted((ranks.tobytes(), (len(ranks) - 1 - ranks).tobytes()))
    digest = hashlib.blake2b(ends[0], digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1 | 1


def _z(correlation: float) -> float:
    """Fisher's transformation, of which a correlation's error is nearly constant."""
    return math.atanh(min(correlation, 0.999999))
