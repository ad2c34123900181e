import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import SPACE
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lmscout.benchmarks.built import built_folder, replicates
from lmscout.benchmarks.space import NANO, PICO, Space, load_space, sample
from lmscout.errors import LmscoutError
from lmscout.models import Gpt2Spec, LlamaSpec, spec_from_dict

BUDGETED = Space(
    name="budgeted",
    depths=(2, 3, 4, 6),
    widths=(32, 40, 48, 64),
    head_sizes=(8, 16),
    expansions=(0.5, 1.0, 2.0, 4.0, 8.0),
    groups=(1, 2),
    missing=(0.0, 0.3),
    vocabulary=100,
    max_length=32,
    params=60_000,
    macs=66_000,
    tolerance=0.02,
)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 120), seed=st.integers(0, 1000))
def test_what_is_drawn_is_distinct_and_inside_the_space(n, seed):
    specs = sample(PICO, n, seed)
    assert len(set(specs)) == len(specs) == n
    assert specs == sample(PICO, n, seed)
    for spec in specs:
        assert 2 <= spec.depth <= 10
        assert spec.width in range(64, 321, 32)
        assert any(spec.heads)
        assert any(spec.inner)
        for heads, inner in zip(spec.heads, spec.inner, strict=True):
            assert heads == 0 or spec.width // heads in (16, 32, 64)
            assert inner % 32 == 0
            assert inner <= 4 * spec.width
        assert (spec.vocabulary, spec.max_length) == (4096, 128)
        assert spec_from_dict(spec.to_dict()) == spec


def test_pico_is_spread_over_families_sizes_and_missing_halves():
    specs = sample(PICO, 240, 0)
    assert Counter(map(type, specs)) == {Gpt2Spec: 120, LlamaSpec: 120}
    cells = Counter((spec.depth, spec.width) for spec in specs)
    assert len(cells) == 30
    assert set(cells.values()) == {8}  # enough of one size to compare within it
    for sizes in (
        Counter(spec.depth for spec in specs),
        Counter(spec.width for spec in specs),
    ):
        assert len(sizes) == 9
        assert max(sizes.values()) <= 32
    by_cell = Counter((spec.depth, spec.width, type(spec)) for spec in specs)
    assert set(by_cell.values()) == {4}
    lacking = [spec for spec in specs if 0 in spec.heads or 0 in spec.inner]
    assert 60 < len(lacking) < 180
    assert any(0 in spec.heads for spec in lacking)
    assert any(0 in spec.inner for spec in lacking)
    shared = [s for s in specs if isinstance(s, LlamaSpec) and s.key_value_heads != s.heads]
    assert len(shared) > 20


def test_few_are_spread_over_sizes_too():
    specs = sample(PICO, 10, 3)
    assert len({(spec.depth, spec.width) for spec in specs}) == 5
    assert len({(spec.depth, spec.width, type(spec)) for spec in specs}) == 10


def test_another_seed_draws_others():
    assert not set(sample(PICO, 20, 0)) & set(sample(PICO, 20, 1))


def test_a_space_that_is_too_small_says_so():
    small = replace(SPACE, depths=(1,), widths=(8,), missing=(0.0,))
    # By two widths of the MLP: GPT-2 has one head or two; LLaMA has one, or two, shared or not.
    families = Counter(map(type, sample(small, 8, 0)))
    assert families == {Gpt2Spec: 4, LlamaSpec: 4}
    with pytest.raises(LmscoutError, match="tiny: 30 different architectures could not"):
        sample(small, 30, 0)


