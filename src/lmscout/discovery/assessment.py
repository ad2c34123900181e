"""Correlations of scores with quality, compared with the baselines; proxies with their sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from lmscout.benchmarks import Benchmark
from lmscout.discovery.scorer import Scores
from lmscout.errors import LmscoutError, brief
from lmscout.metrics import (
    Agreement,
    Interval,
    agreement,
    configuration_baselines,
    partial_spearman,
    rounded,
    spearman_difference,
    top_recall,
    within_cell_spearman,
)
from lmscout.models import ArchitectureSpec, spec_from_dict
from lmscout.proxies import Entry, Expression, format_expression, parse, resolve
from lmscout.results import SavedAs

SavedTree = Annotated[Expression, SavedAs(format_expression, parse)]
OptionalTree = Annotated[Expression | None, SavedAs(format_expression, parse)]
SavedSpec = Annotated[ArchitectureSpec, SavedAs(lambda one: one.to_dict(), spec_from_dict)]

FALLING = "-"  # before a proxy whose lower scores are better
_FIGURES = ("within_cell", "given_params", "recall_top_tenth")


@dataclass(frozen=True)
class Assessment:
    """How well a named proxy's or baseline's scores rank a set of architectures."""

    name: str
    agreement: Agreement  # ρ and τ-b with bootstrap intervals
    within_cell: float  # ρ among architectures of one depth and width
    given_params: float  # ρ with the number of parameters held fixed
    recall_top_tenth: float  # share of the best tenth that is in the scores' best tenth

    @property
    def intervals(self) -> dict[str, Interval]:
        """The two correlations by name."""
        return {"spearman": self.agreement.spearman, "kendall": self.agreement.kendall}

    def row(self) -> dict[str, object]:
        """The figures as columns of a table."""
        found: dict[str, object] = {"name": self.name}
        for name, one in self.intervals.items():
            found |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        return found | {name: getattr(self, name) for name in _FIGURES}

    def to_json(self) -> dict[str, object]:
        """The figures by name; null where one is not defined."""
        intervals = {name: interval_json(one) for name, one in self.intervals.items()}
        return intervals | {name: number_json(getattr(self, name)) for name in _FIGURES}


@dataclass(frozen=True)
class Points:
    """Scored architectures, each a point of a scatter plot; all are [n]."""

    names: tuple[str, ...]  # of the architectures
    params: tuple[int, ...]  # their numbers of parameters
    quality: tuple[float, ...]  # higher is better
    scores: tuple[float, ...]  # of a proxy, with its sign: higher is better

    @classmethod
    def of(cls, benchmark: Benchmark, scores: Scores) -> Points:
        """The architectures of a benchmark under scores [n]."""
        params = tuple(spec.parameters() for spec in benchmark.specs)
        quality, own = map(tuple, (benchmark.quality.tolist(), scores.tolist()))
        return cls(tuple(benchmark.identifiers), params, quality, own)


def number_json(value: float) -> float | None:
    """A finite number; None for others, as JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def interval_json(interval: Interval) -> dict[str, object]:
    """Value, low and high of an interval."""
    return {name: number_json(value) for name, value in vars(interval).items()}


