"""Explain a proxy: dead branches, sensitivity to its inputs, the closest surrogate formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from math import gcd
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from lmscout.benchmarks import Benchmark
from lmscout.discovery.assessment import (
    Assessment,
    Compared,
    OptionalTree,
    SavedTree,
    assess,
    compare_baselines,
    number_json,
    proxy_name,
)
from lmscout.discovery.scorer import Scorer, ScorerOptions, Scores, cache_name, halves, run_settings
from lmscout.errors import LmscoutError
from lmscout.metrics import Interval, rounded, spearman, spearman_many
from lmscout.progress import Progress, Stages
from lmscout.proxies import (
    LARGEST,
    Entry,
    Expression,
    as_expression,
    format_expression,
    has_seen,
    replaced,
    resolve,
    to_latex,
    to_torch,
    walk,
)
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.results import Result, named
from lmscout.runs import kept_result
from lmscout.statistics.deep_values import DeepEvaluator
from lmscout.statistics.sketches import spec_values
from lmscout.statistics.workers import worker_processes

Exponents = tuple[int, int, int]

NAMES = ("depth", "width", "params")
EQUIVALENT = 0.99
"""|ρ| on held-out architectures from which on a proxy adds little to the formula."""

_EXPONENTS = (0, 1, 2, 3, -1, -2, -3)
_SAME_ORDER = 1 - 1e-9  # |ρ| of formulas with one order on a benchmark

Score = Callable[[Sequence[Expression]], Mapping[Expression, Scores]]  # scores of trees
DEAD = 0.999
"""The |Spearman| with the whole tree's scores from which on a branch counts as dead."""

FULL_WORDS = 60
"""Words of all shorter trees together that are scored on full tensors: these cost about as much as
the pass through each architecture that makes the sketches."""


@dataclass(frozen=True)
class SurrogateFormula:
    """A formula chosen on half of the architectures, and its figures on the others."""

    exponents: Exponents  # of depth, width and params; it increases with the proxy on that half
    fitted: float  # ρ with the proxy on that half
    held_out: float  # ρ with the proxy on the other half
    quality: float  # ρ with quality, on all architectures
    tried: int  # number of formulas with different orders on this benchmark

    @property
    def formula(self) -> str:
        """The formula as text, such as "depth^2 * width / params"."""
        return formula_text(self.exponents)

    @property
    def words(self) -> str:
        """The formula and its figures as a sentence."""
        fitted, held_out, quality = map(rounded, (self.fitted, self.held_out, self.quality))
        return (
            f"Of {self.tried} formulas of depth, width and params, {self.formula} is closest: "
            f"selected on half of the architectures (ρ {fitted}), on the others ρ {held_out}; its "
            f"own ρ with quality is {quality}."
        )

    @property
    def says_as_much(self) -> bool:
        """Whether the proxy adds little to the formula."""
        return abs(self.held_out) >= EQUIVALENT

    def to_json(self) -> dict[str, object]:
        """The formula and its figures."""
        return {
            **asdict(self),
            "formula": self.formula,
            "exponents": dict(zip(NAMES, self.exponents, strict=True)),
            **{
                name: number_json(getattr(self, name)) for name in ("fitted", "held_out", "quality")
            },
            "says_as_much": self.says_as_much,
        }


def formulas() -> tuple[Exponents, ...]:
    """All formulas up to powers and inverses, those with few and low factors first."""

    def length(exponents: Exponents) -> tuple[int, int, int]:
        powers = [power for power in exponents if power]
        return len(powers), sum(map(abs, powers)), sum(power < 0 for power in powers)

    every = (
        (depth, width, params)
        for depth, width, params in product(_EXPONENTS, repeat=3)
        if gcd(depth, width, params) == 1 and (depth or width or params) > 0
    )
    return tuple(sorted(every, key=length))


def formula_scores(exponents: Exponents, benchmark: Benchmark) -> Scores:
    """A formula's score of every architecture: [n] float64."""
    sizes = [(spec.depth, spec.width, spec.parameters()) for spec in benchmark.specs]
    scores: Scores = np.prod(np.array(sizes, np.float64) ** np.array(exponents), axis=1)
    return scores


