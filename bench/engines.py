"""Which engine searches the deep space best, and what the rules and the race save.

    python bench/engines.py [--benchmarks pico lts:random_GPT2_wt103] [--seeds 10]
        [--evaluations 100] [--objective spearman] [--tables engines filters] [--workers 2]
        [--folder DIR] [--json FILE]

Sketches of whole benchmarks are collected (into DIR, where a second call finds them).  For every
seed, search splits of 40 (FlexiBERT: 100) architectures.  Two tables:

engines, each with the same number of full evaluations: the fittest's fitness on the search
split, the front's hypervolume (fitness against size), the fittest's ρ on the test split (on
sketches), and in how many seeds the genetic engine is ahead, with Wilcoxon's signed-rank p.  A
search may end sooner, where the race lets nothing through any more; so the hypervolume is compared
once more where the two had the same number of evaluations, that of the one which ended first.

filters: the genetic engine with rules, race, both and neither switched off, until its front's
hypervolume is that of the search with both; how many full evaluations that took, as a multiple.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from pymoo.indicators.hv import HV

from lmscout.benchmarks import Benchmark, load
from lmscout.discovery.engines import ENGINES, EXHAUSTIVE, Candidate, engine_of, front
from lmscout.discovery.filters import Filters
from lmscout.discovery.scorer import split_benchmark
from lmscout.discovery.search_record import evolve
from lmscout.discovery.symbolic_search import DeepSettings
from lmscout.metrics import spearman
from lmscout.proxies import LITERATURE, Expression
from lmscout.proxies.rules import first_broken
from lmscout.statistics import Batch, Workers
from lmscout.statistics.deep_values import DeepEvaluator
from sketched import WholeSketches, whole_sketches

FILTERS = {"both": (True, True), "no race": (True, False), "no rules": (False, True)}
FILTERS |= {"neither": (False, False)}
LONGEST = 10  # times as many evaluations as the search with both filters, at most


@dataclass(frozen=True)
class Job:
    """One search to run."""

    benchmark: str
    seed: int
    label: str
    settings: DeepSettings
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """Of one search: after every batch its evaluations and its front's hypervolume."""

    job: Job
    evaluations: tuple[int, ...]
    volume: tuple[float, ...]
    fitness: float
    test: float
    proposed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks", nargs="+", default=["pico", "lts:random_GPT2_wt103"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--objective", default=DeepSettings.objective)
    parser.add_argument("--tables", nargs="+", default=["engines", "filters"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name in arguments.benchmarks:
            sketched(name, folder, arguments.workers)
        plain = DeepSettings(evaluations=arguments.evaluations, objective=arguments.objective)
        jobs = [
            Job(name, seed, label, settings, folder)
            for name in arguments.benchmarks
            for label, settings in searches(plain, arguments.tables).items()
            for seed in range(arguments.seeds)
        ]
        with ProcessPoolExecutor(arguments.workers) as pool:
            outcomes = list(pool.map(searched, jobs))
    tables = {"engines": engine_table, "filters": filter_table}
    rows = [
        row
        for table in arguments.tables
        for name in arguments.benchmarks
        for row in tables[table](name, outcomes)
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def searches(plain: DeepSettings, tables: Sequence[str]) -> dict[str, DeepSettings]:
    """What is run, by label."""
    wanted = {"genetic": plain}
    if "engines" in tables:
        wanted |= {one: replace(plain, engine=one) for one in ENGINES if one != EXHAUSTIVE}
    if "filters" in tables:
        longer = replace(plain, evaluations=LONGEST * plain.evaluations)
        wanted |= {
            label: replace(longer, rules=rules, race=race)
            for label, (rules, race) in FILTERS.items()
            if label != "both"
        }
    return wanted


@cache
def sketched(name: str, folder: Path, workers: int = 1) -> tuple[Benchmark, WholeSketches]:
    """A benchmark with its sketches."""
    torch.set_num_threads(1)
    benchmark = load(name)
    return benchmark, whole_sketches(benchmark, folder, Batch(), Workers(workers))


def searched(job: Job) -> Outcome:
    benchmark, whole = sketched(job.benchmark, job.folder)
    size = 100 if job.benchmark == "flexibert" else 40
    split = split_benchmark(benchmark.specs, search=size, seed=job.seed)
    data = whole.search_data(benchmark, split, job.seed)
    settings = job.settings
    engine = engine_of(settings.engine, settings.grammar, job.seed, tuple(LITERATURE.values()))
    reached: list[tuple[int, float]] = []
    with closing(
        Watched([data], objective=settings.objective, rules=settings.rules, race=settings.race)
    ) as filters:
        found = evolve(
            engine,
            filters,
            evaluations=settings.evaluations,
            progress=lambda *_: reached.append(
                (filters.evaluations, volume(filters.proxies, settings.largest))
            ),
        )
    scores = DeepEvaluator(whole.sketches.subset(split.test)).scores(found.hall[0].node)
    return Outcome(
        job,
        evaluations=tuple(done for done, _ in reached),
        volume=tuple(volume for _, volume in reached),
        fitness=found.hall[0].fitness or 0.0,
        test=abs(spearman(scores, benchmark.quality[split.test])),
        proposed=found.proposed,
    )


class Watched(Filters):
    """Filters that keep the front of what the rules on trees let through.

    Without these rules a front begins with the configuration's own leaves, which are no proxies
    and would hide those that are.
    """

    proxies: tuple[Candidate, ...] = ()

    def evaluate(self, nodes: Sequence[Expression]) -> list[Candidate]:
        """Evaluate a batch, and add it to the front."""
        evaluated = super().evaluate(nodes)
        unbroken = (one for one in evaluated if first_broken(one.node) is None)
        self.proxies = tuple(front([*self.proxies, *unbroken]))
        return evaluated


def volume(candidates: Sequence[Candidate], largest: int) -> float:
    """Hypervolume of a front: fitness times the share of sizes at which it is reached."""
    points = np.array(
        [[-(one.fitness or 0.0), one.node.size / (largest + 1)] for one in candidates]
    )
    return float(HV(ref_point=np.array([0.0, 1.0]))(points)) if len(points) else 0.0


def of(name: str, label: str, outcomes: list[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if (one.job.benchmark, one.job.label) == (name, label)]


def engine_table(name: str, outcomes: list[Outcome]) -> list[dict[str, object]]:
    print(f"\n{name}: engines")
    best = of(name, "genetic", outcomes)
    rows: list[dict[str, object]] = []
    for engine in (one for one in ENGINES if one != EXHAUSTIVE):
        own = of(name, engine, outcomes)
        row: dict[str, object] = {"benchmark": name, "engine": engine}
        said = []
        for figure, values, ours in (
            ("fitness", [one.fitness for one in own], [one.fitness for one in best]),
            ("volume", [one.volume[-1] for one in own], [one.volume[-1] for one in best]),
            ("volume when equal", *map(list, zip(*map(when_equal, own, best), strict=True))),
            ("test", [one.test for one in own], [one.test for one in best]),
        ):
            row[figure] = values
            said.append(f"{figure} {np.median(values):.4f}")
            if engine != "genetic":
                p = scipy.stats.wilcoxon(ours, values, alternative="greater").pvalue
                behind = sum(np.less(values, ours))
                said[-1] += f" (behind in {behind} of {len(ours)}, p {p:.4f})"
        print(f"  {engine:12}", "  ".join(said))
        rows.append(row)
    return rows


def when_equal(one: Outcome, other: Outcome) -> tuple[float, float]:
    """Hypervolumes with as many evaluations as the search made that ended first."""
    count = min(one.evaluations[-1], other.evaluations[-1])
    first, second = (
        each.volume[int(np.searchsorted(each.evaluations, count, side="right")) - 1]
        for each in (one, other)
    )
    return first, second


def filter_table(name: str, outcomes: list[Outcome]) -> list[dict[str, object]]:
    print(f"\n{name}: filters")
    reference = {one.job.seed: one for one in of(name, "genetic", outcomes)}
    rows: list[dict[str, object]] = []
    for label in FILTERS:
        own = of(name, "genetic" if label == "both" else label, outcomes)
        times, never = [], 0
        for one in own:
            with_both = reference[one.job.seed]
            enough = np.flatnonzero(np.array(one.volume) >= with_both.volume[-1] - 1e-12)
            never += not len(enough)
            needed = one.evaluations[enough[0] if len(enough) else -1]
            first = int(np.flatnonzero(np.array(with_both.volume) >= with_both.volume[-1])[0])
            times.append(needed / with_both.evaluations[first])
        print(
            f"  {label:9} {np.median(times):5.1f} times the evaluations (quartiles "
            f"{np.quantile(times, 0.25):.1f} to {np.quantile(times, 0.75):.1f}; not reached in "
            f"{never} of {len(own)}); asked for each evaluation "
            f"{np.median([one.proposed / one.evaluations[-1] for one in own]):.1f}"
        )
        rows.append({"benchmark": name, "filter": label, "times": times, "not_reached": never})
    return rows


if __name__ == "__main__":
    main()
