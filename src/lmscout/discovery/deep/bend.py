"""A product bent to the configuration: what a formula without numbers cannot follow.

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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import BayesianRidge

from lmscout.discovery.deep.product import Product
from lmscout.proxies import LARGEST, Expression
from lmscout.proxies.primitives import SPEC_LEAVES, number_text
from lmscout.ranking import logarithm
from lmscout.statistics.deep_values import joined_score

Values = npt.NDArray[np.float64]

FEWEST = 30
"""Architectures, at least: on so many it was measured to be worth its numbers."""

_WORDS = 96  # that are added to the product's, at most
_DIGITS = 5  # of a number; the logarithms that it multiplies are of the order of 1
_FLAT = 1e-9  # of a standard deviation: nothing can be learnt from what does not vary

Term = tuple[int, ...]  # places of the quantities that are multiplied; that of the product is 0


def bend(product: Product, spec: Mapping[str, Values], quality: Values) -> Product:
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
    table = np.stack([_multiplied([scaled[place] for place in term]) for term in terms], axis=1)
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


def _multiplied(values: Sequence[Values]) -> Values:
    return reduce(np.multiply, values)
