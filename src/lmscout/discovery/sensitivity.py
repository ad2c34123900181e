"""What a proxy's order of architectures owes to the data, to the weights and to each input.

Each is one change, and two figures: how much of the proxy's order is left, and how well what is
left goes with quality.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmscout.discovery.assessment import number_json
from lmscout.proxies import LARGEST, Entry, Expression
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.ranking import spearman

Scores = npt.NDArray[np.float64]


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