def assess(name: str, scores: Scores, benchmark: Benchmark) -> Assessment:
    """Assess named scores [n], higher is better, on a benchmark or on a subset of one."""
    quality, specs = benchmark.quality, benchmark.specs
    return Assessment(
        name,
        agreement(scores, quality),
        within_cell_spearman(scores, quality, [(spec.depth, spec.width) for spec in specs]),
        partial_spearman(scores, quality, [spec.parameters() for spec in specs]),
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
    """Assess the configuration baselines on a benchmark; more is better."""
    return tuple(
        assess(name, scores, benchmark) for name, scores in baseline_scores(benchmark).items()
    )


class Compared:
    """Mixin of results that compare a proxy with the configuration baselines.

    Attributes:
        baselines: the configuration baselines.
        ahead: ρ of the proxy less that of the best of them, paired.
    """

    baselines: tuple[Assessment, ...]
    ahead: Interval

    @property
    def assessed(self) -> Assessment:
        """The proxy's assessment, on the same architectures."""
        raise NotImplementedError

    @property
    def hardest(self) -> Assessment:
        """The baseline with the highest ρ."""
        return hardest(self.baselines)

    @property
    def beats_baselines(self) -> bool | None:
        """Whether ρ is above that of every configuration baseline; None if none has a ρ."""
        return beats(self.assessed, self.baselines)

    @property
    def against_hardest(self) -> str:
        """Whether it beats the best configuration baseline, as a sentence."""
        if self.beats_baselines is None:
            return "There is no configuration baseline: all architectures have one configuration."
        verb = "beats" if self.beats_baselines else "does not beat"
        ahead, rho = self.ahead, rounded(self.hardest.agreement.spearman.value)
        text = f"It {verb} the best configuration baseline, {self.hardest.name} (ρ {rho})"
        if math.isfinite(ahead.value):
            chance = "; not significant" if ahead.low <= 0 <= ahead.high else ""
            text += f": {ahead.value:+.3f} (95 % {ahead.low:+.3f} to {ahead.high:+.3f}){chance}"
        return f"{text}."

    def comparison_json(self) -> dict[str, object]:
        """The comparison with the baselines as JSON data."""
        return {
            "beats_baselines": self.beats_baselines,
            "ahead_of_best_baseline": {"baseline": self.hardest.name, **interval_json(self.ahead)},
        }


def compare_baselines(
    scores: Scores, benchmark: Benchmark
) -> tuple[tuple[Assessment, ...], Interval]:
    """The configuration baselines, and ρ of scores [n] less that of the best of them."""
    baselines = assess_baselines(benchmark)
    best = baseline_scores(benchmark)[hardest(baselines).name]
    return baselines, spearman_difference(scores, best, benchmark.quality)


def hardest(baselines: Sequence[Assessment]) -> Assessment:
    """The baseline with the highest ρ; one without a ρ counts as 0."""
    return max(baselines, key=_spearman_or_zero)


def beats(one: Assessment, baselines: Sequence[Assessment]) -> bool | None:
    """Whether a ρ is above that of every baseline, or above 0 for one without a ρ.

    None if no baseline has a ρ: the architectures have one configuration.
    """
    if all(math.isnan(other.agreement.spearman.value) for other in baselines):
        return None
    return one.agreement.spearman.value > _spearman_or_zero(hardest(baselines))


def _spearman_or_zero(one: Assessment) -> float:
    return number_json(one.agreement.spearman.value) or 0.0


@dataclass(frozen=True)
class SignedProxy:
    """A proxy with its sign."""

    name: str  # in the catalog, or its text in the usual form
    sign: int  # 1 if a higher score is better, -1 if a lower one is

    def __str__(self) -> str:
        """The text that `signed_proxy` parses."""
        if self.sign > 0:
            return self.name
        return f"{FALLING}({self.name})" if _is_sum(resolve(self.name)) else FALLING + self.name


def signed_proxy(text: str) -> SignedProxy:
    """Parse a proxy; a minus sign before it means that lower scores are better.

    LmscoutError if there is no such entry, the expression is malformed, or the minus sign is
    ambiguous: it might belong to the first term alone.
    """
    bare = text.strip()
    sign = -1 if bare.startswith(FALLING) else 1
    rest = bare.removeprefix(FALLING).strip()
    proxy = resolve(rest)
    if sign < 0 and _is_sum(proxy) and not _enclosed(rest):
        raise LmscoutError(
            f"{brief(text)}: the minus sign before a proxy says that lower scores are better; "
            f"write {FALLING}({rest}), or begin with a term that has no sign"
        )
    return SignedProxy(proxy_name(proxy), sign)


def _is_sum(proxy: Entry | Expression) -> bool:
    return isinstance(proxy, Expression) and proxy.name in ("+", "-")


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
