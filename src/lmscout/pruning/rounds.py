"""How steps of proposing are numbered in a ledger, whose pairs have rounds.

Without a tail a step is a round, and knows all rounds before it.  With one it is two: its body, and
its tail, whose pairs the next step does not know.  The first two steps then know nothing, and cover
the space as the first does without a tail, which is twice as large: from what is known when the
second is proposed, little would be learnt.

Every pair of a round is measured before a step that knows the round is proposed.  So the pairs
that a ledger holds tell which steps a run that was stopped had opened, and what these followed
from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lmscout.errors import LmscoutError
from lmscout.pruning.ledger import Ledger

_NOTE = "tail"
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Rounds:
    """Rounds of a ledger.

    Attributes:
        tail: share of a step, from 0 to below 1.
    """

    tail: float

    @classmethod
    def of(cls, ledger: Ledger, tail: float) -> Rounds:
        """As a ledger was begun, so that it goes on to the same end; else as is asked.

        Raises:
            LmscoutError: the storage cannot be written, or what is noted there is no share.
        """
        noted = ledger.note(_NOTE)
        if noted is None and tail and not len(ledger):
            noted = ledger.note(_NOTE, repr(tail))
        try:
            share = float(noted or 0.0)
        except ValueError:
            share = math.nan
        if not 0 <= share < 1:
            raise LmscoutError(
                f"study at {ledger.url}: attribute lmscout.{_NOTE} was edited or is damaged (got "
                f"{noted!r}, expected a share from 0 to below 1); restore a copy, or use another "
                "folder or storage"
            )
        return cls(share)

    def first(self, step: int) -> int:
        """The round in which a step begins."""
        return 2 * step if self.tail else step

    def known(self, step: int) -> int:
        """The first round of which a step knows nothing."""
        if not self.tail:
            return step
        return 2 * step - 1 if step > 1 else 0

    def count(self, step: int, size: int) -> int:
        """How many plans a step proposes, where later ones propose `size`."""
        return 2 * size if step == 0 and not self.tail else size

    def open(self, latest: int) -> int:
        """The first round that may lack pairs in a ledger.

        Those that a step was proposed from are complete, whatever they were proposed for.

        Args:
            latest: the last round of which the ledger holds a pair; -1 where it holds none.
        """
        return self.known(max(0, latest // 2 if self.tail else latest))

    def dealt(self, step: int, items: Sequence[_Item]) -> list[tuple[int, list[_Item]]]:
        """What a step measures, round by round."""
        items = list(items)
        if not self.tail:
            return [(step, items)]
        cut = max(1, len(items) - round(self.tail * len(items)))
        return [(2 * step, items[:cut]), (2 * step + 1, items[cut:])]
