"""What `lmscout discover --space deep` finds, over seeds, on architectures that it has not seen.

    python bench/discovery.py pico [--search 40] [--seeds 5] [--no-spec-leaves] [--cache DIR]
        [--device cuda] [--evaluations 600] [--searches 4] [--proxies NAME ...] [--json FILE]

The same as the command for each seed, a process each, but the whole benchmark is sketched once,
and read once more for the proxies of all seeds; a second call finds both in DIR.  Beside each
proxy stand the best configuration baseline and each of the PROXIES named, with the paired
interval of the difference.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lmscout.benchmarks import load
from lmscout.benchmarks.loading import cache_directory
from lmscout.discovery.combination import Product
from lmscout.discovery.discover import Finding, assess_choice
from lmscout.discovery.scorer import Scorer, cache_name
from lmscout.discovery.splits import split_benchmark
from lmscout.discovery.symbolic_search import DeepSettings, choose_deep
from lmscout.metrics import spearman, spearman_difference
from lmscout.proxies import format_expression
from lmscout.statistics import Batch, Workers, score_proxies
from sketched import SketchedBenchmark, whole_sketches


@dataclass(frozen=True)
class Study:
    """What is searched, and how."""

    benchmark: str
    search: int
    cache: Path
    device: str
    settings: DeepSettings


def chosen(study: Study, seed: int) -> Product:
    """What the command chooses with a seed."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    benchmark, workers = load(study.benchmark), Workers(1, device=study.device)
    whole = whole_sketches(benchmark, study.cache, Batch(), workers)
    split = split_benchmark(benchmark.specs, search=study.search, seed=seed)
    scorer = Scorer(benchmark.specs, cache_name(benchmark.name), study.cache, Batch(), workers)
    searched = SketchedBenchmark(benchmark, split, scorer, whole)
    _, product = choose_deep((searched,), study.settings, seed)
    print(f"seed {seed}: chosen in {time.perf_counter() - started:.0f} s", flush=True)
    return product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark")
    parser.add_argument("--search", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=DeepSettings.evaluations)
    parser.add_argument("--searches", type=int, default=DeepSettings.searches)
    parser.add_argument("--objective", default=DeepSettings.objective)
    parser.add_argument("--no-spec-leaves", action="store_true")
    parser.add_argument("--proxies", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--device", default="cpu", help="that computes the statistics")
    parser.add_argument("--cache", type=Path, default=cache_directory() / "statistics")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = DeepSettings(
        evaluations=arguments.evaluations,
        searches=arguments.searches,
        objective=arguments.objective,
        spec_leaves=not arguments.no_spec_leaves,
    )
    benchmark = load(arguments.benchmark)
    workers = Workers(arguments.workers, device=arguments.device)
    name = cache_name(benchmark.name)
    whole_sketches(benchmark, arguments.cache, Batch(), workers)
    study = Study(
        arguments.benchmark, arguments.search, arguments.cache, arguments.device, settings
    )
    seeds = range(arguments.seeds)
    processes = min(workers.threads, arguments.seeds)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        products = list(pool.map(chosen, [study] * arguments.seeds, seeds))
    texts = [format_expression(one.node) for one in products]
    asked = list(dict.fromkeys([*texts, *arguments.proxies]))
    scores = score_proxies(
        benchmark.specs, asked, name=name, folder=arguments.cache, batch=Batch(), workers=workers
    )
    findings: list[Finding] = []
    for seed, product, text in zip(seeds, products, texts, strict=True):
        split = split_benchmark(benchmark.specs, search=arguments.search, seed=seed)
        test, (searched,) = split.test, product.searched
        finding = assess_choice(benchmark, split, text, searched, scores[text][test])
        findings.append(finding)
        agreement, ahead = finding.test.agreement, finding.ahead
        rho, tau = agreement.spearman, agreement.kendall
        print(
            f"seed {seed}: test ρ {rho.value:.3f} ({rho.low:.3f} to {rho.high:.3f}), τ "
            f"{tau.value:.3f}; {finding.hardest.name} {ahead.value:+.3f} "
            f"({ahead.low:+.3f} to {ahead.high:+.3f})"
        )
        quality = benchmark.quality[test]
        for other in arguments.proxies:
            against = scores[other][test] * np.sign(spearman(scores[other], benchmark.quality))
            more = spearman_difference(finding.sign * scores[text][test], against, quality)
            print(f"    {other} {more.value:+.3f} ({more.low:+.3f} to {more.high:+.3f})")
        print(f"    {text}")
    for label, get in (
        ("ρ", lambda one: one.test.agreement.spearman.value),
        ("τ", lambda one: one.test.agreement.kendall.value),
        ("ahead of the best baseline", lambda one: one.ahead.value),
    ):
        print(f"median {label} {statistics.median(map(get, findings)):.3f}")
    if arguments.json:
        rows = [{**one.benchmark_json(), **one.choice_json()} for one in findings]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
