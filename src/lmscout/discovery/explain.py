"""Explain a proxy: dead branches, sensitivity to what it reads, simpler formulas.

A benchmark that is scored again and again: by trees that differ a little, after changes.

Which parts of a deep proxy do not matter: without them architectures are ordered the same.

A cut takes one part out of a tree: an operand of a word of two, where the other operand takes
the word's place, or a word of one operand, where that takes its place if it is of the same type.
What is cut off is dead where the shorter tree orders the architectures as the whole one does, or
exactly the other way round.

What a proxy's order of architectures owes to the data, to the weights and to each input.

Each is one change, and two figures: how much of the proxy's order is left, and how well what is
left goes with quality.

What a proxy says, and whether anything simpler says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

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
    proxy_name,
)
from lmscout.discovery.discover import cache_name
from lmscout.discovery.surrogate_formula import SurrogateFormula, surrogate
from lmscout.errors import LmscoutError
from lmscout.metrics import Interval, spearman
from lmscout.progress import Progress, Stages
from lmscout.proxies import (
    LARGEST,
    Entry,
    Expression,
    as_expression,
    format_expression,
    has_seen,
    parse,
    replaced,
    resolve,
    to_latex,
    to_torch,
    walk,
)
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.results import Result, SavedAs
from lmscout.statistics import Batch, Workers, score_proxies
from lmscout.statistics.deep_values import DeepEvaluator
from lmscout.statistics.sketches import collect_sketches, spec_values
from lmscout.statistics.workers import worker_processes

Scores = npt.NDArray[np.float64]

SCORES, SKETCHES = "scores", "sketches"
OTHER_DATA, OTHER_WEIGHTS = "other data", "other weights"


class ScoredBenchmark:
    """Scores of proxies on full tensors, each read once, and of trees on sketches.

    All that is asked for in one call is scored in one pass through each architecture.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        *,
        seed: int,
        batch: Batch,
        cache: Path,
        workers: Workers | None,
        stages: Stages,
    ) -> None:
        """Score nothing yet.

        Args:
            benchmark: the architectures.
            seed: of the models' weights.
            batch: what the models read.
            cache: where scores and sketches are kept.
            workers: how the work is spread over processes.
            stages: told how far each reading is.
        """
        self._read = partial(
            score_proxies,
            benchmark.specs,
            name=cache_name(benchmark.name),
            folder=cache,
            workers=workers,
        )
        self._sketch = partial(
            collect_sketches,
            benchmark.specs,
            name=cache_name(benchmark.name),
            folder=cache,
            seed=seed,
            batch=batch,
            workers=workers,
        )
        self._seed, self._batch, self._stages = seed, batch, stages
        self._known: dict[str, Scores] = {}

    def scores(self, names: Iterable[str]) -> dict[str, Scores]:
        """Scores on full tensors: name or expression -> [n]."""
        wanted = list(dict.fromkeys(names))
        if unread := [name for name in wanted if name not in self._known]:
            with self._stages(SCORES) as update:
                self._known |= self._read(
                    unread, seed=self._seed, batch=self._batch, progress=update
                )
        return {name: self._known[name] for name in wanted}

    def tree_scores(self, trees: Sequence[Expression]) -> dict[Expression, Scores]:
        """The same of trees."""
        scores = self.scores(map(format_expression, trees))
        return {tree: scores[format_expression(tree)] for tree in trees}

    def with_other_data(self, name: str) -> Scores:
        """Scores of one proxy where the models read other tokens: [n]."""
        other = self._batch.other()
        with self._stages(OTHER_DATA) as update:
            return self._read([name], seed=self._seed, batch=other, progress=update)[name]

    def with_other_weights(self, name: str) -> Scores:
        """Scores of one proxy where the models' weights are of another seed: [n]."""
        with self._stages(OTHER_WEIGHTS) as update:
            return self._read([name], seed=self._seed + 1, batch=self._batch, progress=update)[name]

    def with_ones(self, name: str, read: str) -> Scores:
        """Scores of one proxy that is given ones for the tensors of an input: [n]."""
        with self._stages(f"ones for {read}") as update:
            return self._read(
                [name], seed=self._seed, batch=self._batch, ones=read, progress=update
            )[name]

    def evaluator(self) -> DeepEvaluator:
        """What scores trees on sketches of all architectures."""
        with self._stages(SKETCHES) as update:
            return DeepEvaluator(self._sketch(progress=update))


