"""What a proxy says, and whether anything simpler says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from lmscout.benchmarks import Benchmark
from lmscout.discovery.asked_proxy import proxy_name
from lmscout.discovery.assessment import (
    Assessment,
    assess,
    beats,
    beside_baselines,
    hardest,
    lead_json,
    number_json,
)
from lmscout.discovery.dead_branches import (
    DEAD,
    DeadBranches,
    Scored,
    cuts,
    measured_cuts,
    shortenings,
)
from lmscout.discovery.mimic import Mimic, mimic
from lmscout.discovery.scored_benchmark import ScoredBenchmark
from lmscout.discovery.sensitivity import Sensitivity, change, silenced, why_no_inputs
from lmscout.errors import LmscoutError
from lmscout.proxies import (
    Entry,
    Expression,
    as_expression,
    format_expression,
    has_seen,
    parse,
    resolve,
    to_latex,
    to_torch,
)
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.ranking import Interval, spearman
from lmscout.results import Result, SavedAs
from lmscout.stages import Progress, Stages
from lmscout.statistics import Batch, Workers
from lmscout.statistics.sketches import spec_values
from lmscout.statistics.workers import worker_processes

Scores = npt.NDArray[np.float64]

FULL_WORDS = 60
"""Up to how many words of all shorter trees together these are measured on full tensors: they
cost about as much as the one pass through each architecture that makes the sketches."""


@dataclass(frozen=True)
class Forms:
    """What follows from a proxy's formula alone.

    Attributes:
        name: in the catalog, or its text in the usual form.
        definition: of the catalog, in one line; None for an expression.
        tree: the proxy as a deep tree, or None.
        latex: the proxy in LaTeX, or None where the language cannot say it.
        torch: the source of a module that computes it; None likewise.
    """

    name: str
    definition: str | None
    tree: Expression | None
    latex: str | None
    torch: str | None

    def to_json(self) -> dict[str, object]:
        """As the command line prints it."""
        return {
            "proxy": self.name,
            "definition": self.definition,
            "tree": None if self.tree is None else format_expression(self.tree),
            "latex": self.latex,
            "torch": self.torch,
        }


def forms(proxy: str) -> Forms:
    """The forms of a proxy, for which nothing is evaluated.

    Args:
        proxy: a catalog name or an expression.

    Raises:
        LmscoutError: the proxy is unknown or malformed.
    """
    resolved = resolve(proxy)
    tree = as_expression(resolved)
    return Forms(
        name=proxy_name(resolved),
        definition=resolved.definition if isinstance(resolved, Entry) else None,
        tree=tree,
        latex=None if tree is None else to_latex(tree),
        torch=None if tree is None else to_torch(tree),
    )


@dataclass(frozen=True, repr=False)
class Explanation(Result):
    """What a proxy says of the architectures of a benchmark.

    Attributes:
        benchmark: the benchmark's name.
        metric: what its quality is.
        n_architectures: how many it holds.
        tree: the proxy as a deep tree, or None.
        assessment: how well it ranks, with the sign as given; its name is the proxy's.
        baselines: the configuration baselines.
        ahead: by how much its ρ exceeds that of the best of them, paired.
        dead_branches: what could be left out of it; None where it is no tree.
        sensitivity: how it takes changes of data, weights and inputs.
        configuration: "depth", "width", "params" -> its Spearman's ρ with it.
        mimic: the formula of the configuration that is most like it; None where there is none.
        latex: the proxy in LaTeX, or None where the language cannot say it.
        torch: the source of a module that computes it; None likewise.
        seconds: by stage.
    """

    benchmark: str
    metric: str
    n_architectures: int
    tree: Annotated[Expression | None, SavedAs(format_expression, parse)]
    assessment: Assessment
    baselines: tuple[Assessment, ...]
    ahead: Interval
    dead_branches: DeadBranches | None
    sensitivity: Sensitivity
    configuration: dict[str, float]
    mimic: Mimic | None
    latex: str | None
    torch: str | None
    seconds: dict[str, float]

    @property
    def hardest(self) -> Assessment:
        """The best of the configuration baselines."""
        return hardest(self.baselines)

    @property
    def beats_baselines(self) -> bool | None:
        """Whether its ρ is above that of every configuration baseline, if one has any."""
        return beats(self.assessment, self.baselines)

    @property
    def seen(self) -> bool:
        """Whether the search that found it saw a part of the benchmark."""
        return has_seen(self.assessment.name, self.benchmark)

    def rows(self) -> list[dict[str, Any]]:
        """ρ with the proxy itself and with quality, under each change of what it reads."""
        changes = {
            "other data": self.sensitivity.other_data,
            "other initial weights": self.sensitivity.other_weights,
            **{f"ones for {name}": one for name, one in self.sensitivity.inputs.items()},
        }
        return [
            {"change": name, "spearman": one.spearman, "quality": one.quality}
            for name, one in changes.items()
        ]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "n_architectures": self.n_architectures,
            "proxy": self.assessment.name,
            "tree": None if self.tree is None else format_expression(self.tree),
            **self.assessment.to_json(),
            "seen": self.seen,
            **lead_json(self.assessment, self.baselines, self.ahead),
            "dead_branches": None if self.dead_branches is None else self.dead_branches.to_json(),
            "sensitivity": self.sensitivity.to_json(),
            "configuration": {name: number_json(rho) for name, rho in self.configuration.items()},
            "mimic": None if self.mimic is None else self.mimic.to_json(),
            "latex": self.latex,
            "torch": self.torch,
            "seconds": self.seconds,
        }


@worker_processes()
def explain(
    benchmark: Benchmark,
    proxy: str,
    *,
    seed: int,
    cache: Path,
    batch: Batch | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Take a proxy apart on all architectures of a benchmark.

    No choice is made among proxies, so all architectures are reported on, and the sign is as
    given.  Scores are of full tensors and kept like all scores.

    Args:
        benchmark: architectures with measured quality.
        proxy: a catalog name or an expression.
        seed: of the models' weights, and of the half that chooses the mimic.
        cache: where scores are kept.
        batch: what the models read.
        workers: how the work is spread over processes.
        progress: called with a stage's name, what is done of it, and its size.

    Returns:
        The explanation.

    Raises:
        LmscoutError: the proxy is unknown, malformed or orders nothing, or the cache cannot be
            written.
    """
    resolved = resolve(proxy)
    form = forms(proxy)
    name, tree = form.name, form.tree
    stages = Stages(progress)
    scored = ScoredBenchmark(
        benchmark,
        seed=seed,
        batch=batch or Batch(),
        cache=cache,
        workers=workers,
        stages=stages,
    )
    instead = {} if tree is None else silenced(tree)
    dead = None if tree is None else _dead_branches(name, tree, instead, benchmark, scored)
    own = scored.scores([name])[name]
    _require_order(name, own, benchmark)
    quality = benchmark.quality
    if tree is not None:
        told = scored.tree_scores(list(instead.values()))
        inputs = {leaf: change(told[one], own, quality) for leaf, one in instead.items()}
    else:
        inputs = {
            read: change(scored.with_ones(name, read), own, quality)
            for read in (resolved.reads if isinstance(resolved, Entry) else ())
        }
    baselines, ahead = beside_baselines(own, benchmark)
    sensitivity = Sensitivity(
        other_data=change(scored.with_other_data(name), own, quality),
        other_weights=change(scored.with_other_weights(name), own, quality),
        inputs=inputs,
        left_out=why_no_inputs(resolved, tree),
    )
    return Explanation(
        benchmark=benchmark.name,
        metric=benchmark.metric,
        n_architectures=len(benchmark),
        tree=tree,
        assessment=assess(name, own, benchmark),
        baselines=baselines,
        ahead=ahead,
        dead_branches=dead,
        sensitivity=sensitivity,
        configuration=_with_configuration(own, benchmark),
        mimic=mimic(benchmark, own, seed=seed),
        latex=form.latex,
        torch=form.torch,
        seconds=stages.seconds,
    )


