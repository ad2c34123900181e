"""Discovery in the deep space, from a benchmark to a proxy that no choice has seen tested."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.discovery.deep.candidates import OBJECTIVES
from lmscout.discovery.deep.engines import ENGINES, engine_of
from lmscout.discovery.deep.evolution import Evolution, evolve
from lmscout.discovery.deep.record import Record
from lmscout.discovery.deep.screen import Evidence, Screen, probe_rows
from lmscout.discovery.discover import cache_name
from lmscout.discovery.finding import Finding, judge_choice
from lmscout.discovery.splits import split_benchmark
from lmscout.errors import LmscoutError
from lmscout.proxies.deep import SPEC_LEAVES, Node, format_node
from lmscout.proxies.deep.growing import Grammar
from lmscout.proxies.deep.members import MEMBERS
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
class DeepDiscovery(Finding):
    """What a search of the deep space found.

    Attributes:
        settings: how it was searched.
        evolution: what the search went through.
        proxy: the one chosen.
        sketched: its fitness on sketches of the search split.
        seconds: by stage.
    """

    settings: DeepSettings
    evolution: Evolution
    proxy: Node
    sketched: float
    seconds: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            **self.benchmark_json(),
            "space": "deep",
            "engine": self.settings.engine,
            "objective": self.settings.objective,
            "evaluations": self.evolution.evaluations,
            "asked": self.evolution.asked,
            "discarded": self.evolution.discarded,
            "front": [
                {"proxy": format_node(one.node), "size": one.node.size, "fitness": one.fitness}
                for one in self.evolution.front
            ],
            **self.choice_json(sketched=self.sketched),
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
    evidence = Evidence(sketches, known.quality, probe, other_data)
    with (
        stages(SEARCHING) as told,
        closing(
            Screen(
                evidence,
                objective=settings.objective,
                rules=settings.rules,
                race=settings.race,
                workers=workers.threads,
            )
        ) as screen,
    ):
        evolution = evolve(
            engine, screen, evaluations=settings.evaluations, record=record, progress=told
        )
    if not evolution.hall:
        raise LmscoutError(
            f"{benchmark.name}: no proxy ranks the search split; is the quality the same for all?"
        )
    rescore = partial(score_proxies, name=label, folder=cache, batch=batch, workers=workers)
    with stages(RESCORING) as told:
        finalists = {format_node(one.node): one for one in evolution.hall[:FINALISTS]}
        searched = rescore(known.specs, list(finalists), progress=told)
        fitness, params = OBJECTIVES[settings.objective], sketches.spec["params"]
        reached = [abs(fitness(scores, known.quality, params)) for scores in searched.values()]
        text = list(searched)[int(np.argmax(np.nan_to_num(reached)))]
    with stages(JUDGING) as told:
        unseen = rescore(benchmark.subset(split.test).specs, [text], progress=told)
    chosen = finalists[text]
    assert chosen.fitness is not None  # the hall of fame holds what was evaluated
    return DeepDiscovery(
        **vars(judge_choice(benchmark, split, text, searched[text], unseen[text])),
        settings=settings,
        evolution=evolution,
        proxy=chosen.node,
        sketched=chosen.fitness,
        seconds=stages.seconds,
    )
