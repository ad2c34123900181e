"""One proxy out of several searches: the product of their best, with a fitted correction.

Selecting the best of thousands on few architectures overfits.  Independent searches err
independently; their product (a mean of logarithms) ranks held-out architectures better
than any one of them.  Measured on halves of search splits (20 halves of each benchmark, sketches,
1,000 evaluations a search; Spearman of one, of the product of four and of six): FlexiBERT 0.898,
0.907, 0.908; LiteTransformerSearch 0.961, 0.969, 0.968; pico 0.828, 0.862, 0.868.

The correction fits what a formula without numbers cannot express: curvature in the configuration.
With u the logarithm of the product and c those of depth, width and parameters, all centred,

    ln quality = u (a + b c) + a quadratic in c + a constant,

fitted by Bayesian ridge regression (MacKay, Neural Computation 4, 1992).  Gain of Spearman and
Kendall on held-out quarters (seeds 0 to 4, sketches): pico +0.005 +- 0.009, +0.016;
LiteTransformerSearch +0.014 +- 0.006, +0.030; FlexiBERT +0.011 +- 0.006, +0.013.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations_with_replacement

import numpy as np
from sklearn.linear_model import BayesianRidge

from lmscout.discovery.engines import Candidate, Coefficient, fittest, joint_fitness
from lmscout.discovery.scorer import Scores, mean_of
from lmscout.metrics import fisher_z, logarithm, spearman
from lmscout.proxies import LARGEST, Expression, format_expression, parse
from lmscout.proxies.primitives import SPEC_LEAVES, number_text
from lmscout.statistics.deep_values import joined_score

Term = tuple[int, ...]  # places of the quantities that are multiplied; that of the product is 0

FEWEST = 30
"""Search architectures of a correction, at least; it was measured to help on so many."""

_BEHIND = 3.0  # standard errors of Fisher's z by which a member may be behind the best
_WORDS = 96  # words that a correction adds, at most
_DIGITS = 5  # of a coefficient; the logarithms that it multiplies are of the order of 1
_CONSTANT = 1e-9  # standard deviation of a quantity that does not vary


@dataclass(frozen=True)
class Known:
    """Search data of one benchmark."""

    scores: Mapping[Expression, Scores]  # finalist -> [draws, search architectures], full tensors
    quality: Scores  # [search architectures]
    params: Scores  # [search architectures]


@dataclass(frozen=True)
class Product:
    """The best of every search, and their product."""

    members: tuple[Candidate, ...]  # with their fitness on full tensors
    node: Expression  # the product, or the only member; it increases with quality
    drawn: tuple[Scores, ...]  # its scores on each benchmark: [draws, search architectures]
    corrected: bool = False  # whether it has a correction

    @property
    def searched(self) -> tuple[Scores, ...]:
        """Its scores on each benchmark, averaged over draws: [search architectures]."""
        return tuple(map(mean_of, self.drawn))


def choose(
    finalists: Sequence[Sequence[Candidate]], known: Sequence[Known], coefficient: Coefficient
) -> Product:
    """Take the best of every search on full tensors, and multiply those near the best one.

    A proxy with scores of both signs is no factor; it is taken only if no search has another one.
    A formula may be fit on sketches and poor on full tensors, so members far behind are left out.
    """

    def rescored(one: Candidate) -> Candidate:
        coefficients = [
            coefficient(scores, own.quality, own.params) if np.isfinite(scores).all() else math.nan
            for own in known
            for scores in (mean_of(own.scores[one.node]),)
        ]
        return replace(one, fitness=float(np.nan_to_num(joint_fitness(coefficients))))

    every = [[rescored(one) for one in each] for each in finalists]

    def is_factor(one: Candidate) -> bool:
        return _of_one_sign(np.concatenate([own.scores[one.node].ravel() for own in known]))

    signed = [list(filter(is_factor, each)) for each in every]
    if not any(signed):
        (best,) = fittest([one for each in every for one in each], 1)
        return _increasing((best,), best.node, known)
    best_of_each = [one for each in signed for one in fittest(each, 1)]
    error = 1 / math.sqrt(min(len(own.quality) for own in known) - 3)
    reached = [fisher_z(one.fitness or 0.0) for one in best_of_each]
    least = max(reached) - _BEHIND * error
    members = {one.node: one for one, z in zip(best_of_each, reached, strict=True) if z >= least}
    return _increasing(tuple(members.values()), _product(list(members), known), known)


def _increasing(
    members: tuple[Candidate, ...], node: Expression, known: Sequence[Known]
) -> Product:
    """The members as one tree, negated if it decreases with quality."""

    def product(whole: Expression) -> Product:
        parts = [{one.node: own.scores[one.node] for one in members} for own in known]
        return Product(members, whole, tuple(joined_score(whole, own) for own in parts))

    found = product(node)
    both = zip(found.searched, known, strict=True)
    falls = sum(spearman(one, own.quality) for one, own in both) < 0
    return product(Expression("negate", (node,))) if falls else found


def _product(members: Sequence[Expression], known: Sequence[Known]) -> Expression:
    """The product of members whose size increases with quality, divided by the others."""

    def increases(node: Expression) -> bool:
        sizes = [mean_of(np.abs(own.scores[node])) for own in known]
        both = zip(sizes, known, strict=True)
        return sum(spearman(one, own.quality) for one, own in both) >= 0

    above = [member for member in members if increases(member)]
    below = [member for member in members if member not in above]
    if not above:  # the inverse has the same order, reversed
        above, below = below, []
    return _chain("/", [_chain("*", above), *below])


def _of_one_sign(scores: Scores) -> bool:
    return bool(np.isfinite(scores).all() and ((scores > 0).all() or (scores < 0).all()))


def correction(product: Product, spec: Mapping[str, Scores], quality: Scores) -> Product:
    """Fit a correction for "depth", "width" and "params" [n] to a product on one benchmark.

    The corrected formula increases with quality [n].  The product is unchanged if there are fewer
    than `FEWEST` architectures, its scores are of both signs, or it has no room for more words.
    """
    (drawn,), (scores,) = product.drawn, product.searched
    if len(quality) < FEWEST or not _of_one_sign(drawn) or product.node.size > LARGEST - _WORDS:
        return product
    columns = [np.log(np.abs(scores)), *(np.log(spec[leaf]) for leaf in SPEC_LEAVES)]
    centres = [float(one.mean()) for one in columns]
    spreads = [float(one.std()) for one in columns]
    varying = [place for place, spread in enumerate(spreads) if spread > _CONSTANT]
    terms = _terms(varying)
    if not terms:
        return product
    scaled = {place: (columns[place] - centres[place]) / spreads[place] for place in varying}
    table = np.stack([reduce(np.multiply, [scaled[at] for at in term]) for term in terms], axis=1)
    slopes = BayesianRidge().fit(table, logarithm(quality)).coef_
    numbers = {
        term: float(slope) / float(np.prod([spreads[place] for place in term]))
        for term, slope in zip(terms, slopes, strict=True)
    }
    logarithms = [
        f"abslog({format_expression(product.node)})",
        *(f"log({leaf})" for leaf in SPEC_LEAVES),
    ]
    quantities = [
        f"({one} {'-' if centre >= 0 else '+'} {_number(abs(centre))})"
        for one, centre in zip(logarithms, centres, strict=True)
    ]
    node = parse(_polynomial(numbers, quantities))
    known = {product.node: drawn, **{Expression(leaf): spec[leaf] for leaf in SPEC_LEAVES}}
    return replace(product, node=node, drawn=(joined_score(node, known),), corrected=True)


def _terms(varying: Sequence[int]) -> list[Term]:
    """The product, it times each leaf, each leaf, and each times itself and those after it."""
    leaves = [place for place in varying if place]
    own: list[Term] = [(0,), *((0, leaf) for leaf in leaves)] if varying[:1] == [0] else []
    linear: list[Term] = [(leaf,) for leaf in leaves]
    return [*own, *linear, *combinations_with_replacement(leaves, 2)]


def _polynomial(numbers: Mapping[Term, float], quantities: Sequence[str]) -> str:
    """The sum of all terms, with each first quantity factored out."""
    parts: list[tuple[float, str]] = []
    for place, quantity in enumerate(quantities):
        own = [(number, term[1:]) for term, number in numbers.items() if term[0] == place]
        inner = [
            (number, " * ".join([_number(abs(number)), *(quantities[at] for at in rest)]))
            for number, rest in own
            if number
        ]
        if inner:
            parts.append((1.0, f"{quantity} * ({_sum(inner)})"))
    return _sum(parts) if parts else "0"


def _sum(parts: Sequence[tuple[float, str]]) -> str:
    """Signed terms; positive ones first, as the language has no leading minus sign."""
    positive = " + ".join(text for sign, text in parts if sign >= 0)
    negative = [text for sign, text in parts if sign < 0]
    return " - ".join([positive, *negative]) if positive else f"negate({' + '.join(negative)})"


def _number(value: float) -> str:
    return number_text(float(f"{value:.{_DIGITS}g}"))


def _chain(operation: str, nodes: Sequence[Expression]) -> Expression:
    return reduce(lambda left, right: Expression(operation, (left, right)), nodes)