Scored = Callable[[Sequence[Expression]], Mapping[Expression, Scores]]  # trees to their scores

DEAD = 0.999
"""The |Spearman| with the whole tree's scores from which on a part counts as dead."""


@dataclass(frozen=True)
class Cut:
    """A part taken out of a tree.

    Attributes:
        removed: the part; of a word of one operand, the word with an ellipsis for that.
        shorter: what is left of the tree.
        spearman: |Spearman| between its scores and those of the whole tree; NaN where it has
            no order.
    """

    removed: str
    shorter: Annotated[Expression, SavedAs(format_expression, parse)]
    spearman: float = float("nan")

    @property
    def dead(self) -> bool:
        """Whether the part does not matter."""
        return self.spearman >= DEAD


@dataclass(frozen=True)
class DeadBranches:
    """Which parts of a proxy do not matter, and what it is without them.

    Attributes:
        measured_on: "full tensors" or "sketches": what the cuts were measured on.
        dead: the cuts that leave the order of architectures as it is.
        shortest: what is left when all that is dead is taken out, one part after the other.
        spearman: |Spearman| between its scores and the proxy's, on full tensors in any case.
    """

    measured_on: str
    dead: tuple[Cut, ...]
    shortest: Annotated[Expression, SavedAs(format_expression, parse)]
    spearman: float

    def to_json(self) -> dict[str, object]:
        """The cuts, and what is left."""
        return {
            "measured_on": self.measured_on,
            "dead": [
                {
                    "removed": cut.removed,
                    "left": format_expression(cut.shorter),
                    "spearman": number_json(cut.spearman),
                }
                for cut in self.dead
            ],
            "shortest": {
                "proxy": format_expression(self.shortest),
                "size": self.shortest.size,
                "spearman": number_json(self.spearman),
            },
        }


def cuts(node: Expression) -> tuple[Cut, ...]:
    """Every cut of a tree, not yet measured; of cuts that leave the same, the first."""
    found: dict[Expression, Cut] = {}
    for path, one in walk(node):
        if len(one.operands) == 2:
            left, right = one.operands
            options = [(format_expression(left), right), (format_expression(right), left)]
        elif one.operands and one.type == one.operands[0].type:
            options = [(f"{one.name}(…)", one.operands[0])]
        else:
            options = []
        for removed, kept in options:
            shorter = replaced(node, path, kept)
            found.setdefault(shorter, Cut(removed, shorter))
    return tuple(found.values())


def measured_cuts(node: Expression, score: Scored, own: Scores | None = None) -> tuple[Cut, ...]:
    """Every cut of a tree, measured.

    Args:
        node: the tree.
        score: gives trees' scores.
        own: what shorter trees are compared with, the tree's own scores by default.
    """
    every = cuts(node)
    scores = score([node, *(cut.shorter for cut in every)])
    target = scores[node] if own is None else own
    return tuple(
        Cut(cut.removed, cut.shorter, abs(spearman(scores[cut.shorter], target))) for cut in every
    )


def shortenings(node: Expression, score: Scored) -> tuple[Expression, ...]:
    """A tree with all that is dead taken out, one part after the other.

    Every step takes the cut that leaves the shortest tree, of several the one most like the
    whole tree, among those that still order architectures as the whole tree does.

    Args:
        node: the tree.
        score: gives trees' scores.

    Returns:
        The tree, then what is left after each step.
    """
    (own,) = score([node]).values()
    left = [node]
    while dead := [cut for cut in measured_cuts(left[-1], score, own) if cut.dead]:
        best = min(dead, key=lambda cut: (cut.shorter.size, -cut.spearman, cut.removed))
        left.append(best.shorter)
    return tuple(left)


