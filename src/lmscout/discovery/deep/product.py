"""One proxy out of several searches: the product of the best that each found.

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
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import numpy.typing as npt

from lmscout.discovery.deep.candidates import Candidate, Coefficient, agreed, fittest
from lmscout.proxies import Expression
from lmscout.ranking import fisher_z, spearman
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
        bent: whether numbers were fitted to it, see `bend`.
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
