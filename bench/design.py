"""How good a proxy's choice is on a benchmark, within several limits, beside the baselines'.

    python bench/design.py [BENCHMARK] [--proxy NAME_OR_EXPRESSION ...] [--drawn 50] [--seeds 10]
        [--by max_params|max_macs|none] [--limits N ...] [--weights 1] [--supervised]
    python bench/design.py iso --proxy snip --by none --weights 6 --supervised

Limits are the quartiles of the architectures' parameters, or multiply-adds, and the largest, if
not given; with `--by none` all architectures are within. With every seed, so many of the
architectures within the limit are drawn, and each way chooses among them. Printed is the median
over the seeds of the true rank of the choice, as a share of all architectures within the limit;
of that of the best of five choices; of how far the quality of the choice is above that of the
last of the best twentieth; and of the regret; at the end, the medians over all limits. Every
architecture is read once for all of it, or once for each of --weights draws of initial weights
and data: then there is a line of each, one of all, and one of their mean.

--supervised: beside them a Gaussian process fitted to the quality of four fifths, and chooses
among the last, for five parts, and as many partitions as there are draws of weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark, load
from lmscout.benchmarks.limits import Limit, limits_of
from lmscout.benchmarks.loading import cache_directory
from lmscout.cli.options import parameter_count
from lmscout.discovery import rank_proxies, signed_proxy
from lmscout.discovery.assessment import baseline_scores
from lmscout.discovery.design import CHOICES
from lmscout.discovery.selection import (
    AT_RANDOM,
    BEST_DRAWN,
    Pick,
    assess_pick,
    chosen,
    ordered,
    rows_within,
)
from lmscout.discovery.splits import Indices
from lmscout.statistics import Batch, Workers
from supervised import numbers, predicted, table_of

Scores = npt.NDArray[np.float64]

FOLDS = 5
SUPERVISED = "fitted to four fifths"
PROXIES = ("mean(frobenius(act) * frobenius(weight))", "synaptic-saliency", "snip", "synflow")


class Chosen(NamedTuple):
    """One choice: its figures, those of the best of five, and how wide the best twentieth is."""

    pick: Pick
    best_of_five: float
    span: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", nargs="?", default="pico")
    parser.add_argument("--proxy", action="append", help="write --proxy=-snip where low is good")
    parser.add_argument("--drawn", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--by", choices=("max_params", "max_macs", "none"), default="max_params")
    parser.add_argument("--limits", type=limit, nargs="+", metavar="N")
    parser.add_argument("--weights", type=int, default=1)
    parser.add_argument("--supervised", action="store_true")
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--device", default="cpu", help="that computes the statistics")
    parser.add_argument("--cache", type=Path, default=cache_directory() / "statistics")
    arguments = parser.parse_args()
    benchmark = load(arguments.benchmark)
    proxies = [signed_proxy(text) for text in arguments.proxy or PROXIES]
    names = [one.name for one in proxies]
    draws_of: dict[str, list[Scores]] = {str(one): [] for one in proxies}
    for seed in range(arguments.weights):
        ranked = rank_proxies(
            benchmark,
            names,
            seed=seed,
            cache=arguments.cache,
            batch=Batch(seed=seed),
            workers=Workers(arguments.workers, device=arguments.device),
        )
        for one in proxies:
            draws_of[str(one)].append(one.sign * ranked.scores[one.name])
    if arguments.weights > 1:
        means = {f"{name}, mean": [np.mean(draws, axis=0)] for name, draws in draws_of.items()}
        draws_of |= means
    if arguments.supervised:
        features = table_of([numbers(spec) for spec in benchmark.specs])
        draws_of[SUPERVISED] = [
            out_of_fold(features, benchmark.quality, seed) for seed in range(arguments.weights)
        ]
        draws_of[f"{SUPERVISED}, mean"] = [np.mean(draws_of[SUPERVISED], axis=0)]
    draws_of |= {name: [scores] for name, scores in baseline_scores(benchmark).items()}
    draws_of[BEST_DRAWN] = [benchmark.quality]
    print(f"{benchmark.name}: {benchmark.metric}; medians over {arguments.seeds} seeds")
    over_all: dict[str, list[Chosen]] = {}
    for limits in limits_tried(benchmark, arguments.by, arguments.limits):
        within = rows_within(benchmark, limits)
        count = min(arguments.drawn, len(within))
        most = f"at most {limits[0]}" if limits else "no limit"
        print(f"\n{most}: {len(within)} architectures, {count} drawn")
        quality = np.sort(benchmark.quality[within])[::-1]
        line = float(quality[max(len(within) // 20, 1) - 1])
        drawn = [
            np.random.default_rng(seed).permutation(within)[:count]
            for seed in range(arguments.seeds)
        ]
        for name, draws in draws_of.items():
            picked = [
                [
                    Chosen(
                        assess_pick(name, benchmark.quality, within, tied),
                        best_of_five(benchmark.quality, within, ordered(scores, rows)),
                        quality[0] - line,
                    )
                    for rows in drawn
                    if len(tied := chosen(scores, rows))
                ]
                for scores in draws
            ]
            if len(draws) > 1:
                for number, picks in enumerate(picked):
                    show(f"{name}, {number}", picks)
            together = [one for picks in picked for one in picks]
            over_all.setdefault(name, []).extend(together)
            show(name, together)
        one = assess_pick(AT_RANDOM, benchmark.quality, within, within)
        of_five = (len(within) + 1) / (min(CHOICES, len(within)) + 1) / len(within)  # expected
        show(one.name, [Chosen(one, of_five, quality[0] - line)])
    print("\nover all limits")
    for name, picks in over_all.items():
        show(name, picks)


def limits_tried(benchmark: Benchmark, by: str, given: list[int] | None) -> list[tuple[Limit, ...]]:
    if by == "none":
        return [()]
    cost = limits_of(**{by: 1})[0].cost
    costs = [cost(spec) for spec in benchmark.specs]
    quartiles = np.quantile(costs, [0.25, 0.5, 0.75, 1.0], method="lower").tolist()
    return [limits_of(**{by: most}) for most in given or quartiles]


def best_of_five(quality: Scores, within: Indices, order: Indices) -> float:
    best = quality[order[:CHOICES]].max()
    return float((quality[within] > best).sum() + 1) / len(within)


def limit(text: str) -> int:
    return parameter_count(text, "--limits")


def out_of_fold(features: Scores, quality: Scores, seed: int) -> Scores:
    """Out-of-fold predictions of a Gaussian process."""
    order = np.random.default_rng(seed).permutation(len(quality))
    said = np.zeros(len(quality))
    for fold in range(FOLDS):
        asked = order[fold::FOLDS]
        known = np.setdiff1d(order, asked)
        said[asked] = predicted(features[known], quality[known], features[asked])
    return said


def show(name: str, choices: list[Chosen]) -> None:
    if not choices:
        print(f"  {name:42} no score")
        return
    top = np.median([one.pick.top for one in choices])
    five = np.median([one.best_of_five for one in choices])
    regret = np.median([one.pick.regret for one in choices])
    above = np.median([one.span - one.pick.regret for one in choices])
    shown = f"top {top:6.1%}   of five {five:6.1%}   above the line {above:+.3f}"
    print(f"  {name:42} {shown}   regret {regret:.4f}", flush=True)


if __name__ == "__main__":
    main()
