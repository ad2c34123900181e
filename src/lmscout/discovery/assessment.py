"""Correlations of scores with quality beside the baselines, and proxies as a user names them.

How well scores rank a benchmark's architectures, with all that is reported beside it.

A proxy as a user asks for it: a name or an expression, and which side of it is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.errors import LmscoutError
from lmscout.metrics import (
    Agreement,
    Interval,
    agreement,
    configuration_baselines,
    partial_spearman,
    spearman_difference,
    top_recall,
    within_cell_spearman,
)
from lmscout.proxies import Entry, Expression, format_expression, resolve
from lmscout.proxies.spelling import shown

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Assessment:
    """One way to score architectures, judged on a set of them.

    Attributes:
        name: the proxy's name or text, or the baseline's name.
        agreement: Spearman's ρ and Kendall's τ-b with bootstrap intervals.
        within_cell: Spearman's ρ among architectures of one depth and width.
        given_params: Spearman's ρ with the number of parameters held fixed.
        recall_top_tenth: share of the best tenth that is in the scores' best tenth.
    """

    name: str
    agreement: Agreement
    within_cell: float
    given_params: float
    recall_top_tenth: float

    def row(self) -> dict[str, object]:
        """The figures as columns of a table."""
        found: dict[str, object] = {"name": self.name}
        for name in ("spearman", "kendall"):
            interval: Interval = getattr(self.agreement, name)
            found |= {name: interval.value, f"{name}_low": interval.low}
            found[f"{name}_high"] = interval.high
        for name in ("within_cell", "given_params", "recall_top_tenth"):
            found[name] = getattr(self, name)
        return found

    def to_json(self) -> dict[str, object]:
        """The figures by name; null where one is not defined."""
        return {
            "spearman": interval_json(self.agreement.spearman),
            "kendall": interval_json(self.agreement.kendall),
            "within_cell": number_json(self.within_cell),
            "given_params": number_json(self.given_params),
            "recall_top_tenth": number_json(self.recall_top_tenth),
        }


def assess(name: str, scores: Scores, benchmark: Benchmark) -> Assessment:
    """Judge scores on a benchmark (or on a subset of one).

    Args:
        name: what made the scores.
        scores: [n], higher means better.
        benchmark: the architectures and their quality.
    """
    quality = benchmark.quality
    parameters = [spec.parameters() for spec in benchmark.specs]
    cells = [(spec.depth, spec.width) for spec in benchmark.specs]
    return Assessment(
        name,
        agreement(scores, quality),
        within_cell_spearman(scores, quality, cells),
        partial_spearman(scores, quality, parameters),
        top_recall(scores, quality),
    )


def baseline_scores(benchmark: Benchmark) -> dict[str, Scores]:
    """Scores of the configuration baselines, by name."""
    specs = benchmark.specs
    return configuration_baselines(
        parameters=[spec.parameters() for spec in specs],
        body_parameters=[spec.body_parameters() for spec in specs],
        depth=[spec.depth for spec in specs],
        width=[spec.width for spec in specs],
    )


def assess_baselines(benchmark: Benchmark) -> tuple[Assessment, ...]:
    """Judge the configuration baselines on a benchmark, as they stand: more is better."""
    return tuple(
        assess(name, scores, benchmark) for name, scores in baseline_scores(benchmark).items()
    )


def beside_baselines(
    scores: Scores, benchmark: Benchmark
) -> tuple[tuple[Assessment, ...], Interval]:
    """The configuration baselines, and by how much the ρ of some scores exceeds the best of them.

    Args:
        scores: [n], higher means better.
        benchmark: the architectures and their quality.
    """
    configured = baseline_scores(benchmark)
    baselines = tuple(assess(name, own, benchmark) for name, own in configured.items())
    best = configured[hardest(baselines).name]
    return baselines, spearman_difference(scores, best, benchmark.quality)


def lead_json(
    one: Assessment, baselines: Sequence[Assessment], ahead: Interval
) -> dict[str, object]:
    """How one stands to the baselines, as `beside_baselines` gives them."""
    return {
        "beats_baselines": beats(one, baselines),
        "ahead_of_best_baseline": {
            "baseline": hardest(baselines).name,
            **interval_json(ahead),
        },
    }


def hardest(baselines: Sequence[Assessment]) -> Assessment:
    """The baseline of the highest ρ; one without a ρ counts as 0."""
    return max(baselines, key=lambda one: number_json(one.agreement.spearman.value) or 0.0)


def beats(one: Assessment, baselines: Sequence[Assessment]) -> bool | None:
    """Whether a ρ is above that of every baseline; one without a ρ is 0.

    None where no baseline has a ρ: a configuration that tells nothing apart cannot be beaten.
    """
    if all(math.isnan(other.agreement.spearman.value) for other in baselines):
        return None
    best = number_json(hardest(baselines).agreement.spearman.value) or 0.0
    return one.agreement.spearman.value > best


def number_json(value: float) -> float | None:
    """A finite number, or None: JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def interval_json(interval: Interval) -> dict[str, float | None]:
    """Value, low and high of an interval."""
    return {
        "value": number_json(interval.value),
        "low": number_json(interval.low),
        "high": number_json(interval.high),
    }


FALLING = "-"


@dataclass(frozen=True)
class SignedProxy:
    """A proxy with its sign.

    Attributes:
        name: its name in the catalog, or its text in the usual form.
        sign: 1 where a higher score is better, -1 where a lower one is.
    """

    name: str
    sign: int

    def __str__(self) -> str:
        """As `discover` prints it, and `signed_proxy` reads it."""
        if self.sign > 0:
            return self.name
        proxy = resolve(self.name)
        several = isinstance(proxy, Expression) and proxy.name in ("+", "-")
        return f"{FALLING}({self.name})" if several else FALLING + self.name


def signed_proxy(text: str) -> SignedProxy:
    """Read a proxy; a minus sign before it says that lower scores are better.

    Args:
        text: a catalog name or an expression, with or without a minus sign before it.

    Raises:
        LmscoutError: there is no such entry, the expression is malformed, or the minus sign
            might be meant for its first term alone.
    """
    bare = text.strip()
    sign = -1 if bare.startswith(FALLING) else 1
    rest = bare.removeprefix(FALLING).strip()
    proxy = resolve(rest)
    if (
        sign < 0
        and isinstance(proxy, Expression)
        and proxy.name in ("+", "-")
        and not _enclosed(rest)
    ):
        raise LmscoutError(
            f"{shown(text)}: the minus sign before a proxy says that lower scores are better; "
            f"write {FALLING}({rest}), or begin with a term that has no sign"
        )
    return SignedProxy(proxy_name(proxy), sign)


def _enclosed(text: str) -> bool:
    """Whether a well-formed expression is in parentheses as a whole."""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return place == len(text) - 1
    return False


def proxy_name(proxy: Entry | Expression) -> str:
    """A proxy's name in the catalog, or its text in the usual form."""
    return proxy.name if isinstance(proxy, Entry) else format_expression(proxy)