def surrogate(benchmark: Benchmark, scores: Scores, *, seed: int) -> SurrogateFormula | None:
    """The formula with the highest |ρ| with finite scores [n], the shortest of several.

    The seed is that of the half of the architectures on which it is chosen.  None if no formula or
    the proxy has no order there.
    """
    chosen, others = halves(benchmark.specs, seed)
    distinct: list[Exponents] = []
    kept: list[Scores] = []
    for exponents in formulas():
        row = formula_scores(exponents, benchmark)
        if np.isnan(spearman(row, row)):  # constant
            continue
        if kept and np.abs(spearman_many(np.array(kept), row)).max() > _SAME_ORDER:
            continue
        distinct.append(exponents)
        kept.append(row)
    if not distinct:
        return None
    fitted = spearman_many(np.array(kept)[:, chosen], scores[chosen])
    if np.isnan(fitted).all():
        return None
    best = int(np.nanargmax(np.abs(fitted)))
    sign = 1 if fitted[best] >= 0 else -1
    depth, width, params = distinct[best]
    return SurrogateFormula(
        (sign * depth, sign * width, sign * params),
        sign * float(fitted[best]),
        sign * spearman(kept[best][others], scores[others]),
        sign * spearman(kept[best], benchmark.quality),
        len(distinct),
    )


def formula_text(exponents: Exponents) -> str:
    """A formula as text, such as "depth^2 * width / params"."""
    above, below = (
        [
            name if abs(power) == 1 else f"{name}^{abs(power)}"
            for name, power in zip(NAMES, exponents, strict=True)
            if power * sign > 0
        ]
        for sign in (1, -1)
    )
    text = " * ".join(above) or "1"
    if not below:
        return text
    return f"{text} / {below[0]}" if len(below) == 1 else f"{text} / ({' * '.join(below)})"


@dataclass(frozen=True)
class Cut:
    """A tree without one branch."""

    removed: str  # the branch; an operation of one operand with an ellipsis for that
    shorter: SavedTree  # the rest of the tree
    spearman: float = float("nan")  # |ρ| of its scores with those of the whole tree

    @property
    def dead(self) -> bool:
        """Whether the branch does not change the order."""
        return self.spearman >= DEAD


@dataclass(frozen=True)
class DeadBranches:
    """The dead branches of a proxy, and the proxy without them."""

    measured_on: str  # "full tensors" or "sketches", for the cuts
    dead: tuple[Cut, ...]  # cuts that do not change the order of architectures
    shortest: SavedTree  # without all dead branches, removed one after the other
    spearman: float  # |ρ| of its scores with the proxy's, on full tensors

    def to_json(self) -> dict[str, object]:
        """The cuts, and the tree without them."""
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
    """Every cut of a tree, not measured; the first of those with the same rest.

    A cut replaces an operation of two operands by one of them, or an operation of one operand by
    that, if the type stays the same.
    """
    found: dict[Expression, Cut] = {}
    for path, one in walk(node):
        options: list[tuple[str, Expression]] = []
        if len(one.operands) == 2:
            left, right = one.operands
            options = [(format_expression(left), right), (format_expression(right), left)]
        elif one.operands and one.type == one.operands[0].type:
            options = [(f"{one.name}(…)", one.operands[0])]
        for removed, kept in options:
            shorter = replaced(node, path, kept)
            found.setdefault(shorter, Cut(removed, shorter))
    return tuple(found.values())


def measured_cuts(node: Expression, score: Score, own: Scores | None = None) -> tuple[Cut, ...]:
    """Every cut of a tree, measured against the tree's own scores, or others."""
    every = cuts(node)
    scores = score([node, *(cut.shorter for cut in every)])
    target = scores[node] if own is None else own
    return tuple(replace(cut, spearman=abs(spearman(scores[cut.shorter], target))) for cut in every)


def shortenings(node: Expression, score: Score) -> tuple[Expression, ...]:
    """A tree, and the rest after each dead branch that is removed.

    Every step takes the shortest rest, and of several the one closest to the whole tree, among
    those with the order of the whole tree.
    """
    (own,) = score([node]).values()
    left = [node]
    while dead := [cut for cut in measured_cuts(left[-1], score, own) if cut.dead]:
        best = min(dead, key=lambda cut: (cut.shorter.size, -cut.spearman, cut.removed))
        left.append(best.shorter)
    return tuple(left)


@dataclass(frozen=True)
class Change:
    """Scores after a change of a proxy's inputs; NaN if they have no order."""

    spearman: float  # ρ with the unchanged scores
    quality: float  # ρ with quality

    def to_json(self) -> dict[str, float | None]:
        """Both figures; null if one is not defined."""
        return {"spearman": number_json(self.spearman), "quality": number_json(self.quality)}


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of a proxy's scores to changes of its inputs."""

    other_data: Change  # another batch of tokens
    other_weights: Change  # other initial weights
    inputs: dict[str, Change]  # input -> its tensors replaced by ones of the same shapes
    left_out: str  # why there is no `inputs`, or ""

    def to_json(self) -> dict[str, object]:
        """The figures by name."""
        return {
            "other_data": self.other_data.to_json(),
            "other_weights": self.other_weights.to_json(),
            "inputs": {name: one.to_json() for name, one in self.inputs.items()},
            "inputs_left_out": self.left_out or None,
        }


