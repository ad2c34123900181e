"""How the deep space is searched: all that a user can choose, checked."""

from __future__ import annotations

from dataclasses import dataclass

from lmscout.discovery.deep.candidates import DEFAULT_OBJECTIVE, OBJECTIVES
from lmscout.discovery.deep.engines import ENGINES, EXHAUSTIVE
from lmscout.errors import LmscoutError, check_whole
from lmscout.proxies import Grammar
from lmscout.proxies.primitives import SPEC_LEAVES


@dataclass(frozen=True)
class DeepSettings:
    """How the deep space is searched.

    Attributes:
        engine: one of `ENGINES`.
        evaluations: candidates evaluated on every search architecture, in all.
        searches: independent searches that share them; the proxy is the product of their best.
        objective: one of `OBJECTIVES`.
        spec_leaves: whether a proxy may read depth, width and size of the configuration.
        largest: words of a candidate, at most.
        rules: whether rules discard candidates.
        race: whether the race does.
        catalog: whether a search begins with the proxies of the literature.
        bend: whether numbers are fitted to the product, see `bends`.

    Raises:
        LmscoutError: a name is unknown, or a number is none or too small.
    """

    engine: str = "genetic"
    evaluations: int = 600
    searches: int = 4
    objective: str = DEFAULT_OBJECTIVE
    spec_leaves: bool = True
    largest: int = 16
    rules: bool = True
    race: bool = True
    catalog: bool = True
    bend: bool = True

    def __post_init__(self) -> None:
        for name, given, known in (
            ("engine", self.engine, ENGINES),
            ("objective", self.objective, tuple(OBJECTIVES)),
        ):
            if given not in known:
                raise LmscoutError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")
        for name in ("evaluations", "searches", "largest"):
            check_whole(name, getattr(self, name), 1)
        if self.engine == EXHAUSTIVE and self.searches > 1:
            raise LmscoutError(
                f"{self.searches} exhaustive searches would all find the same: ask for --searches 1"
            )

    @property
    def bends(self) -> bool:
        """Whether the product is bent to the configuration: where that may be read, and counts."""
        return self.bend and self.spec_leaves and self.objective != "beyond-size"

    @property
    def grammar(self) -> Grammar:
        """The trees that may grow."""
        return Grammar(SPEC_LEAVES if self.spec_leaves else (), largest=self.largest)