def test_what_a_small_size_lacks_a_larger_one_has():
    specs = sample(SPACE, 100, 0)
    by_size = Counter((spec.depth, spec.width) for spec in specs)
    assert min(by_size.values()) == by_size[1, 8] < 20
    assert len(set(specs)) == 100


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    budgets=st.sampled_from([(60_000, 66_000), (40_000, 45_000), (60_000, None), (None, 66_000)]),
)
def test_what_is_drawn_meets_the_budgets(seed, budgets):
    params, macs = budgets
    space = replace(BUDGETED, params=params, macs=macs, tolerance=0.02)
    specs = sample(space, 6, seed)
    assert len(set(specs)) == 6
    for spec in specs:
        if params:
            assert spec.body_parameters() == pytest.approx(params, rel=0.02)
        if macs:
            assert spec.multiply_adds() == pytest.approx(macs, rel=0.02)
        for inner in filter(None, spec.inner):
            gated = 2 / 3 if spec.kind == "llama" else 1
            assert 0.5 * gated - 0.2 < inner / spec.width < 8 * gated + 0.2


@pytest.mark.parametrize("families", [("gpt2", "llama"), ("llama", "gpt2"), ("llama",)])
def test_a_family_that_cannot_meet_a_budget_is_left_out(families):
    space = replace(
        BUDGETED,
        families=families,
        depths=(1, 2, 3),
        widths=(16, 32, 48),
        expansions=(0.5, 1.0, 2.0, 4.0),
        params=7000,
        macs=None,
        tolerance=0.005,
    )
    assert len(sample(space, 6, 0)) == 6


def test_a_budget_that_nothing_meets_is_refused():
    with pytest.raises(
        LmscoutError, match=r"budgeted: no architecture .* params 1 and macs 66,000"
    ):
        sample(replace(BUDGETED, params=1), 4, 0)
    space = replace(BUDGETED, params=1, macs=None)
    with pytest.raises(
        LmscoutError, match=r"params 1 \(the nearest of 200 .* has params"
    ) as caught:
        sample(space, 4, 0)
    nearest = int(re.search(r"has params ([\d,]+)", str(caught.value))[1].replace(",", ""))
    free = sample(replace(space, params=None), 30, 0)
    assert nearest <= np.median([one.body_parameters() for one in free])


def test_iso_holds_equal_sizes_and_all_else_differs():
    specs = sample(load_space("iso"), 40, 1)
    for costs in ([one.body_parameters() for one in specs], [one.multiply_adds() for one in specs]):
        assert max(costs) / min(costs) < 1.011
    assert min(one.depth for one in specs) < 5
    assert max(one.depth for one in specs) > 18
    assert {one.kind for one in specs} == {"gpt2", "llama"}
    assert len({one.width for one in specs}) > 5
    assert len(set(specs)) == 40
    assert sample(load_space("iso"), 40, 1) == specs


def test_iso_is_drawn_again_as_it_was_built():
    shipped = [one.spec for one in replicates(built_folder("iso"))]
    assert list(sample(load_space("iso"), 200, 0)) == shipped


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_multiply_adds_are_those_of_the_blocks_products(kind):
    """Against the products that PyTorch counts, with attention over all positions."""
    spec = next(one for one in sample(BUDGETED, 12, 3) if one.kind == kind)
    model, tokens = spec.build(0), torch.zeros(1, spec.max_length, dtype=torch.int64)
    hidden = model.embed(tokens)
    with FlopCounterMode(display=False) as counter:
        model.encode(hidden)
    attentions = sum(map(bool, spec.heads))
    length, width = spec.max_length, spec.width
    counted = counter.get_total_flops() / 2 / length
    assert counted == spec.multiply_adds() + attentions * width * (2 * length - (length + 1))
    assert spec.matrices() == sum(
        layer.weight.numel() for layer in model.blocks.modules() if isinstance(layer, nn.Linear)
    )


def test_no_architectures_cannot_be_drawn():
    with pytest.raises(LmscoutError, match="0 architectures cannot be drawn"):
        sample(SPACE, 0, 0)


def test_spaces_have_names():
    assert load_space("pico") is PICO
    assert load_space("nano") is NANO
    with pytest.raises(LmscoutError, match="unknown space 'micro'; there are pico, iso, nano"):
        load_space("micro")
