"""The conformance kit for engines that search the deep space.

from lmscout.testing import check_engine

def test_my_engine():
    check_engine(MyEngine)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmscout.discovery.engines import Candidate, Engine
from lmscout.proxies import Expression, Grammar, parse

MakeEngine = Callable[[Grammar, int, Sequence[Expression]], Engine]

_GRAMMAR = Grammar(spec_leaves=(), largest=10)
_SEEDS = (parse("sum(total(frobenius(grad)))"), parse("mean(average(act))"))
_ROUNDS, _COUNT = 12, 40


def check_engine(make: MakeEngine, *, chance: bool = True) -> None:
    """Check that an engine can be used in a run, and that a run of it can be continued.

    Checked are: that it gives as many trees as asked for, all of its grammar; that it begins
    with the trees that it was given; that the same seed and the same answers give the same
    trees, and another seed others; and that it goes on where all that it asked was discarded.

    Args:
        make: makes one from a grammar, a seed, and trees to begin with.
        chance: whether what it asks depends on the seed.

    Raises:
        AssertionError: it does not, with what is wrong.
    """
    first = _trajectory(make(_GRAMMAR, 0, _SEEDS), _by_size)
    asked = [node for batch in first for node in batch]
    assert all(len(batch) == _COUNT for batch in first), "it gave fewer or more than asked"
    outside = [node for node in asked if not _GRAMMAR.holds(node)]
    assert not outside, f"it gave a tree that is not of its grammar: {outside[0]}"
    assert set(_SEEDS) <= set(first[0]), "it did not begin with the trees that it was given"
    assert first == _trajectory(make(_GRAMMAR, 0, _SEEDS), _by_size), "one seed gave two courses"
    another = _trajectory(make(_GRAMMAR, 1, _SEEDS), _by_size)
    if chance:
        assert first != another, "two seeds gave one course"
    else:
        assert first == another, "it draws by chance, and was said not to"
    nothing = _trajectory(make(_GRAMMAR, 0, ()), lambda _: None)
    assert len({node for batch in nothing for node in batch}) > _COUNT, (
        "it asks the same again where all was discarded"
    )


def _trajectory(
    engine: Engine, fitness: Callable[[Expression], float | None]
) -> list[list[Expression]]:
    """What an engine asks, told a fitness each time."""
    batches = []
    for _ in range(_ROUNDS):
        batches.append(engine.ask(_COUNT))
        engine.tell([_evaluated(node, fitness(node)) for node in batches[-1]])
    return batches


def _evaluated(node: Expression, fitness: float | None) -> Candidate:
    return Candidate(node, fitness, "" if fitness is not None else "discarded")


def _by_size(node: Expression) -> float | None:
    """Some fitness that follows from the tree; now and then none."""
    return None if node.size % 5 == 0 else 1.0 / node.size
