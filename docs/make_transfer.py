"""Write docs/transfer.md: every proxy of the catalog on every benchmark.

    python docs/make_transfer.py [BENCHMARK ...] [--cache DIR] [--workers N] [--device cuda]

Every architecture is evaluated a few times (GraSP and SynFlow have passes of their own): some six
seconds of one core each, cached, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lmscout.benchmarks import load
from lmscout.benchmarks.loading import cache_directory
from lmscout.discovery import RankResult, rank_proxies
from lmscout.discovery.assessment import Assessment
from lmscout.statistics import Workers

PAGE = Path(__file__).parent / "transfer.md"
BENCHMARKS = ("pico", "iso", "flexibert", "lts:random_GPT2_wt103")


def main() -> None:
    """Rank the catalog on the benchmarks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", default=BENCHMARKS)
    parser.add_argument("--cache", type=Path, default=cache_directory() / "statistics")
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    workers = Workers(given.workers, device=given.device)
    results = [
        rank_proxies(load(name), seed=0, cache=given.cache, workers=workers)
        for name in given.benchmarks
    ]
    PAGE.write_text(page(results), encoding="utf-8")


def page(results: list[RankResult]) -> str:
    """The whole page, one result per benchmark."""
    heads = ["", *(f"{one.benchmark} ({one.n_architectures})" for one in results)]
    names = [one.name for one in results[0].proxies]
    baselines = [one.name for one in results[0].baselines]
    lines = [_INTRODUCTION, _row(heads), _row(["---"] * len(heads))]
    for place, name in enumerate(names):
        cells = [_cell(one.proxies[place], one.seen(name)) for one in results]
        lines.append(_row([f"`{name}`", *cells]))
    for place, name in enumerate(baselines):
        lines.append(_row([name, *(_cell(one.baselines[place], False) for one in results)]))
    return "\n".join(lines) + "\n"


def _cell(one: Assessment, found_on: bool) -> str:
    rho, tau = one.agreement.spearman, one.agreement.kendall
    mark = " †" if found_on else ""
    return f"{rho.value:.3f} ({rho.low:.3f} to {rho.high:.3f}), τ {tau.value:.3f}{mark}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


_INTRODUCTION = """\
<!-- Written by docs/make_transfer.py; do not edit. -->

# Every proxy on every benchmark

Spearman's ρ with its 95 % bootstrap interval, and Kendall's τ-b, on all architectures of each
benchmark, with the sign that a proxy was published with. † marks benchmarks of which the search
that found a champion used a part: that figure is optimistic, the others are held out. The last
rows are the configuration baselines.
"""


if __name__ == "__main__":
    main()
