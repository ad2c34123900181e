"""Enumerable spaces of proxies, each proxy with a number of its own.

A space holds every proxy that joins two branches on different inputs.  Its index runs in C
order (the last varies fastest) over

    (aggregation, pair of inputs, left chain, right chain, binary operation)

so that an engine can work through it in contiguous blocks, and both directions between
index and proxy take constant time.  A pair is unordered: the left input is the one that
comes first in the space's `inputs`.  Every binary operation but the difference commutes, and
swapping the difference only turns its sign, so nothing distinct is left out under the mean
and the sum.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from types import MappingProxyType

from lmscout.errors import LmscoutError
from lmscout.proxies.expression import Binary, Branch, Proxy
from lmscout.proxies.operators import AGGREGATION, BINARY, INPUTS, UNARY
from lmscout.proxies.spelling import did_you_mean, require_known, shown
from lmscout.proxies.text import format_proxy

_BINARY_NAMES = tuple(entry.name for entry in BINARY)
_BINARY_POSITION = {name: position for position, name in enumerate(_BINARY_NAMES)}


@dataclass(frozen=True)
class Space:
    """A space of proxies.

    Attributes:
        name: What people call it.
        inputs: The inputs that are paired, in order.
        chains: The chains of unary operations a branch may have, in order, innermost
            operation first.
        aggregations: The aggregations, in order.
    """

    name: str
    inputs: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]
    aggregations: tuple[str, ...]

    def __post_init__(self) -> None:
        for what, values, fewest in (
            ("inputs", self.inputs, 2),
            ("chains", self.chains, 1),
            ("aggregations", self.aggregations, 1),
        ):
            if len(values) < fewest or len(set(values)) != len(values):
                raise LmscoutError(
                    f"space {self.name}: {what} are {shown(', '.join(map(str, values)))}, "
                    f"expected {fewest} or more, each once"
                )
        for aggregation in self.aggregations:
            require_known("aggregation", aggregation, AGGREGATION)
        for name in self.inputs:
            for chain in self.chains:
                Branch(name, chain)

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of distinct inputs: (first, second), (first, third), ..."""
        return tuple(combinations(self.inputs, 2))

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Lengths of the index's axes: aggregation, pair, left and right chain, binary."""
        chains = len(self.chains)
        return (len(self.aggregations), len(self.pairs), chains, chains, len(_BINARY_NAMES))

    @property
    def size(self) -> int:
        """Number of proxies."""
        aggregations, pairs, left, right, binary = self.shape
        return aggregations * pairs * left * right * binary

    def proxy(self, index: int) -> Proxy:
        """The proxy of an index, from 0 to `size` - 1.

        Raises:
            LmscoutError: The index is outside the space.
        """
        if not 0 <= index < self.size:
            raise LmscoutError(
                f"space {self.name}: index {index} is outside, give one from 0 to {self.size - 1}"
            )
        _, pairs, chains, _, binaries = self.shape
        rest, binary = divmod(int(index), binaries)
        rest, right = divmod(rest, chains)
        rest, left = divmod(rest, chains)
        aggregation, pair = divmod(rest, pairs)
        left_input, right_input = self.pairs[pair]
        return Proxy(
            self.aggregations[aggregation],
            Binary(
                _BINARY_NAMES[binary],
                Branch(left_input, self.chains[left]),
                Branch(right_input, self.chains[right]),
            ),
        )

    def index(self, proxy: Proxy) -> int:
        """The index of a proxy.

        Raises:
            LmscoutError: The space does not hold it (as written: operands are not swapped).
        """
        aggregations, pairs, chains = self._positions
        body = proxy.body
        try:
            if isinstance(body, Branch):
                raise KeyError
            _, n_pairs, n_chains, _, n_binaries = self.shape
            index = aggregations[proxy.aggregation]
            index = index * n_pairs + pairs[body.left.input, body.right.input]
            index = index * n_chains + chains[body.left.chain]
            index = index * n_chains + chains[body.right.chain]
            return index * n_binaries + _BINARY_POSITION[body.operation]
        except KeyError:
            raise LmscoutError(
                f"space {self.name} does not hold {shown(format_proxy(proxy))}: it pairs "
                f"different inputs in the order {', '.join(self.inputs)}, with "
                f"{len(self.chains)} chains a side and {', '.join(self.aggregations)}"
            ) from None

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Proxy]:
        return (self.proxy(index) for index in range(self.size))

    @cached_property
    def _positions(
        self,
    ) -> tuple[dict[str, int], dict[tuple[str, str], int], dict[tuple[str, ...], int]]:
        return (
            {name: position for position, name in enumerate(self.aggregations)},
            {pair: position for position, pair in enumerate(self.pairs)},
            {chain: position for position, chain in enumerate(self.chains)},
        )


def published(aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """LPZero's published space: one operation a side, C(6, 2) x 20^2 x 4 = 24,000 a mean.

    Args:
        aggregations: Over blocks; the paper has the mean alone.
    """
    return Space("published", _inputs(), tuple((entry.name,) for entry in UNARY), aggregations)


def two_op(aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """Two operations a side: 15 x 400^2 x 4 = 9.6 million proxies an aggregation.

    LPZero's code (lpzero/structures/tree.py) searches this space; its paper counts
    `published`.  A chain's number is 20 x its inner operation + its outer one.

    Args:
        aggregations: Over blocks.
    """
    names = tuple(entry.name for entry in UNARY)
    return Space("two-op", _inputs(), tuple(product(names, names)), aggregations)


SPACES: Mapping[str, Callable[[tuple[str, ...]], Space]] = MappingProxyType(
    {"published": published, "two-op": two_op}
)


def space(name: str, aggregations: tuple[str, ...] = ("mean",)) -> Space:
    """The space of a name.

    Raises:
        LmscoutError: There is none of this name, or an aggregation is unknown.
    """
    if name not in SPACES:
        raise LmscoutError(
            f"unknown space {shown(name)}: expected one of {', '.join(SPACES)}"
            f"{did_you_mean(name, SPACES)}"
        )
    return SPACES[name](aggregations)


def _inputs() -> tuple[str, ...]:
    return tuple(entry.name for entry in INPUTS)
