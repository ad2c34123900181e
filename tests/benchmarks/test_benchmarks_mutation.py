from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import SPACE

from lmscout.benchmarks.limits import form_of, mutate
from lmscout.benchmarks.space import LLAMA, NANO, PICO, sample
from lmscout.models import Gpt2Spec, LlamaSpec

SPACES = {"tiny": SPACE, "nano": NANO, "pico": PICO, "whole": replace(SPACE, missing=(0.0,))}


def in_space(space, spec):
    """What `Space` says of an architecture, said once more."""
    assert {Gpt2Spec: "gpt2", LlamaSpec: "llama"}[type(spec)] in space.families
    assert spec.depth in space.depths
    assert spec.width in space.widths
    assert (spec.vocabulary, spec.max_length) == (space.vocabulary, space.max_length)
    assert any(spec.heads)
    assert any(spec.inner)
    sizes = {spec.width // heads for heads in spec.heads if heads}
    assert sizes <= set(space.head_sizes)
    assert len(sizes) <= 2
    gated = 2 / 3 if isinstance(spec, LlamaSpec) else 1
    multiple = min(32, spec.width // 2)
    possible = {
        max(multiple, round(spec.width * expansion * gated / multiple) * multiple)
        for expansion in space.expansions
    }
    assert set(spec.inner) - {0} <= possible
    assert len(set(spec.inner) - {0}) <= 2
    if not any(space.missing):
        assert all(spec.heads)
        assert all(spec.inner)
    if isinstance(spec, LlamaSpec):
        shares = [
            heads // few for heads, few in zip(spec.heads, spec.key_value_heads, strict=True) if few
        ]
        assert max(shares, default=1) <= max(space.groups)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 10_000))
def test_a_walk_of_mutations_stays_in_the_space_and_changes_every_time(name, seed):
    space, rng = SPACES[name], np.random.default_rng(seed)
    (spec,) = sample(space, 1, seed)
    for _ in range(30):
        changed = mutate(space, spec, rng)
        assert changed != spec
        in_space(space, changed)
        spec = changed


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_what_comes_out_builds_and_has_the_parameters_that_it_counts(seed):
    rng = np.random.default_rng(seed)
    (spec,) = sample(SPACE, 1, seed)
    for _ in range(5):
        spec = mutate(SPACE, spec, rng)
        model = spec.build(0)
        assert sum(one.numel() for one in model.parameters()) == spec.parameters()
        assert torch.isfinite(model.loss(torch.arange(32).reshape(2, 16)))


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 10_000))
def test_every_draw_has_a_form_and_the_form_gives_it_back(name, seed):
    space = SPACES[name]
    for spec in sample(space, 8, seed):
        form = form_of(space, spec)
        assert form is not None
        assert form.spec(space) == spec


def test_mutations_reach_every_depth_width_and_family_from_one_architecture():
    rng = np.random.default_rng(0)
    (spec,) = sample(PICO, 1, 0)
    seen = Counter()
    for _ in range(3000):
        spec = mutate(PICO, spec, rng)
        lacking = 0 in spec.heads or 0 in spec.inner
        seen.update([("depth", spec.depth), ("width", spec.width), type(spec), lacking])
    assert {depth for name, depth in filter(_pair, seen) if name == "depth"} == set(PICO.depths)
    assert {width for name, width in filter(_pair, seen) if name == "width"} == set(PICO.widths)
    assert {Gpt2Spec, LlamaSpec, True, False} <= set(seen)


def _pair(one):
    return isinstance(one, tuple)


def test_the_same_chance_gives_the_same_mutations():
    (spec,) = sample(PICO, 1, 0)
    walks = []
    for _ in range(2):
        rng, walk = np.random.default_rng(7), [spec]
        for _ in range(20):
            walk.append(mutate(PICO, walk[-1], rng))
        walks.append(walk)
    assert walks[0] == walks[1]


def test_what_the_space_does_not_hold_is_not_mutated():
    (spec,) = sample(PICO, 1, 0)
    (wider,) = sample(replace(PICO, widths=(352,)), 1, 0)
    assert form_of(PICO, replace(spec, vocabulary=100)) is None
    assert form_of(PICO, wider) is None
    with pytest.raises(ValueError, match="pico does not hold"):
        mutate(PICO, wider, np.random.default_rng(0))


def test_in_a_space_of_one_there_is_nowhere_to_go():
    one = replace(
        SPACE,
        **{"families": (LLAMA,), "depths": (1,), "widths": (8,), "head_sizes": (4,)},
        **{"expansions": (1.0,), "groups": (1,), "missing": (0.0,)},
    )
    (spec,) = sample(one, 1, 0)
    assert mutate(one, spec, np.random.default_rng(0)) == spec