def change(scores: Scores, own: Scores, quality: Scores) -> Change:
    """Compare changed scores with the proxy's own, and with quality; all are [n]."""
    return Change(spearman(scores, own), spearman(scores, quality))


def leaves_as_ones(node: Expression) -> dict[str, Expression]:
    """For each tensor leaf of a tree, the tree with ones in its place: exp(x - x).

    A tree of more than a quarter of the largest size has none, as it may have no room for them.
    """

    def with_ones(one: Expression, leaf: str) -> Expression:
        if one == Expression(leaf):
            return Expression("exp", (Expression("sub", (one, one)),))
        return Expression(one.name, tuple(with_ones(each, leaf) for each in one.operands))

    if 4 * node.size > LARGEST:
        return {}
    return {leaf: with_ones(node, leaf) for leaf in sorted(node.leaves - set(SPEC_LEAVES))}


def why_no_inputs(proxy: Entry | Expression, tree: Expression | None) -> str:
    """Why inputs cannot be replaced by ones; "" if they can."""
    if tree is not None:
        if not tree.leaves - set(SPEC_LEAVES):
            return "it reads the configuration alone"
        return "" if leaves_as_ones(tree) else f"it has {tree.size} words, more than {LARGEST // 4}"
    assert isinstance(proxy, Entry)  # every expression is a tree
    return "" if proxy.reads else "it runs the model itself"


@dataclass(frozen=True, repr=False)
class Forms(Result):
    """The forms of a proxy that follow from its formula alone."""

    name: str  # in the catalog, or its text in the usual form
    definition: str | None  # of the catalog, in one line; None for an expression
    tree: OptionalTree  # None if the proxy is no expression
    latex: str | None  # likewise
    torch: str | None  # source of a PyTorch module that computes it; likewise

    def rows(self) -> list[dict[str, Any]]:
        """One row: the proxy in every form."""
        values = self.to_json()
        order = ("proxy", "tree", "latex", "torch", "definition")
        return [{name: values[name] for name in order}]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            "proxy": self.name,
            "definition": self.definition,
            "tree": None if self.tree is None else format_expression(self.tree),
            **named(self, "latex", "torch"),
        }


def forms(proxy: str) -> Forms:
    """The forms of a proxy; LmscoutError if it is unknown or malformed."""
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
class Explanation(Compared, Result):
    """An explanation of a proxy on the architectures of a benchmark.

    Attributes:
        benchmark: the benchmark's name.
        metric: name of its quality.
        n_architectures: number of its architectures.
        tree: the proxy as an expression, or None.
        assessment: of its ranking, with the sign as given; its name is the proxy's.
        baselines: the configuration baselines.
        ahead: its ρ less that of the best of them, paired.
        dead_branches: None if it is no expression.
        sensitivity: to changes of data, weights and inputs.
        configuration: "depth", "width", "params" -> its Spearman's ρ with it.
        surrogate: the closest formula of the configuration; None if there is none.
        latex: the proxy in LaTeX; None if it is no expression.
        torch: the source of a PyTorch module that computes it; None if it is no expression.
        seconds: by stage.
    """

    benchmark: str
    metric: str
    n_architectures: int
    tree: OptionalTree
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
    def assessed(self) -> Assessment:
        """The proxy's assessment."""
        return self.assessment

    @property
    def seen(self) -> bool:
        """Whether the search that found the proxy used a part of the benchmark."""
        return has_seen(self.assessment.name, self.benchmark)

    def rows(self) -> list[dict[str, Any]]:
        """ρ with the proxy itself and with quality, for each change of its inputs."""
        changes = {
            "other data": self.sensitivity.other_data,
            "other initial weights": self.sensitivity.other_weights,
            **{f"ones for {name}": one for name, one in self.sensitivity.inputs.items()},
        }
        return [{"change": name, **vars(one)} for name, one in changes.items()]

    def to_json(self) -> dict[str, object]:
        """The result as the command line prints it."""
        return {
            **named(self, "benchmark", "metric", "n_architectures"),
            "proxy": self.assessment.name,
            "tree": None if self.tree is None else format_expression(self.tree),
            **self.assessment.to_json(),
            "seen": self.seen,
            **self.comparison_json(),
            "dead_branches": self.dead_branches and self.dead_branches.to_json(),
            "sensitivity": self.sensitivity.to_json(),
            "configuration": {name: number_json(rho) for name, rho in self.configuration.items()},
            "surrogate": self.surrogate and self.surrogate.to_json(),
            **named(self, "latex", "torch", "seconds"),
        }