def _dead_branches(
    name: str,
    tree: Expression,
    instead: Mapping[str, Expression],
    benchmark: Benchmark,
    scored: ScoredBenchmark,
) -> DeadBranches:
    """Find what is dead; the scores that are needed later are read in the same pass."""
    shorter = [cut.shorter for cut in cuts(tree)]
    on_full = sum(one.size for one in shorter) <= FULL_WORDS
    later = [name, *map(format_expression, (tree, *instead.values()))]
    if on_full:
        scored.scores([*later, *map(format_expression, shorter)])
        _require_order(name, scored.scores([name])[name], benchmark)
        score: Scored = scored.tree_scores
    else:
        evaluator = scored.evaluator()

        def score(trees: Sequence[Expression]) -> dict[Expression, Scores]:
            return {one: evaluator.scores(one) for one in trees}

    measured, left = measured_cuts(tree, score), shortenings(tree, score)
    scored.scores([*later, *map(format_expression, left)])
    own = scored.scores([name])[name]
    rho = {one: abs(spearman(scores, own)) for one, scores in scored.tree_scores(left).items()}
    shortest = [one for one in left if rho[one] >= DEAD or one == tree][-1]
    return DeadBranches(
        measured_on="full tensors" if on_full else "sketches",
        dead=tuple(cut for cut in measured if cut.dead),
        shortest=shortest,
        spearman=rho[shortest],
    )


def _require_order(name: str, scores: Scores, benchmark: Benchmark) -> None:
    """Raise LmscoutError unless scores order the architectures."""
    undefined = int((~np.isfinite(scores)).sum())
    if undefined:
        raise LmscoutError(
            f"{name} has no finite score on {undefined} of the {len(benchmark)} architectures of "
            f"{benchmark.name}: there is no order to explain; give another proxy"
        )
    if np.isnan(spearman(scores, scores)):
        raise LmscoutError(
            f"{name} gives all architectures of {benchmark.name} the same score: there is no order "
            "to explain; give another proxy"
        )


def _with_configuration(scores: Scores, benchmark: Benchmark) -> dict[str, float]:
    values = list(map(spec_values, benchmark.specs))
    return {leaf: spearman(scores, [one[leaf] for one in values]) for leaf in SPEC_LEAVES}
