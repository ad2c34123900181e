"""Which parts of a deep proxy do not matter: without them architectures are ordered the same.

A cut takes one part out of a tree: an operand of a word of two, where the other operand takes
the word's place, or a word of one operand, where that takes its place if it is of the same type.
What is cut off is dead where the shorter tree orders the architectures as the whole one does, or
exactly the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from lmscout.discovery.assessment import number_json
from lmscout.proxies import Expression, format_expression, parse, replaced, walk
from lmscout.ranking import spearman
from lmscout.results import SavedAs

Scores = npt.NDArray[np.float64]
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
