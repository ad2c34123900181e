"""Symbolic search of the deep space: settings, searches, and the proxy that is tested.

How the deep space is searched: all that a user can choose, checked.

Discovery in the deep space, from benchmarks to a proxy that no choice has seen tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.discovery.combination import Known, Product, choose, correction
from lmscout.discovery.discover import Finding, assess_choice
from lmscout.discovery.engines import (
    DEFAULT_OBJECTIVE,
    ENGINES,
    EXHAUSTIVE,
    OBJECTIVES,
    Candidate,
    engine_of,
    fittest,
    front,
)
from lmscout.discovery.filters import FilterChain, SearchData, SplitBenchmark
from lmscout.discovery.search_record import Evolution, Record, evolve
from lmscout.discovery.splits import split_benchmark
from lmscout.errors import LmscoutError, check_whole
from lmscout.progress import Progress, StageProgress, Stages, part_of
from lmscout.proxies import LITERATURE, Expression, Grammar, format_expression, parse
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.results import Result, SavedAs
from lmscout.statistics import Batch, Workers
from lmscout.statistics.workers import worker_processes


@dataclass(frozen=True)
class DeepSettings:
    """How the deep space is searched.

    Attributes:
        engine: one of `ENGINES`.
        evaluations: candidates evaluated on every search architecture, in all.
        searches: independent searches that share them; the proxy is the product of their best.
        objective: one of `OBJECTIVES`.
        spec_leaves: whether a proxy may read depth, width and size of the configuration.
        largest: words of a candidate, at most.
        rules: whether rules discard candidates.
        race: whether the race does.
        catalog: whether a search begins with the proxies of the literature.
        correction: whether numbers are fitted to the product, see `corrections`.

    Raises:
        LmscoutError: a name is unknown, or a number is none or too small.
    """

    engine: str = "genetic"
    evaluations: int = 600
    searches: int = 4
    objective: str = DEFAULT_OBJECTIVE
    spec_leaves: bool = True
    largest: int = 16
    rules: bool = True
    race: bool = True
    catalog: bool = True
    correction: bool = True

    def __post_init__(self) -> None:
        for name, given, known in (
            ("engine", self.engine, ENGINES),
            ("objective", self.objective, tuple(OBJECTIVES)),
        ):
            if given not in known:
                raise LmscoutError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")
        for name in ("evaluations", "searches", "largest"):
            check_whole(name, getattr(self, name), 1)
        if self.engine == EXHAUSTIVE and self.searches > 1:
            raise LmscoutError(
                f"{self.searches} exhaustive searches would all find the same: ask for --searches 1"
            )

    @property
    def corrections(self) -> bool:
        """Whether the product is bent to the configuration: where that may be read, and counts."""
        return self.correction and self.spec_leaves and self.objective != "beyond-size"

    @property
    def grammar(self) -> Grammar:
        """The trees that may grow."""
        return Grammar(SPEC_LEAVES if self.spec_leaves else (), largest=self.largest)


SKETCHES, SEARCHING, RESCORING, JUDGING = "sketches", "searching", "re-scoring", "judging"
FINALISTS = 4  # of each search, re-scored on full tensors
TOP = 10  # formulas that are listed


@dataclass(frozen=True, repr=False)
class DeepDiscovery(Result):
    """What a discovery in the deep space found.

    Attributes:
        findings: the proxy judged on the test split of each benchmark.
        settings: how it was searched.
        evolutions: what each search went through.
        members: the best of each search, by its fitness on full tensors, but for those that are
            far behind.
        proxy: their product, or the only one; bent to the configuration, if that was wished.
        bent: whether it is.
        seconds: by stage.
    """

    findings: tuple[Finding, ...]
    settings: DeepSettings
    evolutions: tuple[Evolution, ...]
    members: tuple[Candidate, ...]
    proxy: Annotated[Expression, SavedAs(format_expression, parse)]
    bent: bool
    seconds: dict[str, float]

    @property
    def front(self) -> list[Candidate]:
        """The fittest of every size of all searches, shortest first."""
        return front(one for each in self.evolutions for one in each.front)

    @property
    def top(self) -> list[Candidate]:
        """The fittest of all searches, fittest first, the shortest of those equally fit alone."""
        halls = {one.node: one for each in self.evolutions for one in each.hall}
        every = fittest(halls.values(), len(halls))
        return list({one.fitness: one for one in reversed(every)}.values())[::-1][:TOP]

    @property
    def discarded(self) -> Counter[str]:
        """How many candidates of all searches fell to which rule."""
        return sum((Counter(each.discarded) for each in self.evolutions), Counter())

    @property
    def evaluations(self) -> int:
        """Candidates evaluated in all searches."""
        return sum(each.evaluations for each in self.evolutions)

    @property
    def asked(self) -> int:
        """Candidates proposed in all searches."""
        return sum(each.asked for each in self.evolutions)

    def rows(self) -> list[dict[str, Any]]:
        """The Pareto front of fitness and size, and the best of every search."""
        kinds = (("front", self.front), ("best of a search", self.members))
        return [
            {
                "kind": kind,
                "proxy": format_expression(one.node),
                "size": one.node.size,
                "fitness": one.fitness,
            }
            for kind, some in kinds
            for one in some
        ]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it: flat where there is one benchmark."""
        evaluated = [{**one.benchmark_json(), **one.choice_json()} for one in self.findings]
        return {
            "space": "deep",
            "engine": self.settings.engine,
            "objective": self.settings.objective,
            "evaluations": self.evaluations,
            "asked": self.asked,
            "discarded": dict(self.discarded),
            "front": list(map(_candidate, self.front)),
            "members": list(map(_candidate, self.members)),
            "top": list(map(_candidate, self.top)),
            "bent": self.bent,
            **(evaluated[0] if len(evaluated) == 1 else {"benchmarks": evaluated}),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Choice:
    """A proxy that was chosen on search splits, and not judged yet.

    Attributes:
        grounds: the benchmarks, each with its split.
        evolutions: what each search went through.
        product: the best of each search, and their product.
    """

    grounds: tuple[SplitBenchmark, ...]
    evolutions: tuple[Evolution, ...]
    product: Product


@worker_processes()
def discover_deep(
    benchmarks: Sequence[Benchmark],
    settings: DeepSettings,
    *,
    search: Sequence[int],
    seed: int,
    cache: Path,
    folder: Path | None = None,
    batch: Batch | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> DeepDiscovery:
    """Search the deep space on search splits and judge what is found on the test splits.

    Candidates are evaluated on sketches.  The fittest of every search are scored again on full
    tensors, the best of each is taken, and these are multiplied; on one benchmark, the product
    is bent to the configuration.  On several a candidate is worth what it is worth on the worst
    of them.

    Args:
        benchmarks: architectures with measured quality.
        settings: how to search.
        search: how many architectures of each benchmark the choice sees.
        seed: of the splits and of the searches; the models' weights do not depend on it.
        cache: where sketches and scores are kept.
        folder: where the searches are recorded; those that are there are continued.
        batch: what the models read.
        workers: how architectures are spread over processes, and candidates over threads.
        progress: called with a stage's name, what is done of it, and its size.

    Returns:
        The discovery.

    Raises:
        LmscoutError: a split does not fit its benchmark, the cache cannot be written, or no
            proxy was found.
    """
    stages = Stages(progress)
    grounds = tuple(
        SplitBenchmark(
            one,
            split_benchmark(one.specs, search=size, seed=seed),
            cache,
            batch or Batch(),
            workers or Workers(),
        )
        for one, size in zip(benchmarks, search, strict=True)
    )
    chosen = choose_deep(grounds, settings, seed, folder, stages)
    text = format_expression(chosen.product.node)
    with stages(JUDGING) as update:
        findings = [
            assess_choice(
                one.benchmark,
                one.split,
                text,
                searched,
                one.scores(one.split.test, [text], update)[text],
            )
            for one, searched in zip(grounds, chosen.product.searched, strict=True)
        ]
    return DeepDiscovery(
        tuple(findings),
        settings,
        chosen.evolutions,
        chosen.product.members,
        chosen.product.node,
        chosen.product.bent,
        stages.seconds,
    )


def choose_deep(
    grounds: tuple[SplitBenchmark, ...],
    settings: DeepSettings,
    seed: int,
    folder: Path | None = None,
    stages: Stages | None = None,
) -> Choice:
    """The first half of `discover_deep`: what sees the search splits alone.

    Args:
        grounds: the benchmarks, each with its split.
        settings: how to search.
        seed: of the searches.
        folder: where the searches are recorded; those that are there are continued.
        stages: times and tells of what is done.

    Raises:
        LmscoutError: the cache cannot be written, or no proxy was found.
    """
    stages = stages or Stages()
    with stages(SKETCHES) as update:
        search_data = [one.search_data(seed, update) for one in grounds]
    with stages(SEARCHING) as update:
        threads = grounds[0].workers.threads
        evolutions = _searches(settings, search_data, seed, folder, threads, update)
    # The fittest of a few sizes: the fittest of all are alike, and fail together.
    finalists = [each.front[-FINALISTS:] for each in evolutions]
    nodes = {format_expression(one.node): one.node for each in finalists for one in each}
    if not nodes:
        raise LmscoutError(
            f"{', '.join(one.benchmark.name for one in grounds)}: no proxy ranks the search split; "
            "is the quality the same for all?"
        )
    with stages(RESCORING) as update:
        rescored = [one.scores(one.split.search, list(nodes), update) for one in grounds]
    known = [
        Known(
            {node: scores[text] for text, node in nodes.items()},
            one.quality,
            one.sketches.spec["params"],
        )
        for scores, one in zip(rescored, search_data, strict=True)
    ]
    product = choose(finalists, known, OBJECTIVES[settings.objective])
    if settings.corrections and len(search_data) == 1:  # quality of several is on scales of its own
        (own,) = search_data
        product = correction(product, own.sketches.spec, own.quality)
    return Choice(grounds, evolutions, product)


def _searches(
    settings: DeepSettings,
    search_data: Sequence[SearchData],
    seed: int,
    folder: Path | None,
    threads: int,
    progress: StageProgress | None,
) -> tuple[Evolution, ...]:
    """Independent searches, one after the other; each alone depends on its number."""
    share = -(-settings.evaluations // settings.searches)
    found: list[Evolution] = []
    for number in range(settings.searches):
        engine = engine_of(
            settings.engine,
            settings.grammar,
            int(np.random.SeedSequence((seed, number)).generate_state(1)[0]),
            tuple(LITERATURE.values()) if settings.catalog else (),
        )
        hall = [one for each in found for one in each.hall]
        filter_chain = FilterChain(
            search_data,
            objective=settings.objective,
            rules=settings.rules,
            race=settings.race,
            workers=threads,
        )
        with closing(filter_chain):
            found.append(
                evolve(
                    engine,
                    filter_chain,
                    evaluations=share,
                    record=Record(folder, number, hall) if folder else None,
                    progress=part_of(progress, number * share, settings.searches * share),
                )
            )
    return tuple(found)


def _candidate(one: Candidate) -> dict[str, object]:
    return {"proxy": format_expression(one.node), "size": one.node.size, "fitness": one.fitness}
