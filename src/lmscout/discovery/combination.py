"""One proxy out of several searches: their product, with a fitted correction.

One proxy out of several searches: the product of the best that each found.

What one search calls its best is the luckiest of thousands on few architectures.  The best of
independent searches are lucky in different ways, and share what is true; their product (a mean,
if scores are seen as logarithms) ranks unseen architectures better than any one of them does.

Measured on halves of search splits, chosen on one half and judged on the other (20 halves of
each benchmark, sketches, 1,000 evaluations a search; Spearman of one, of the product of four
and of six): FlexiBERT 0.898, 0.907, 0.908; LiteTransformerSearch 0.961, 0.969, 0.968; pico
0.828, 0.862, 0.868.  The fittest of six searches did not beat any one of them.

A formula may be fit on sketches and worthless on full tensors: sums of rare huge numbers are
(`statistics.sketches`).  Such a member would spoil the product, so what is far behind the best on
full tensors, by the search architectures, is no member.

A product bent to the configuration: what a formula without numbers cannot follow.

Quality is a smooth function of size and shape, and its bends are not those of the words of a
formula: how much more depth is worth depends on how deep a model is already, and how much a
proxy tells may depend on size.  With u the logarithm of the product's size and c those of depth,
width and parameters, all measured from the search architectures' mean,

    ln quality = u (a + b c) + a quadratic in c + a constant,

is fitted to the search split by Bayesian ridge regression (MacKay, Neural Computation 4, 1992),
whose evidence says how far numbers may go from 0: so where the search architectures show no bend,
there is hardly one.  The result is a formula like any other, with numbers in it.

Searches on three quarters of search splits, judged on the last quarter (seeds 0 to 4, sketches;
Spearman, Kendall, and how much more the bent product has of them than the product): pico 0.867,
0.752, +0.005 +- 0.009, +0.016; LiteTransformerSearch 0.975, 0.928, +0.014 +- 0.006, +0.030;
FlexiBERT 0.899, 0.731, +0.011 +- 0.006, +0.013.  A quadratic in u as well is as good, a cubic
is worse on pico, and one of the configuration alone is worse there by 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import BayesianRidge

from lmscout.discovery.engines import Candidate, Coefficient, agreed, fittest
from lmscout.metrics import fisher_z, logarithm, spearman
from lmscout.proxies import LARGEST, Expression
from lmscout.proxies.primitives import SPEC_LEAVES, number_text
from lmscout.statistics.deep_values import joined_score

Scores = npt.NDArray[np.float64]

_BEHIND = 3.0  # standard errors of Fisher's z by which a member may be behind the best


@dataclass(frozen=True)
class Known:
    """What the choice sees of one benchmark.

    Attributes:
        scores: of every finalist, on full tensors: [search architectures].
        quality: [search architectures].
        params: [search architectures].
    """

    scores: Mapping[Expression, Scores]
    quality: Scores
    params: Scores


@dataclass(frozen=True)
class Product:
    """The best of every search, and their product.

    Attributes:
        members: with their fitness on full tensors.
        node: the product, or the only member; it rises with quality.
        searched: its scores on each benchmark: [search architectures].
        bent: whether numbers were fitted to it, see `correction`.
    """

    members: tuple[Candidate, ...]
    node: Expression
    searched: tuple[Scores, ...]
    bent: bool = False


def choose(
    finalists: Sequence[Sequence[Candidate]], known: Sequence[Known], coefficient: Coefficient
) -> Product:
    """Take the best of every search by full tensors, and multiply those that are near the best.

    A proxy whose scores are of both signs cannot be multiplied, and is taken only where no
    search has another.

    Args:
        finalists: of each search, one or more in all.
        known: of each benchmark.
        coefficient: what is sought.
    """

    def rescored(one: Candidate) -> Candidate:
        worth = [
            coefficient(scores, own.quality, own.params) if np.isfinite(scores).all() else math.nan
            for own in known
            for scores in (own.scores[one.node],)
        ]
        return replace(one, fitness=float(np.nan_to_num(agreed(worth))))

    every = [[rescored(one) for one in each] for each in finalists]
    signed = [[one for one in each if _of_one_sign(one.node, known)] for each in every]
    if not any(signed):
        (best,) = fittest([one for each in every for one in each], 1)
        return _rising((best,), best.node, known)
    best_of_each = [one for each in signed for one in fittest(each, 1)]
    error = 1 / math.sqrt(min(len(own.quality) for own in known) - 3)
    reached = [fisher_z(one.fitness or 0.0) for one in best_of_each]
    least = max(reached) - _BEHIND * error
    members = {one.node: one for one, z in zip(best_of_each, reached, strict=True) if z >= least}
    return _rising(tuple(members.values()), _multiplied(tuple(members), known), known)


def _rising(members: tuple[Candidate, ...], node: Expression, known: Sequence[Known]) -> Product:
    """The members as one tree, turned round where it falls with quality."""

    def searched(whole: Expression) -> tuple[Scores, ...]:
        parts = [{one.node: own.scores[one.node] for one in members} for own in known]
        return tuple(joined_score(whole, own) for own in parts)

    scores = searched(node)
    if sum(spearman(one, own.quality) for one, own in zip(scores, known, strict=True)) < 0:
        node = Expression("negate", (node,))
        scores = searched(node)
    return Product(members, node, scores)


def _multiplied(members: Sequence[Expression], known: Sequence[Known]) -> Expression:
    """Those whose size rises with quality, multiplied, and divided by those whose size falls."""
    ways = [_rises(member, known) for member in members]
    rising = [member for member, up in zip(members, ways, strict=True) if up]
    falling = [member for member, up in zip(members, ways, strict=True) if not up]
    if not rising:  # then the inverse orders as well
        rising, falling = falling, []
    first, *others = rising
    whole = reduce(lambda left, right: Expression("*", (left, right)), others, first)
    return reduce(lambda left, right: Expression("/", (left, right)), falling, whole)


def _rises(node: Expression, known: Sequence[Known]) -> bool:
    return sum(spearman(np.abs(own.scores[node]), own.quality) for own in known) >= 0


def _of_one_sign(node: Expression, known: Sequence[Known]) -> bool:
    scores = np.concatenate([own.scores[node] for own in known])
    return bool(np.isfinite(scores).all() and ((scores > 0).all() or (scores < 0).all()))


Values = npt.NDArray[np.float64]

FEWEST = 30
"""Architectures, at least: on so many it was measured to be worth its numbers."""

_WORDS = 96  # that are added to the product's, at most
_DIGITS = 5  # of a number; the logarithms that it multiplies are of the order of 1
_FLAT = 1e-9  # of a standard deviation: nothing can be learnt from what does not vary

Term = tuple[int, ...]  # places of the quantities that are multiplied; that of the product is 0


def correction(product: Product, spec: Mapping[str, Values], quality: Values) -> Product:
    """Fit the configuration's bends to a product.

    Args:
        product: of one benchmark.
        spec: "depth", "width" and "params" of the search architectures, [n] each.
        quality: [n], higher is better.

    Returns:
        The product with the bent formula in its place, which rises with quality; as it was
        where there are fewer than `FEWEST` architectures, its scores are not of one sign, or it
        leaves no room for more words.
    """
    (scores,) = product.searched
    signed = bool((scores > 0).all() or (scores < 0).all())
    if len(quality) < FEWEST or not signed or product.node.size > LARGEST - _WORDS:
        return product
    columns = [np.log(np.abs(scores)), *(np.log(spec[leaf]) for leaf in SPEC_LEAVES)]
    middles = [float(one.mean()) for one in columns]
    spreads = [float(one.std()) for one in columns]
    varying = [place for place, spread in enumerate(spreads) if spread > _FLAT]
    terms = _terms(varying)
    if not terms:
        return product
    scaled = {place: (columns[place] - middles[place]) / spreads[place] for place in varying}
    table = np.stack([_corrected([scaled[place] for place in term]) for term in terms], axis=1)
    slopes = BayesianRidge().fit(table, logarithm(quality)).coef_
    numbers = {
        term: float(slope) / float(np.prod([spreads[place] for place in term]))
        for term, slope in zip(terms, slopes, strict=True)
    }
    leaves = [
        Expression("abslog", (product.node,)),
        *(Expression("log", (Expression(x),)) for x in SPEC_LEAVES),
    ]
    quantities = [_from(leaf, middle) for leaf, middle in zip(leaves, middles, strict=True)]
    node = _polynomial(numbers, quantities)
    known = {product.node: scores, **{Expression(leaf): spec[leaf] for leaf in SPEC_LEAVES}}
    return replace(product, node=node, searched=(joined_score(node, known),), bent=True)


def _terms(varying: Sequence[int]) -> list[Term]:
    """The product, it times each leaf, each leaf, and each times itself and those after it."""
    first, leaves = varying[:1] == [0], [place for place in varying if place]
    own: list[Term] = [(0,), *((0, leaf) for leaf in leaves)] if first else []
    linear: list[Term] = [(leaf,) for leaf in leaves]
    square: list[Term] = [(x, y) for at, x in enumerate(leaves) for y in leaves[at:]]
    return [*own, *linear, *square]


def _polynomial(numbers: Mapping[Term, float], quantities: Sequence[Expression]) -> Expression:
    """The sum of all terms, each quantity taken out of those that begin with it."""
    parts: list[tuple[float, Expression]] = []
    for place, quantity in enumerate(quantities):
        own = [(number, term[1:]) for term, number in numbers.items() if term[0] == place]
        inner = _sum(
            (number, quantities[rest[0]] if rest else None) for number, rest in own if number
        )
        if inner is not None:
            parts.append((1.0, Expression("*", (quantity, inner))))
    whole = _sum(parts)
    return whole if whole is not None else Expression("0")


def _sum(parts: Iterable[tuple[float, Expression | None]]) -> Expression | None:
    """Numbers times nodes, or alone; those above 0 first, as the language has no minus sign."""
    every = [(number, _times(abs(number), node)) for number, node in parts]
    rising = [one for number, one in every if number >= 0]
    falling = [one for number, one in every if number < 0]
    if not every:
        return None
    if not rising:
        return Expression("negate", (_joined("+", falling),))
    return reduce(lambda left, right: Expression("-", (left, right)), falling, _joined("+", rising))


def _joined(sign: str, nodes: Sequence[Expression]) -> Expression:
    return reduce(lambda left, right: Expression(sign, (left, right)), nodes)


def _times(number: float, node: Expression | None) -> Expression:
    factor = Expression(_rounded(number))
    if node is None:
        return factor
    return node if number == 1 else Expression("*", (factor, node))


def _from(node: Expression, middle: float) -> Expression:
    """What a value has more than its mean."""
    return Expression("-" if middle >= 0 else "+", (node, Expression(_rounded(abs(middle)))))


def _rounded(number: float) -> str:
    return number_text(float(f"{number:.{_DIGITS}g}"))


def _corrected(values: Sequence[Values]) -> Values:
    return reduce(np.multiply, values)
