"""How good a proxy's choice is on a benchmark, within several limits, beside the baselines'.

    python bench/design.py [BENCHMARK] [--proxy NAME_OR_EXPRESSION ...] [--drawn 50] [--seeds 10]

Limits are the quartiles of the architectures' parameters, and the largest.  With every seed, so
many of the architectures within the limit are drawn, and each way chooses among them.  Printed
is the median over the seeds of the true rank of the choice, as a share of all architectures
within the limit, and of the regret; every architecture is read once for all of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lmscout.benchmarks import load
from lmscout.benchmarks.locate import cache_directory
from lmscout.discovery import judge, signed_proxy
from lmscout.discovery.assessment import baseline_scores
from lmscout.discovery.picking import AT_RANDOM, BEST_DRAWN, chosen, rows_within, truth
from lmscout.statistics import Workers

PROXIES = ("mean(frobenius(act) * frobenius(weight))", "synaptic-saliency", "snip", "synflow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", nargs="?", default="pico")
    parser.add_argument("--proxy", action="append", help="write --proxy=-snip where low is good")
    parser.add_argument("--drawn", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--cache", type=Path, default=cache_directory() / "statistics")
    arguments = parser.parse_args()
    benchmark = load(arguments.benchmark)
    proxies = [signed_proxy(text) for text in arguments.proxy or PROXIES]
    names = [one.name for one in proxies]
    judged = judge(
        benchmark, names, seed=0, cache=arguments.cache, workers=Workers(arguments.workers)
    )
    ways = {str(one): one.sign * judged.scores[one.name] for one in proxies}
    ways |= baseline_scores(benchmark)
    ways[BEST_DRAWN] = benchmark.quality
    print(f"{benchmark.name}: {benchmark.metric}; medians over {arguments.seeds} seeds")
    sizes = [spec.parameters() for spec in benchmark.specs]
    for limit in np.quantile(sizes, [0.25, 0.5, 0.75, 1.0], method="lower").tolist():
        within = rows_within(benchmark, limit)
        count = min(arguments.drawn, len(within))
        print(f"\nat most {limit:,} parameters: {len(within)} architectures, {count} drawn")
        draws = [
            np.random.default_rng(seed).permutation(within)[:count]
            for seed in range(arguments.seeds)
        ]
        for name, scores in ways.items():
            picks = [
                truth(name, benchmark.quality, within, tied)
                for drawn in draws
                if len(tied := chosen(scores, drawn))
            ]
            if picks:
                show(name, [one.top for one in picks], [one.regret for one in picks])
            else:
                print(f"  {name:42} no score")
        one = truth(AT_RANDOM, benchmark.quality, within, within)
        show(one.name, [one.top], [one.regret])


def show(name: str, tops: list[float], regrets: list[float]) -> None:
    print(f"  {name:42} top {np.median(tops):6.1%}   regret {np.median(regrets):.4f}")


if __name__ == "__main__":
    main()
