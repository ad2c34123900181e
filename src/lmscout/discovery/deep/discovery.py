"""Discovery in the deep space, from a benchmark to a proxy that no choice has seen tested."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import (
    Assessment,
    assess,
    assess_baselines,
    baselines_json,
    beats,
    number_json,
)
from lmscout.discovery.deep.candidates import OBJECTIVES, Candidate
from lmscout.discovery.deep.engines import ENGINES, engine_of
from lmscout.discovery.deep.evolution import Evolution, evolve
from lmscout.discovery.deep.record import Record
from lmscout.discovery.deep.screen import Evidence, Screen, probe_rows
from lmscout.discovery.discover import cache_name
from lmscout.discovery.splits import Split, split_benchmark
from lmscout.errors import LmscoutError
from lmscout.proxies.deep import SPEC_LEAVES, Node, format_node
from lmscout.proxies.deep.growing import Grammar
from lmscout.proxies.deep.members import MEMBERS
from lmscout.ranking import kendall, spearman
from lmscout.stages import Progress, Stages
from lmscout.statistics import Batch, Workers, score_proxies
from lmscout.statistics.sketches import collect_sketches

SKETCHES, SEARCHING, RESCORING, JUDGING = "sketches", "searching", "re-scoring", "judging"
FINALISTS = 20  # of the hall of fame, re-scored on full tensors


@dataclass(frozen=True)
class DeepSettings:
    """How the deep space is searched.

    Attributes:
        engine: "random", "regularized" or "genetic".
        evaluations: candidates evaluated on every search architecture.
        objective: "spearman", "kendall" or "beyond-size".
        spec_leaves: whether a proxy may read depth, width and size of the configuration.
        largest: words of a proxy, at most.
        rules: whether rules discard candidates.
        race: whether the race does.
        catalog: whether the search begins with the proxies of the literature.
    """

    engine: str = "genetic"
    evaluations: int = 2_000
    objective: str = "spearman"
    spec_leaves: bool = True
    largest: int = 16
    rules: bool = True
    race: bool = True
    catalog: bool = True

    def __post_init__(self) -> None:
        for name, given, known in (
            ("engine", self.engine, ENGINES),
            ("objective", self.objective, tuple(OBJECTIVES)),
        ):
            if given not in known:
                raise LmscoutError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")

    @property
    def grammar(self) -> Grammar:
        """The trees that may grow."""
        return Grammar(SPEC_LEAVES if self.spec_leaves else (), largest=self.largest)


@dataclass(frozen=True)
class DeepDiscovery:
    """What a search of the deep space found.

    Attributes:
        benchmark: the benchmark's name.
        metric: what its quality is.
        n_architectures: how many it holds.
        split: which of them the choice saw.
        settings: how it was searched.
        evolution: what the search went through.
        proxy: the one chosen.
        sign: 1, or -1 where it falls with quality; fixed on the search split.
        sketched: its fitness on sketches of the search split.
        search: Spearman's ρ and Kendall's τ-b of sign × proxy there, on full tensors.
        test: the same and more on the test split.
        baselines: the configuration baselines on the test split.
        seconds: by stage.
    """

    benchmark: str
    metric: str
    n_architectures: int
    split: Split
    settings: DeepSettings
    evolution: Evolution
    proxy: Node
    sign: int
    sketched: float
    search: tuple[float, float]
    test: Assessment
    baselines: tuple[Assessment, ...]
    seconds: dict[str, float]

    @property
    def beats_baselines(self) -> bool:
        """Whether the test ρ is above that of every configuration baseline."""
        return beats(self.test, self.baselines)

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        rho, tau = self.search
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "n_architectures": self.n_architectures,
            "n_search": len(self.split.search),
            "n_test": len(self.split.test),
            "space": "deep",
            "engine": self.settings.engine,
            "objective": self.settings.objective,
            "evaluations": self.evolution.evaluations,
            "asked": self.evolution.asked,
            "discarded": self.evolution.discarded,
            "front": [_candidate(one) for one in self.evolution.front],
            "best": {
                "proxy": format_node(self.proxy),
                "sign": self.sign,
                "sketched": self.sketched,
                "search": {"spearman": number_json(rho), "kendall": number_json(tau)},
                "test": self.test.to_json(),
            },
            "beats_baselines": self.beats_baselines,
            "baselines": baselines_json(self.baselines),
            "seconds": self.seconds,
        }


def discover_deep(
    benchmark: Benchmark,
    settings: DeepSettings,
    *,
    search: int,
    seed: int,
    cache: Path,
    record: Record | None = None,
    batch: Batch | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> DeepDiscovery:
    """Search the deep space on the search split and judge the best on the test split.

    Candidates are evaluated on sketches; the last few are scored again on full tensors, and
    by these the choice is made.

    Args:
        benchmark: architectures with measured quality.
        settings: how to search.
        search: how many architectures the choice sees.
        seed: of the split and of the search; the models' weights do not depend on it.
        cache: where sketches and scores are kept.
        record: of a search to continue.
        batch: what the models read.
        workers: how architectures are spread over processes, and candidates over threads.
        progress: called with a stage's name, what is done of it, and its size.

    Returns:
        The discovery.

    Raises:
        LmscoutError: the split does not fit the benchmark, the cache cannot be written, or
            no proxy was found.
    """
    split = split_benchmark(benchmark.specs, search=search, seed=seed)
    engine = engine_of(
        settings.engine,
        settings.grammar,
        seed,
        tuple(MEMBERS.values()) if settings.catalog else (),
    )
    workers = workers or Workers()
    batch = batch or Batch()
    stages = Stages(progress)
    label = cache_name(benchmark.name)
    known = benchmark.subset(split.search)
    with stages(SKETCHES) as told:
        probe = probe_rows(len(known), seed)
        sketches, other_data = (
            collect_sketches(
                one.specs, name=label, folder=cache, batch=read, workers=workers, progress=told
            )
            for one, read in (
                (known, batch),
                (known.subset(probe), replace(batch, seed=batch.seed + 1)),
            )
        )
    with stages(SEARCHING) as told:
        screen = Screen(
            Evidence(sketches, known.quality, probe, other_data),
            objective=settings.objective,
            rules=settings.rules,
            race=settings.race,
            workers=workers.threads,
        )
        evolution = evolve(
            engine,
            screen,
            evaluations=settings.evaluations,
            record=record,
            progress=told,
        )
        screen.close()
    if not evolution.hall:
        raise LmscoutError(
            f"{benchmark.name}: no proxy ranks the search split; is the quality the same for all?"
        )
    with stages(RESCORING) as told:
        finalists = evolution.hall[:FINALISTS]
        texts = [format_node(one.node) for one in finalists]
        rescored = score_proxies(
            known.specs,
            texts,
            name=label,
            folder=cache,
            batch=batch,
            workers=workers,
            progress=told,
        )
        params = np.array([spec.parameters() for spec in known.specs], np.float64)
        fitness = OBJECTIVES[settings.objective]
        reached = [abs(fitness(rescored[text], known.quality, params)) for text in texts]
        chosen = int(np.argmax(np.nan_to_num(reached)))
        sign = 1 if spearman(rescored[texts[chosen]], known.quality) >= 0 else -1
    with stages(JUDGING) as told:
        text = texts[chosen]
        test = benchmark.subset(split.test)
        unseen = score_proxies(
            test.specs,
            [text],
            name=label,
            folder=cache,
            batch=batch,
            workers=workers,
            progress=told,
        )
    return DeepDiscovery(
        benchmark=benchmark.name,
        metric=benchmark.metric,
        n_architectures=len(benchmark),
        split=split,
        settings=settings,
        evolution=evolution,
        proxy=finalists[chosen].node,
        sign=sign,
        sketched=_fitness(finalists[chosen]),
        search=_both(sign * rescored[text], known.quality),
        test=assess(text, sign * unseen[text], test),
        baselines=assess_baselines(test),
        seconds=stages.seconds,
    )


def _both(scores: npt.NDArray[np.float64], quality: npt.NDArray[np.float64]) -> tuple[float, float]:
    return spearman(scores, quality), kendall(scores, quality)


def _fitness(candidate: Candidate) -> float:
    assert candidate.fitness is not None
    return candidate.fitness


def _candidate(one: Candidate) -> dict[str, object]:
    return {"proxy": format_node(one.node), "size": one.node.size, "fitness": one.fitness}
