"""Uniform plans against lists of all that there are."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_language_models import CONFIGS, random_model
from transformers import GPT2Config, LlamaConfig

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import keep_budget, latency_budget, linear_budget
from lmscout.pruning.cutting import cut, is_uniform
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import family_of
from lmscout.pruning.plan import Plan, Shape, as_plans, as_rows, dense_row
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.sampler import order_for_prefix_sharing, propose
from lmscout.pruning.search import search
from lmscout.pruning.space import PlanSpace, UniformChoices
from lmscout.pruning.study import Pair


def llama(depth):
    """Twelve heads, of which a plain llama may have 1, 2, 3, 4, 6, 8, 12: divisors of 96."""
    return LlamaConfig(
        hidden_size=96,
        intermediate_size=60,
        num_hidden_layers=depth,
        num_attention_heads=12,
        num_key_value_heads=12,
        head_dim=8,
    )


def shape(depth):
    return Shape((12,) * depth, (60,) * depth, (4 * 96 * 8,) * depth, (3 * 96,) * depth)


def uniform_space(of, config):
    return PlanSpace(of, uniform=UniformChoices.of(of, config))


SIX, SMALL = shape(6), uniform_space(shape(6), llama(6))
WHOLE = Ranges.above(SIX)


def target(keep, of=SIX):
    return Target(keep_budget(of, keep), Ranges.above(of))


def all_uniform(of, config, budget):
    """Every uniform plan that one channel more a block would put above the budget."""
    found = set()
    for gone in range(of.depth // 2 + 1):
        subsets = list(combinations(range(of.depth), gone))
        for groups in range(1, of.groups[0] + 1):
            plans = [
                uniform_plan(of, subsets[-1], groups, channels)
                for channels in range(of.channels[0] + 1)
            ]
            costs = budget.cost(as_rows(plans))
            fits = int((costs <= budget.limit).sum()) - 1
            if fits < 1 or not is_uniform(plans[fits], config):
                continue
            tolerance = max(budget.slack, costs[fits] - costs[fits - 1])
            if fits < of.channels[0] or costs[fits] >= budget.limit - tolerance:
                found |= {uniform_plan(of, dropped, groups, fits) for dropped in subsets}
    return found


def uniform_plan(of, dropped, groups, channels):
    kept = [block not in dropped for block in range(of.depth)]
    return Plan(tuple(groups * one for one in kept), tuple(channels * one for one in kept))


class Additive:
    """A predictor that knows: every block costs by itself, the more the more is cut."""

    def __init__(self, of, seed=0):
        rng = np.random.default_rng(seed)
        self.units = dense_row(of)
        self.weight = rng.uniform(0.05, 1, 2 * of.depth)
        self.weight[[0, of.depth - 1, of.depth, -1]] = 9.0
        self.asked = 0

    def cautious(self, rows):
        self.asked += len(rows)
        return (self.weight * (1 - rows / self.units) ** 2).sum(axis=1)

    def spread(self, rows):
        return np.abs(np.sin(rows @ np.arange(1, rows.shape[1] + 1)))

    def error_near(self, loss_increase):
        return 0.1 * loss_increase

    def pairs(self, plans, round_=0, **changes):
        values = self.cautious(as_rows(plans))
        return [
            Pair(plan, float(value), 6000, round=round_, **changes)
            for plan, value in zip(plans, values, strict=True)
        ]


TRUTH = Additive(SIX)


def plans_of(proposals):
    return [one.plan for one in proposals]


@settings(deadline=None, max_examples=25)
@given(keep=st.floats(0.05, 1.0))
def test_every_plan_that_there_is_and_no_other(keep):
    known = all_uniform(SIX, llama(6), keep_budget(SIX, keep))
    try:
        found = propose(SMALL, [target(keep)], count=5000, seed=0, round_=0)
    except LmscoutError:
        assert not known
        return
    assert set(plans_of(found)) == known
    assert len(found) == len(known)


@pytest.mark.parametrize("name", CONFIGS)
def test_proposals_can_be_cut_into_plain_models(name):
    model = random_model(name)
    family = family_of(model.config)
    of = shape_of([family.parts(block) for block in family.blocks(model)])
    space = uniform_space(of, model.config)
    found = plans_of(propose(space, [target(0.5, of)], count=6, seed=1, round_=0))
    assert set(found) <= all_uniform(of, model.config, keep_budget(of, 0.5))
    assert any(plan.dropped for plan in found)
    assert all(is_uniform(plan, model.config) for plan in found)
    for plan in found[:: max(1, len(found) - 1)]:
        smaller = cut(model, plan, shape="uniform")
        assert type(smaller) is type(model)
        with torch.no_grad():
            assert smaller(torch.arange(5)[None]).logits.isfinite().all()


def test_gpt2_keeps_all_heads_and_blocks_where_attention_counts_them():
    of = Shape((4,) * 6, (128,) * 6, (4 * 32 * 8,) * 6, (2 * 32,) * 6)
    config = GPT2Config(n_embd=32, n_layer=6, n_head=4)
    sizes = uniform_space(of, config).uniform.sizes(keep_budget(of, 0.6))
    assert {one.groups for one in sizes} == {4}
    assert {one.dropped for one in sizes} == {0, 1, 2}
    config.scale_attn_by_inverse_layer_idx = True
    assert {
        one.dropped for one in uniform_space(of, config).uniform.sizes(keep_budget(of, 0.6))
    } == {0}


def test_a_model_whose_blocks_differ_is_refused():
    with pytest.raises(LmscoutError, match="blocks of this model have different sizes"):
        uniform_space(Shape((2, 2), (8, 7), (10, 10), (3, 3)), llama(2))


@settings(deadline=None, max_examples=40)
@given(limit=st.floats(0.05, 1.0), stepped=st.integers(1, 25))
def test_a_budget_that_need_not_be_used_up_leaves_no_room_for_more(limit, stepped):
    # Kernels step in tiles, so channels may be free.
    mlp = np.ceil(np.arange(61) / stepped) * stepped * 1e-4
    attention = np.arange(13) * 8e-4
    dense = 6 * (mlp[-1] + attention[-1])
    budget = latency_budget(SIX, limit * dense * (1 + 1e-9), attention=[attention], mlp=[mlp])

    def seconds(dropped, groups, channels):
        return (6 - dropped) * (attention[groups] + mlp[channels])

    if seconds(3, 1, 1) > budget.limit:
        with pytest.raises(LmscoutError, match=r"no uniform plan .* ms \(0\.\d+ of the"):
            SMALL.require(budget)
        return
    sizes = SMALL.uniform.sizes(budget)
    allowed = (1, 2, 3, 4, 6, 8, 12)
    for one in sizes:
        assert seconds(one.dropped, one.groups, one.channels) <= budget.limit
        if one.channels < 60:
            assert seconds(one.dropped, one.groups, one.channels + 1) > budget.limit
        else:
            if one.groups < 12:
                more = allowed[allowed.index(one.groups) + 1]
                assert seconds(one.dropped, more, 60) > budget.limit
            if one.dropped:
                assert seconds(one.dropped - 1, one.groups, 60) > budget.limit
    # Whatever meets the budget is part of something listed.
    for dropped in range(4):
        for groups in allowed:
            for channels in (1, 30, 60):
                if seconds(dropped, groups, channels) <= budget.limit:
                    assert any(
                        one.dropped <= dropped and one.groups >= groups and one.channels >= channels
                        for one in sizes
                    )


@settings(deadline=None, max_examples=60)
@given(
    depth=st.integers(1, 5),
    channels=st.integers(1, 9),
    keep=st.floats(0.001, 1.0),
    memory=st.booleans(),
)
@example(depth=3, channels=1, keep=0.75, memory=False)
def test_a_budget_that_no_uniform_plan_meets_names_the_nearest_that_one_meets(
    depth, channels, keep, memory
):
    of = Shape((4,) * depth, (channels,) * depth, (800,) * depth, (64,) * depth)
    space = uniform_space(of, GPT2Config(n_embd=32, n_layer=depth, n_head=4))

    def budget(share):
        if not memory:
            return keep_budget(of, share)
        whole = 2 * of.parameters + 500
        return linear_budget(
            "memory", of, share * whole * (1 + 1e-9), parameter=2, fixed=500, unit=("MB", 1e6)
        )

    try:
        space.require(budget(keep))
    except LmscoutError as error:
        nearest = (
            float(re.search(r"can be met is .*?([\d.]+) (\(kept|of the dense)", str(error))[1])
            if not memory
            else float(re.search(r"can be met is .*\(([\d.]+) of", str(error))[1])
        )
        space.require(budget(nearest))
        assert nearest != keep


def test_a_channel_in_every_block_may_be_more_than_the_slack():
    of = Shape((2,) * 8, (5,) * 8, (512,) * 8, (96,) * 8)  # a channel a block: 6 % of all
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=5,
        num_hidden_layers=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
    )
    space = uniform_space(of, config)
    budget = keep_budget(of, 0.83)
    found = plans_of(propose(space, [Target(budget, WHOLE)], count=500, seed=0, round_=0))
    assert set(found) == all_uniform(of, config, budget)
    assert space.meets(as_rows(found), budget).all()
    assert budget.cost(as_rows(found)).max() < 0.83 - budget.slack
    pairs = Additive(of).pairs(found)
    best = space.best_pairs(pairs, budget, 3)
    assert [pair.value for pair in best] == sorted(pair.value for pair in pairs)[:3]


def test_only_uniform_plans_of_the_size_meet_a_budget():
    budget = keep_budget(SIX, 0.7)
    found = as_rows(plans_of(propose(SMALL, [target(0.7)], count=9, seed=0, round_=0)))
    less, uneven, no_mlp = found.copy(), found.copy(), found.copy()
    less[:, 6:] -= less[:, 6:] > 0
    kept = (found[:, 6:] > 0).argmax(axis=1)
    uneven[np.arange(len(found)), 6 + kept] -= 1
    no_mlp[np.arange(len(found)), 6 + kept] = 0
    assert SMALL.meets(found, budget).all()
    for changed in (less, uneven, no_mlp, np.zeros((1, 12), int), dense_row(SIX)[None]):
        assert not SMALL.meets(changed, budget).any()


def test_the_first_round_covers_sizes_and_seldom_drops_the_ends():
    deep = shape(24)
    space = uniform_space(deep, llama(24))
    sizes = space.uniform.sizes(keep_budget(deep, 0.7))
    found = propose(space, [target(0.7, deep)], count=200, seed=0, round_=0)
    plans = plans_of(found)
    assert len(set(plans)) == 200
    assert plans == order_for_prefix_sharing(plans)
    seen = Counter((len(plan.dropped), max(plan.attention)) for plan in plans)
    assert set(seen) == {(one.dropped, one.groups) for one in sizes}
    several = [seen[one.dropped, one.groups] for one in sizes if one.dropped]
    assert max(several) - min(several) <= 1
    for one in found:
        assert (one.origin == "uniform") == (not one.plan.dropped)
        gaps = np.diff(one.plan.dropped)
        if one.origin != "uniform" and len(gaps):
            assert (one.origin == "tied") == (gaps == 1).all()
    origins = Counter(one.origin for one in found if len(one.plan.dropped) > 1)
    assert abs(origins["tied"] - origins["free"]) <= 6  # of 184: sizes start with either in turn
    dropping = np.array([[block in plan.dropped for block in range(24)] for plan in plans])
    assert dropping.sum(axis=0)[1:-1].min() > 3 * dropping[:, [0, -1]].mean(axis=1).sum()


def test_rounds_go_on_until_nothing_is_left():
    known = all_uniform(SIX, llama(6), keep_budget(SIX, 0.7))
    pairs = []
    for number in range(100):
        found = plans_of(
            propose(
                SMALL, [target(0.7)], count=25, seed=3, round_=number, pairs=pairs, predictor=TRUTH
            )
        )
        assert not set(found) & {pair.plan for pair in pairs}
        assert len(set(found)) == len(found)
        pairs += TRUTH.pairs(found, number)
        if len(found) < 25:
            break
    assert {pair.plan for pair in pairs} == known


def test_later_rounds_measure_the_best_the_near_and_the_unsure():
    first = TRUTH.pairs(plans_of(propose(SMALL, [target(0.5)], count=20, seed=0, round_=0)))
    found = propose(SMALL, [target(0.5)], count=20, seed=0, round_=1, pairs=first, predictor=TRUTH)
    assert Counter(one.origin for one in found) == {"found": 7, "near": 10, "unsure": 3}
    measured = {pair.plan for pair in first}
    every = as_plans(
        as_rows(
            sorted(
                all_uniform(SIX, llama(6), keep_budget(SIX, 0.5)) - measured,
                key=lambda plan: TRUTH.cautious(as_rows([plan]))[0],
            )
        )
    )
    assert {one.plan for one in found if one.origin == "found"} == set(every[:7])
    parents = SMALL.best_pairs(first, keep_budget(SIX, 0.5), 5)

    def step(one, other):
        """Blocks dropped in one alone, and a change of groups."""
        return len(set(one.dropped) ^ set(other.dropped))

    for one in found:
        if one.origin == "near":
            assert min(step(one.plan, pair.plan) for pair in parents) <= 2
    rows = as_rows(every)
    promising = TRUTH.cautious(rows) - 2 * TRUTH.spread(rows)
    unsure = as_rows([one.plan for one in found if one.origin == "unsure"])
    worst = (TRUTH.cautious(unsure) - 2 * TRUTH.spread(unsure)).max()
    assert (promising < worst).sum() <= 20  # only what was taken before is more hopeful


def test_proposals_follow_from_seed_and_earlier_rounds_alone():
    first = propose(SMALL, [target(0.5)], count=20, seed=0, round_=0)
    assert propose(SMALL, [target(0.5)], count=20, seed=0, round_=0) == first
    assert propose(SMALL, [target(0.5)], count=20, seed=1, round_=0) != first
    pairs = TRUTH.pairs(plans_of(first))
    asked = {"count": 12, "seed": 0, "round_": 1, "predictor": TRUTH}
    found = propose(SMALL, [target(0.5)], pairs=pairs, **asked)
    first_half = TRUTH.pairs(plans_of(found[:6]), 1)
    assert propose(SMALL, [target(0.5)], pairs=[*first_half, *pairs[::-1]], **asked) == found


def test_several_sizes_are_served_alike():
    targets = [target(keep) for keep in (0.4, 0.5, 0.6)]
    pairs = []
    for number in range(2):
        found = propose(
            SMALL, targets, count=30, seed=0, round_=number, pairs=pairs, predictor=TRUTH
        )
        rows = as_rows(plans_of(found))
        assert [SMALL.meets(rows, one.budget).sum() for one in targets] == [10, 10, 10]
        pairs += TRUTH.pairs(plans_of(found))


def test_search_lists_all_where_it_can():
    every = all_uniform(SIX, llama(6), keep_budget(SIX, 0.5))
    loss_increases = sorted(TRUTH.cautious(as_rows([plan]))[0] for plan in every)
    found = search(SMALL, TRUTH.cautious, target(0.5), seed=0, count=12)
    assert [one.loss_increase for one in found] == pytest.approx(loss_increases[:12])
    assert set(plans_of(found)) <= every
    assert len(set(plans_of(found))) == 12
    assert len(search(SMALL, TRUTH.cautious, target(0.5), seed=0, count=10**6)) == len(every)


@pytest.mark.parametrize("seed", range(2))
def test_search_finds_the_best_where_it_cannot_list_all(seed):
    deep = shape(40)
    truth = Additive(deep, seed)
    space = uniform_space(deep, llama(40))
    sizes = space.uniform.sizes(keep_budget(deep, 0.55))
    assert max(one.dropped for one in sizes) > 15  # of 40: more than 10^10 subsets
    best = np.inf
    for one in sizes:
        width = np.repeat([one.groups, one.channels], 40)
        kept = truth.weight * (1 - width / truth.units) ** 2
        extra = (truth.weight - kept).reshape(2, 40).sum(axis=0)  # of dropping a block
        best = min(best, kept.sum() + np.sort(extra)[: one.dropped].sum())
    truth.asked = 0
    found = search(space, truth.cautious, target(0.55, deep), seed=seed)
    assert found[0].loss_increase == pytest.approx(best)
    assert truth.asked < 200_000
    assert search(space, truth.cautious, target(0.55, deep), seed=seed) == found
    # And it never ends with less than it began with.
    initial = [found[0].plan]
    again = search(space, truth.cautious, target(0.55, deep), seed=9, initial=initial, count=1)
    assert again[0].loss_increase <= found[0].loss_increase


def test_what_was_best_at_one_size_is_begun_with_at_another():
    deep = shape(40)
    truth = Additive(deep)
    space = uniform_space(deep, llama(40))
    best = search(space, truth.cautious, target(0.55, deep), seed=0, count=1)[0].plan
    seen = []

    def predict(rows):
        seen.append(rows)
        return truth.cautious(rows)

    search(space, predict, target(0.5, deep), seed=0, initial=[best, deep.dense])
    dropping = np.isin(np.arange(40), best.dropped)
    assert ((seen[0][:, :40] == 0) == dropping).all(axis=1).any()


def test_a_size_that_only_plans_of_any_shape_meet_is_refused():
    with pytest.raises(LmscoutError, match=r"^no uniform plan meets the budget of 0\.01 \(kept"):
        propose(SMALL, [target(0.5), target(0.01)], count=4, seed=0, round_=0)


def test_what_is_being_measured_is_not_proposed_again():
    asked = {"count": 10, "seed": 0, "round_": 1}
    pairs = TRUTH.pairs(plans_of(propose(SMALL, [target(0.5)], count=20, seed=0, round_=0)))
    asked |= {"pairs": pairs, "predictor": TRUTH}
    waiting = plans_of(propose(SMALL, [target(0.5)], **asked))
    again = plans_of(propose(SMALL, [target(0.5)], waiting=waiting, **asked))
    assert len(again) == 10
    assert not {*again} & {*waiting, *(pair.plan for pair in pairs)}