@dataclass(frozen=True)
class Change:
    """Scores after a change, beside the proxy's own.

    Attributes:
        spearman: Spearman's ρ with the proxy's own; NaN where they have no order.
        quality: theirs with quality.
    """

    spearman: float
    quality: float

    def to_json(self) -> dict[str, float | None]:
        """Both figures; null where one is not defined."""
        return {"spearman": number_json(self.spearman), "quality": number_json(self.quality)}


@dataclass(frozen=True)
class Sensitivity:
    """How a proxy takes changes of what it is computed from.

    Attributes:
        other_data: another batch of tokens.
        other_weights: other initial weights.
        inputs: input -> its tensors replaced by ones of the same shapes, so that it tells
            nothing but its size.
        left_out: why there is no `inputs`, or "".
    """

    other_data: Change
    other_weights: Change
    inputs: dict[str, Change]
    left_out: str

    def to_json(self) -> dict[str, object]:
        """The figures by name."""
        return {
            "other_data": self.other_data.to_json(),
            "other_weights": self.other_weights.to_json(),
            "inputs": {name: one.to_json() for name, one in self.inputs.items()},
            "inputs_left_out": self.left_out or None,
        }


def change(scores: Scores, own: Scores, quality: Scores) -> Change:
    """Compare scores after a change with the proxy's own, and with quality; all are [n]."""
    return Change(spearman(scores, own), spearman(scores, quality))


def silenced(node: Expression) -> dict[str, Expression]:
    """For each tensor leaf of a tree the tree with ones in that leaf's place.

    Ones of a tensor's shape are exp(x - x), so that they need no word of their own.  A tree that
    may not have room for these, of more than a quarter of the largest, has none.
    """
    if 4 * node.size > LARGEST:
        return {}
    leaves = sorted(node.leaves - set(SPEC_LEAVES))
    return {leaf: _with_ones(node, leaf) for leaf in leaves}


def _with_ones(node: Expression, leaf: str) -> Expression:
    if node == Expression(leaf):
        return Expression("exp", (Expression("sub", (node, node)),))
    return Expression(node.name, tuple(_with_ones(one, leaf) for one in node.operands))


def why_no_inputs(proxy: Entry | Expression, tree: Expression | None) -> str:
    """Why inputs cannot be replaced by ones; "" where they can be."""
    if tree is not None:
        if not tree.leaves - set(SPEC_LEAVES):
            return "it reads the configuration alone"
        return "" if silenced(tree) else f"it has {tree.size} words, more than {LARGEST // 4}"
    assert isinstance(proxy, Entry)  # every expression is a tree
    return "" if proxy.reads else "it runs the model itself"


FULL_WORDS = 60
"""Up to how many words of all shorter trees together these are measured on full tensors: they
cost about as much as the one pass through each architecture that makes the sketches."""


@dataclass(frozen=True, repr=False)
class Forms(Result):
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
    tree: Annotated[Expression | None, SavedAs(format_expression, parse)]
    latex: str | None
    torch: str | None

    def rows(self) -> list[dict[str, Any]]:
        """One row: the proxy in every form."""
        return [self.to_json()]

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
        surrogate: the formula of the configuration that is most like it; None where there is none.
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
    surrogate: SurrogateFormula | None
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
            "surrogate": None if self.surrogate is None else self.surrogate.to_json(),
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
        seed: of the models' weights, and of the half that chooses the surrogate formula.
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
        update = scored.tree_scores(list(instead.values()))
        inputs = {leaf: change(update[one], own, quality) for leaf, one in instead.items()}
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
        surrogate=surrogate(benchmark, own, seed=seed),
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
