"""Symbolic search of the deep space: settings, searches, the proxy and its held-out assessment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.cluster import Cluster, connect
from lmscout.discovery.assessment import SavedTree
from lmscout.discovery.combination import Known, Product, choose, correction
from lmscout.discovery.discover import TOP, Finding, assess_choice
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
from lmscout.discovery.filters import Filters, SearchData, SplitBenchmark
from lmscout.discovery.scorer import (
    Scorer,
    ScorerOptions,
    cache_name,
    mean_of,
    search_size,
    split_benchmark,
)
from lmscout.discovery.search_record import Evolution, Record, evolve
from lmscout.errors import LmscoutError, check_types, check_whole, require_known
from lmscout.progress import Progress, StageProgress, Stages, part_of
from lmscout.proxies import LITERATURE, Grammar, format_expression
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.results import Result
from lmscout.runs import RESULT, Run, default_run_folder, open_run, read_settings, same_settings
from lmscout.statistics import Workers
from lmscout.statistics.collect import one_thread
from lmscout.statistics.workers import worker_processes
from lmscout.version import __version__

_LONG = 100  # evaluations of a search that take longer than a process needs to start
FINALISTS = 4  # of each search, scored on full tensors


@dataclass(frozen=True)
class DeepSettings:
    """How the deep space is searched.

    Attributes:
        engine: "genetic", "regularized", "random" or "exhaustive".
        evaluations: candidates evaluated on every search architecture, in all.
        searches: independent searches that share them; the proxy is the product of their best.
        objective: fitness: "spearman+pearson", "spearman", "kendall" or "beyond-size".
        spec_leaves: whether a proxy may read depth, width and size of the configuration.
        largest: words of a candidate, at most.
        rules: whether rules discard candidates.
        race: whether racing does.
        catalog: whether a search starts with the proxies of the literature.
        correction: whether coefficients of depth, width and size are fitted to the product.
        weights: draws of initial weights and data over which a score is averaged.

    Raises:
        LmscoutError: a name is unknown, or a number is too small.

    Example:
        >>> import lmscout
        >>> config = lmscout.DeepSearchConfig(engine="random", evaluations=100, searches=2)
        >>> config.objective  # for lmscout.discover(..., space="deep", config=config)
        'spearman+pearson'
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
    weights: int = 1

    def __post_init__(self) -> None:
        check_types("DeepSearchConfig", self.__annotations__, vars(self))
        require_known("engine", self.engine, ENGINES)
        require_known("objective", self.objective, OBJECTIVES)
        for name in ("evaluations", "searches", "largest", "weights"):
            check_whole(name, getattr(self, name), 1)
        if self.engine == EXHAUSTIVE and self.searches > 1:
            raise LmscoutError(
                f"{self.searches} exhaustive searches would all find the same: give 1 for searches"
            )

    @property
    def corrections(self) -> bool:
        """Whether a correction is fitted: the configuration may be read, and counts."""
        return self.correction and self.spec_leaves and self.objective != "beyond-size"

    @property
    def share(self) -> int:
        """Candidates that each search evaluates."""
        return -(-self.evaluations // self.searches)

    @property
    def grammar(self) -> Grammar:
        """The grammar of the candidates."""
        return Grammar(SPEC_LEAVES if self.spec_leaves else (), largest=self.largest)


@dataclass(frozen=True, repr=False)
class DeepDiscovery(Result):
    """The result of a search of the deep space.

    Attributes:
        findings: the proxy, assessed on the test split of each benchmark.
        settings: of the search.
        evolutions: the result of each search.
        members: the best of each search by fitness on full tensors, except those far behind.
        proxy: their product, or the only one; with the correction, if one was fitted.
        corrected: whether one was.
        seconds: by stage.
    """

    findings: tuple[Finding, ...]
    settings: DeepSettings
    evolutions: tuple[Evolution, ...]
    members: tuple[Candidate, ...]
    proxy: SavedTree
    corrected: bool
    seconds: dict[str, float]

    @property
    def front(self) -> list[Candidate]:
        """The Pareto front of fitness and size of all searches, shortest first."""
        return front(one for each in self.evolutions for one in each.front)

    @property
    def top(self) -> list[Candidate]:
        """The fittest of all searches, fittest first; the shortest of those equally fit."""
        halls = {one.node: one for each in self.evolutions for one in each.hall}
        every = fittest(halls.values(), len(halls))
        return list({one.fitness: one for one in reversed(every)}.values())[::-1][:TOP]

    @property
    def discarded(self) -> Counter[str]:
        """Number of candidates of all searches that each rule discarded."""
        return sum((Counter(each.discarded) for each in self.evolutions), Counter())

    @property
    def evaluations(self) -> int:
        """Number of candidates evaluated in all searches."""
        return sum(each.evaluations for each in self.evolutions)

    @property
    def proposed(self) -> int:
        """Number of candidates proposed in all searches."""
        return sum(each.proposed for each in self.evolutions)

    def rows(self) -> list[dict[str, Any]]:
        """The Pareto front of fitness and size, and the best of every search."""
        kinds = (("front", self.front), ("best of a search", self.members))
        return [
            {"proxy": format_expression(one.node), "kind": kind, **_row(one)}
            for kind, some in kinds
            for one in some
        ]

    @property
    def best(self) -> str:
        """The proxy, with a minus sign before it if lower scores are better, as on the first."""
        return self.findings[0].best

    def __repr__(self) -> str:
        found = ", ".join(
            f"{one.benchmark} {one.test.agreement.spearman.value:.3f}" for one in self.findings
        )
        return f"DeepDiscovery(test ρ: {found}; evaluations={self.evaluations})"

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it: flat for one benchmark."""
        findings = [{**one.benchmark_json(), **one.choice_json()} for one in self.findings]
        return {
            "space": "deep",
            "engine": self.settings.engine,
            "objective": self.settings.objective,
            "evaluations": self.evaluations,
            "proposed": self.proposed,
            "discarded": dict(self.discarded),
            "front": list(map(_row, self.front)),
            "members": list(map(_row, self.members)),
            "top": list(map(_row, self.top)),
            "corrected": self.corrected,
            **(findings[0] if len(findings) == 1 else {"benchmarks": findings}),
            "seconds": self.seconds,
        }


def _row(one: Candidate) -> dict[str, object]:
    return {"proxy": format_expression(one.node), "size": one.node.size, "fitness": one.fitness}


@worker_processes()
def discover_deep(
    benchmarks: Sequence[Benchmark],
    settings: DeepSettings,
    *,
    search: Sequence[int],
    seed: int,
    folder: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[ScorerOptions],
) -> DeepDiscovery:
    """Search the deep space on search splits and assess the proxy on the test splits.

    Candidates are evaluated on sketches; on several benchmarks fitness is the minimum over them.
    The fittest of every search are scored again on full tensors, the best of each are multiplied,
    and on one benchmark a correction is fitted.  A search that is recorded in the folder is
    continued; the workers evaluate candidates in threads.  LmscoutError if a split does not fit its
    benchmark, the cache cannot be written, or no proxy was found.
    """
    stages = Stages(progress)
    splits = tuple(
        SplitBenchmark(
            one,
            split_benchmark(one.specs, search=size, seed=seed),
            Scorer(one.specs, cache_name(one.name), **options),
        )
        for one, size in zip(benchmarks, search, strict=True)
    )
    evolutions, product = choose_deep(splits, settings, seed, folder, stages)
    text = format_expression(product.node)
    with stages("testing") as update:
        held_out = [
            one.scorer.subset(one.split.test).drawn_scores([text], settings.weights, update)[text]
            for one in splits
        ]
    findings = tuple(
        assess_choice(one.benchmark, one.split, text, searched, mean_of(scores))
        for one, searched, scores in zip(splits, product.searched, held_out, strict=True)
    )
    return DeepDiscovery(
        findings,
        settings,
        evolutions,
        product.members,
        product.node,
        product.corrected,
        stages.seconds,
    )


def choose_deep(
    splits: tuple[SplitBenchmark, ...],
    settings: DeepSettings,
    seed: int,
    folder: Path | None = None,
    stages: Stages | None = None,
) -> tuple[tuple[Evolution, ...], Product]:
    """The searches, and the product of their best: the part that uses the search splits alone."""
    stages = stages or Stages()
    with stages("sketches") as update:
        data = [one.search_data(seed, settings.weights, update) for one in splits]
    with stages("searching") as update:
        workers = splits[0].scorer.workers or Workers()
        evolutions = _searches(settings, data, seed, folder, workers, update)
    # The fittest of a few sizes: the fittest of all are alike, and fail together.
    finalists = [each.front[-FINALISTS:] for each in evolutions]
    nodes = list(dict.fromkeys(one.node for each in finalists for one in each))
    if not nodes:
        raise LmscoutError(
            f"{', '.join(one.benchmark.name for one in splits)}: no proxy ranks the search split; "
            "is the quality the same for all?"
        )
    with stages("re-scoring") as update:
        texts = {node: format_expression(node) for node in nodes}
        rescored = [
            one.scorer.subset(one.split.search).drawn_scores(
                texts.values(), settings.weights, update
            )
            for one in splits
        ]
    known = [
        Known(
            {node: scores[text] for node, text in texts.items()},
            one.quality,
            one.sketches.spec["params"],
        )
        for scores, one in zip(rescored, data, strict=True)
    ]
    product = choose(finalists, known, OBJECTIVES[settings.objective])
    if settings.corrections and len(data) == 1:  # qualities of several have different scales
        product = correction(product, data[0].sketches.spec, data[0].quality)
    return evolutions, product


def _searches(
    settings: DeepSettings,
    data: Sequence[SearchData],
    seed: int,
    folder: Path | None,
    workers: Workers,
    progress: StageProgress | None,
) -> tuple[Evolution, ...]:
    """Independent searches with seeds of their own: all at once in processes, if that is faster."""
    if workers.cluster is not None:
        cluster = connect(workers.cluster)
        return _searches_on(cluster, settings, data, seed, folder, progress)
    share = settings.share
    found: list[Evolution] = []
    if workers.several and settings.searches > 1 and share >= _LONG:
        search = partial(_search_apart, settings, data, seed, folder)
        numbers = range(settings.searches)
        with worker_processes() as started, started(workers, search, numbers) as evolutions:
            for one in evolutions:
                found.append(one)
                if progress:
                    progress(len(found) * share, settings.searches * share)
        if folder:
            Record(folder).show([one for each in found for one in each.hall])
        return tuple(found)
    for number in range(settings.searches):
        hall = [one for each in found for one in each.hall]
        record = Record(folder, number, hall) if folder else None
        update = part_of(progress, number * share, settings.searches * share)
        found.append(
            _search(settings, data, seed, number, workers.threads, record=record, progress=update)
        )
    return tuple(found)


def _searches_on(
    cluster: Cluster,
    settings: DeepSettings,
    data: Sequence[SearchData],
    seed: int,
    folder: Path | None,
    progress: StageProgress | None,
) -> tuple[Evolution, ...]:
    """All searches at once; each is recorded when it ends."""
    records = [Record(folder, number) for number in range(settings.searches)] if folder else []
    begun = [list(one.batches()) for one in records] or [[] for _ in range(settings.searches)]
    found: dict[int, Evolution] = {}
    search = partial(_search_there, settings, data, seed)
    for number, (evolution, batches) in cluster.map(search, list(enumerate(begun))):
        found[number] = evolution
        for batch in range(len(begun[number]), len(batches) if records else 0):
            records[number].add(batch, batches[batch])
        if records:
            records[number].save(evolution.hall)
        if progress:
            progress(len(found) * settings.share, settings.searches * settings.share)
    for one in records[-1:]:
        one.show([best for each in found.values() for best in each.hall])
    return tuple(found[number] for number in range(settings.searches))


def _search_there(
    settings: DeepSettings,
    data: Sequence[SearchData],
    seed: int,
    begun: tuple[int, list[list[Candidate]]],
) -> tuple[Evolution, list[list[Candidate]]]:
    """A search by its number, with its batches so far, and all of them in the end."""
    number, batches = begun
    with TemporaryDirectory() as scratch:
        record = Record(Path(scratch), number, None)
        for place, batch in enumerate(batches):
            record.add(place, batch)
        record.save(())
        evolution = _search(settings, data, seed, number, 1, record=record)
        return evolution, list(Record(Path(scratch), number, None).batches())


def _search_apart(
    settings: DeepSettings,
    data: Sequence[SearchData],
    seed: int,
    folder: Path | None,
    number: int,
) -> Evolution:
    """A search by its number, recorded by the process that computes it.

    In one thread: proposing, in Python, takes longer than the evaluations that threads share.
    """
    record = Record(folder, number, None) if folder else None
    return _search(settings, data, seed, number, 1, record=record)


def _search(
    settings: DeepSettings,
    data: Sequence[SearchData],
    seed: int,
    number: int,
    threads: int,
    *,
    record: Record | None = None,
    progress: StageProgress | None = None,
) -> Evolution:
    engine = engine_of(
        settings.engine,
        settings.grammar,
        int(np.random.SeedSequence((seed, number)).generate_state(1)[0]),
        tuple(LITERATURE.values()) if settings.catalog else (),
    )
    with (
        one_thread(),
        closing(
            Filters(
                data,
                objective=settings.objective,
                rules=settings.rules,
                race=settings.race,
                workers=threads,
            )
        ) as filters,
    ):
        return evolve(engine, filters, evaluations=settings.share, record=record, progress=progress)


def kept_deep_discovery(
    benchmarks: Sequence[Benchmark],
    settings: DeepSettings,
    *,
    search: Sequence[int | None],
    seed: int,
    out: Path | None,
    progress: Progress | None,
    **options: Unpack[ScorerOptions],
) -> tuple[Run, DeepDiscovery]:
    """The run and its result, see `discover_deep` and `begin_deep`; a finished one is loaded."""
    sizes = [search_size(*one) for one in zip(search, map(len, benchmarks), strict=True)]
    device = (options.get("workers") or Workers()).device
    run = begin_deep(out, benchmarks, settings, search=sizes, seed=seed, device=device)
    if run.finished:
        return run, run.load(DeepDiscovery)
    given: dict[str, Any] = {"search": sizes, "seed": seed, "progress": progress, **options}
    result = discover_deep(benchmarks, settings, folder=run.folder, **given)
    run.end(result)
    return run, result


def begin_deep(
    folder: Path | None,
    benchmarks: Sequence[Benchmark],
    settings: DeepSettings,
    *,
    search: Sequence[int],
    seed: int,
    device: str = "cpu",
) -> Run:
    """Open the run folder of a search of the deep space: new, to be continued, or finished.

    Without a folder it is the newest under runs/ that holds the same unfinished search, or a new
    one.  Of the device, its kind counts and not its number.  LmscoutError if the folder holds
    something else, or a search with other settings or of another version, or cannot be written.
    """
    wanted = {
        "space": "deep",
        "benchmarks": [one.name for one in benchmarks],
        "benchmarks_sha256": [one.digest for one in benchmarks],
        **asdict(settings),
        "search": list(search),
        "seed": seed,
        "device": device.partition(":")[0],
    }
    if folder is None:
        label = "-".join(cache_name(one.name) for one in benchmarks)
        fresh = default_run_folder(f"discover-{label}-deep-{seed}")
        unfinished = [
            one
            for one in fresh.parent.glob("discover-*")
            if _of_this_version(there := read_settings(one))
            and same_settings(there, wanted)
            and not (one / RESULT).exists()
        ]
        folder = max(unfinished, key=lambda one: one.stat().st_mtime, default=fresh)
    run = open_run(folder, "discover", wanted)
    if run.begun and not run.finished and not _of_this_version(read_settings(folder)):
        raise LmscoutError(
            f"{run.name} holds an unfinished search of another version of lmscout: name "
            "another folder"
        )
    if not run.begun:
        run.begin()
    return run


def _of_this_version(settings: object) -> bool:
    """Whether this version began a search; another one would continue it differently."""
    found = settings.get("environment") if isinstance(settings, dict) else None
    return isinstance(found, dict) and found.get("lmscout") == __version__