@worker_processes()
def explain(
    benchmark: Benchmark,
    proxy: str,
    *,
    seed: int,
    out: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[ScorerOptions],
) -> Explanation:
    """Explain a proxy on all architectures of a benchmark, as nothing is chosen.

    Scores are of full tensors.  The seed is that of the models' weights, and of the half that
    chooses the surrogate formula.  The result of a finished run in the folder is loaded.
    LmscoutError if the proxy is unknown, malformed or has no order, or the cache or the folder
    cannot be written.
    """
    resolve(proxy)  # an unknown name is refused before anything is computed
    settings = run_settings(benchmark, seed, options, proxy=proxy)
    scorer = Scorer(benchmark.specs, cache_name(benchmark.name), seed=seed, **options)
    compute = partial(_explained, benchmark, proxy, scorer, Stages(progress))
    return kept_result(out, "explain", settings, Explanation, compute)


def _explained(benchmark: Benchmark, proxy: str, scorer: Scorer, stages: Stages) -> Explanation:
    resolved, form = resolve(proxy), forms(proxy)
    name, tree, quality = form.name, form.tree, benchmark.quality
    as_ones = {} if tree is None else leaves_as_ones(tree)
    dead = None
    if tree is not None:
        later = [tree, *as_ones.values()]
        dead = _dead_branches(name, tree, later, benchmark, scorer, stages)
    with stages("scores") as update:
        own = scorer.scores([name], update)[name]
    _require_order(name, own, benchmark)
    changed: dict[str, Scores] = {}
    if tree is not None:
        of_trees = scorer.tree_scores(list(as_ones.values()))
        changed = {leaf: of_trees[one] for leaf, one in as_ones.items()}
    elif isinstance(resolved, Entry):
        for read in resolved.reads:
            with stages(f"ones for {read}") as update:
                changed[read] = scorer.scores([name], update, ones=read)[name]
    with stages("other data") as update:
        other_data = scorer.with_other_data().scores([name], update)[name]
    with stages("other weights") as update:
        other_weights = replace(scorer, seed=scorer.seed + 1).scores([name], update)[name]
    baselines, ahead = compare_baselines(own, benchmark)
    values = list(map(spec_values, benchmark.specs))
    return Explanation(
        benchmark=benchmark.name,
        metric=benchmark.metric,
        n_architectures=len(benchmark),
        tree=tree,
        assessment=assess(name, own, benchmark),
        baselines=baselines,
        ahead=ahead,
        dead_branches=dead,
        sensitivity=Sensitivity(
            other_data=change(other_data, own, quality),
            other_weights=change(other_weights, own, quality),
            inputs={leaf: change(scores, own, quality) for leaf, scores in changed.items()},
            left_out=why_no_inputs(resolved, tree),
        ),
        configuration={leaf: spearman(own, [one[leaf] for one in values]) for leaf in SPEC_LEAVES},
        surrogate=surrogate(benchmark, own, seed=scorer.seed),
        latex=form.latex,
        torch=form.torch,
        seconds=stages.seconds,
    )


def _dead_branches(
    name: str,
    tree: Expression,
    later: Sequence[Expression],
    benchmark: Benchmark,
    scorer: Scorer,
    stages: Stages,
) -> DeadBranches:
    """Find dead branches; scores of the trees needed later are computed in the same pass."""

    def full(trees: Sequence[Expression]) -> Mapping[Expression, Scores]:
        with stages("scores") as update:
            scorer.scores([name, *map(format_expression, trees)], update)
        return scorer.tree_scores(trees)

    shorter = [cut.shorter for cut in cuts(tree)]
    on_full = sum(one.size for one in shorter) <= FULL_WORDS
    score = full
    if on_full:
        full([*later, *shorter])
        _require_order(name, scorer.scores([name])[name], benchmark)
    else:
        with stages("sketches") as update:
            evaluator = DeepEvaluator(scorer.sketches(update))

        def score(trees: Sequence[Expression]) -> Mapping[Expression, Scores]:
            return {one: evaluator.scores(one) for one in trees}

    measured, left = measured_cuts(tree, score), shortenings(tree, score)
    scores = full([*later, *left])
    own = scorer.scores([name])[name]
    rho = {one: abs(spearman(scores[one], own)) for one in left}
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
