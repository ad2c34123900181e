"""Conformance kit for engines that search the deep space.

Example:
    >>> def test_my_engine():
    ...     check_engine(MyEngine)
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
    """Check that an engine can be used in a run, and that such a run can be continued.

    It proposes the requested number of trees, all of its grammar; its first ones include the given
    trees; the same seed and the same fitness give the same trees, and another seed others; and it
    proposes new trees after all were discarded.

    Args:
        make: makes an engine from a grammar, a seed, and first trees.
        chance: whether its proposals depend on the seed.

    Raises:
        AssertionError: it does not conform; the message says how.
    """
    first = _run(make(_GRAMMAR, 0, _SEEDS), _by_size)
    proposed = [node for batch in first for node in batch]
    assert all(len(batch) == _COUNT for batch in first), "another number of trees than requested"
    outside = [node for node in proposed if not _GRAMMAR.holds(node)]
    assert not outside, f"it proposed a tree outside its grammar: {outside[0]}"
    assert set(_SEEDS) <= set(first[0]), "its first proposals lack a given tree"
    assert first == _run(make(_GRAMMAR, 0, _SEEDS), _by_size), "one seed gave two sequences"
    another = _run(make(_GRAMMAR, 1, _SEEDS), _by_size)
    if chance:
        assert first != another, "two seeds gave one sequence"
    else:
        assert first == another, "its proposals depend on the seed, despite chance=False"
    discarded = _run(make(_GRAMMAR, 0, ()), lambda _: None)
    assert len({node for batch in discarded for node in batch}) > _COUNT, (
        "it repeats its proposals after all were discarded"
    )


def _run(engine: Engine, fitness: Callable[[Expression], float | None]) -> list[list[Expression]]:
    """The proposals of every round, each of which gets its fitness."""
    batches = []
    for _ in range(_ROUNDS):
        batches.append(engine.ask(_COUNT))
        values = [(node, fitness(node)) for node in batches[-1]]
        engine.tell([Candidate(*one, "" if one[1] is not None else "discarded") for one in values])
    return batches


def _by_size(node: Expression) -> float | None:
    """A fitness that follows from the tree, and is missing for some."""
    return None if node.size % 5 == 0 else 1.0 / node.size
