"""What every search ends with: one proxy, chosen on one split and judged on another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import (
    Assessment,
    assess,
    beats,
    beside_baselines,
    hardest,
    lead_json,
    number_json,
)
from lmscout.discovery.splits import Split
from lmscout.ranking import Interval, kendall, spearman

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """A proxy that was chosen, and what it is worth.

    Attributes:
        benchmark: the benchmark's name.
        metric: what its quality is.
        n_architectures: how many it holds.
        split: which of them the choice saw.
        sign: 1, or -1 where the proxy falls with quality; fixed on the search split.
        search: Spearman's ρ and Kendall's τ-b of sign × proxy on the search split.
        test: the same and more on the test split; its name is the proxy's text.
        baselines: the configuration baselines on the test split.
        ahead: by how much its test ρ exceeds that of the best of them, paired.
    """

    benchmark: str
    metric: str
    n_architectures: int
    split: Split
    sign: int
    search: tuple[float, float]
    test: Assessment
    baselines: tuple[Assessment, ...]
    ahead: Interval

    @property
    def best(self) -> str:
        """The proxy, with a minus sign before it if lower scores are better."""
        return self.test.name if self.sign > 0 else f"-{self.test.name}"

    @property
    def beats_baselines(self) -> bool | None:
        """Whether the test ρ is above that of every configuration baseline, if one has any."""
        return beats(self.test, self.baselines)

    @property
    def hardest(self) -> Assessment:
        """The best of the baselines on the test split."""
        return hardest(self.baselines)

    def benchmark_json(self) -> dict[str, object]:
        """On what it was found."""
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "n_architectures": self.n_architectures,
            "n_search": len(self.split.search),
            "n_test": len(self.split.test),
        }

    def choice_json(self, **more: object) -> dict[str, object]:
        """The proxy, and how it stands to the baselines.

        Args:
            more: what else is known of the proxy.
        """
        rho, tau = self.search
        return {
            "best": {
                "proxy": self.test.name,
                "sign": self.sign,
                **more,
                "search": {"spearman": number_json(rho), "kendall": number_json(tau)},
                "test": self.test.to_json(),
            },
            **lead_json(self.test, self.baselines, self.ahead),
            "baselines": [
                {
                    "name": baseline.name,
                    "spearman": number_json(baseline.agreement.spearman.value),
                    "kendall": number_json(baseline.agreement.kendall.value),
                }
                for baseline in self.baselines
            ],
        }


def judge_choice(
    benchmark: Benchmark, split: Split, text: str, searched: Scores, unseen: Scores
) -> Finding:
    """Fix a chosen proxy's sign on the search split, and judge it on the test split.

    Args:
        benchmark: architectures with measured quality.
        split: which of them the choice saw.
        text: the proxy.
        searched: its scores of the search architectures.
        unseen: its scores of the test architectures.
    """
    quality, test = benchmark.quality[split.search], benchmark.subset(split.test)
    sign = 1 if spearman(searched, quality) >= 0 else -1
    baselines, ahead = beside_baselines(sign * unseen, test)
    return Finding(
        benchmark.name,
        benchmark.metric,
        len(benchmark),
        split,
        sign,
        (spearman(sign * searched, quality), kendall(sign * searched, quality)),
        assess(text, sign * unseen, test),
        baselines,
        ahead,
    )
