from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import SPACE

from lmscout.benchmarks.limits import (
    Form,
    allowed,
    form_of,
    limited,
    limits_of,
    multiply_adds,
    parameters,
    smallest_of,
)
from lmscout.benchmarks.space import NANO, PICO
from lmscout.errors import LmscoutError
from lmscout.models import Gpt2Spec


def every_cost(space, family, depth, width, cost):
    """Costs of all architectures of a family, a depth and a width, by trying all forms."""
    halves = list(product((0, *space.head_sizes), (0.0, *space.expansions)))
    for group in space.groups:
        for blocks in product(halves, repeat=depth):
            sizes, expansions = zip(*blocks, strict=True)
            form = Form(family, width, group, sizes, expansions)
            if allowed(space, form):
                yield cost(form.spec(space))


@pytest.mark.parametrize("space", [SPACE, replace(SPACE, missing=(0.0,)), NANO])
@pytest.mark.parametrize("cost", [parameters, multiply_adds])
def test_the_smallest_is_the_smallest_of_all(space, cost):
    for family, depth, width in product(space.families, space.depths, space.widths):
        if depth < 3:
            smallest = smallest_of(space, family, depth, width, cost)
            assert form_of(space, smallest) is not None
            assert cost(smallest) == min(every_cost(space, family, depth, width, cost))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_draws_and_mutations_keep_the_limit(seed, share):
    limit = int(350_000 + share**3 * 10_000_000)
    part, rng = limited(PICO, limits_of(limit)), np.random.default_rng(seed)
    spec = part.draw(rng)
    for _ in range(15):
        assert spec.parameters() <= limit
        assert form_of(PICO, spec) is not None
        spec = part.mutate(spec, rng)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), params=st.none() | st.just(2_000_000))
def test_draws_and_mutations_keep_a_limit_of_multiply_adds(seed, share, params):
    macs = int(100_000 + share**3 * 10_000_000)
    part, rng = limited(PICO, limits_of(params, macs)), np.random.default_rng(seed)
    spec = part.draw(rng)
    for _ in range(15):
        assert spec.multiply_adds() <= macs
        assert params is None or spec.parameters() <= params
        spec = part.mutate(spec, rng)


def test_a_deep_model_takes_longer_and_each_is_measured_once():
    shallow, deep = (
        Gpt2Spec(
            width=32,
            heads=(2,) * depth,
            inner=(64,) * depth,
            embedding_width=32,
            tied=(True,),
            vocabulary=50,
            max_length=16,
        )
        for depth in (1, 60)
    )
    (limit,) = limits_of(max_latency=1.0)
    first = limit.cost(shallow)
    assert 0 < first < limit.cost(deep)
    assert limit.cost(shallow) == first


def test_a_limit_that_only_one_keeps_gives_that_one():
    least = min(
        (smallest_of(NANO, *cell) for cell in product(NANO.families, NANO.depths, NANO.widths)),
        key=lambda spec: spec.parameters(),
    )
    part, rng = limited(NANO, limits_of(least.parameters())), np.random.default_rng(0)
    assert part.draw(rng).parameters() == least.parameters()
    assert part.mutate(part.draw(rng), rng).parameters() == least.parameters()


def test_a_limit_that_none_keeps_names_the_smallest():
    with pytest.raises(
        LmscoutError, match="space nano has 1,000 parameters or fewer: the smallest"
    ):
        limited(NANO, limits_of(1000))
    least = min(
        smallest_of(NANO, *cell).parameters()
        for cell in product(NANO.families, NANO.depths, NANO.widths)
    )
    with pytest.raises(LmscoutError, match=f"the smallest has {least:,}"):
        limited(NANO, limits_of(least - 1))
    assert limited(NANO, limits_of(least))


def test_mutation_moves_size_from_one_place_to_another_at_the_limit():
    """From an architecture that fills the limit, some neighbours fill it as well."""
    rng = np.random.default_rng(0)
    start = limited(PICO, limits_of(3_000_000)).draw(rng)
    part = limited(PICO, limits_of(start.parameters()))
    sizes = [part.mutate(start, rng).parameters() for _ in range(200)]
    assert max(sizes) <= start.parameters()
    assert sum(size > 0.97 * start.parameters() for size in sizes) > 10
