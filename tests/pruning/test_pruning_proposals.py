"""Proposals, and the beginnings that plans share."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_quality import Synthetic

from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.narrowing import narrow
from lmscout.pruning.plan import Shape, as_plans, as_rows, dense_row
from lmscout.pruning.predictor import fit_predictor
from lmscout.pruning.ranges import Ranges, meets, uniform
from lmscout.pruning.sampler import (
    Target,
    families,
    order_for_prefix_sharing,
    propose,
    share_prefixes,
    shared_share,
)
from lmscout.pruning.search import search
from lmscout.pruning.study import Pair

MODEL = Synthetic(depth=6)
SHAPE = MODEL.shape
WHOLE = Ranges.above(SHAPE)
BUDGET = keep_budget(SHAPE, 0.8)
TARGET = Target(BUDGET, WHOLE)


def steps(plan):
    return [count for block in zip(plan.attention, plan.mlp, strict=True) for count in block]


def shared_plainly(plans):
    alike = 0
    for one, other in pairwise(plans):
        for first, second in zip(steps(one), steps(other), strict=True):
            if first != second:
                break
            alike += 1
    return alike / (len(plans) * len(steps(plans[0])))


def first_round(**changes):
    given_ = {"count": 60, "seed": 0, "round_": 0} | changes
    return propose(SHAPE, given_.pop("targets", [TARGET]), **given_)


@pytest.fixture(scope="module")
def pairs():
    return MODEL.pairs([one.plan for one in first_round()])


@pytest.fixture(scope="module")
def predictor(pairs):
    return fit_predictor(pairs, SHAPE, MODEL.mass, seed=0, repeats=1)


def test_the_first_round_covers_the_space():
    found = first_round()
    rows = as_rows([one.plan for one in found])
    assert len({one.plan for one in found}) == 60
    assert meets(rows, BUDGET).all()
    assert WHOLE.holds(rows).all()
    origins = Counter(one.origin for one in found)
    assert origins["uniform"] == origins["protected"] == 1
    assert origins["tied"] >= 25
    assert origins["free"] >= 25
    by_origin = {one.origin: one.plan for one in found}
    assert by_origin["uniform"] == uniform(SHAPE, WHOLE, BUDGET)
    assert by_origin["protected"] == uniform(SHAPE, WHOLE.protected(SHAPE), BUDGET)
    # Nearly every block is cut somewhere, and left whole somewhere.
    shares = rows / dense_row(SHAPE)
    assert (shares.min(axis=0) < 0.8).all()
    assert (shares.max(axis=0) > 0.95).all()
    whole = (rows[:, [0, 5, 6, 11]] == dense_row(SHAPE)[[0, 5, 6, 11]]).all(axis=1)
    assert 20 <= whole.sum() <= 40  # guarded ones


def test_tied_plans_tie_adjacent_blocks():
    tied = [one.plan for one in first_round(share=False) if one.origin == "tied"]
    free = [one.plan for one in first_round(share=False) if one.origin == "free"]

    def ties(plans):
        channels = np.array([plan.mlp for plan in plans])
        return (np.abs(np.diff(channels, axis=1)) <= 2).mean()

    assert ties(tied) > 0.35
    assert ties(free) < 0.25


def test_later_rounds_are_better_than_the_first(pairs, predictor):
    found = propose(
        SHAPE,
        [TARGET],
        count=20,
        seed=0,
        round_=1,
        pairs=pairs,
        predictor=predictor,
        generations=40,
    )
    plans = [one.plan for one in found]
    assert len(set(plans)) == 20
    assert not set(plans) & {pair.plan for pair in pairs}
    assert meets(as_rows(plans), BUDGET).all()
    assert Counter(one.origin for one in found) == {"found": 7, "near": 10, "unsure": 3}
    measured = MODEL.measure(as_rows(plans))
    assert np.median(measured) < np.quantile([pair.value for pair in pairs], 0.1)
    assert measured.min() < min(pair.value for pair in pairs)


def test_proposals_follow_from_earlier_rounds_alone(pairs, predictor):
    settings_ = {"count": 12, "seed": 5, "round_": 1, "predictor": predictor, "generations": 10}
    found = propose(SHAPE, [TARGET], pairs=pairs, **settings_)
    # The run was killed when it had measured half of the round.
    sublayer = MODEL.pairs([one.plan for one in found[:6]], round_=1)
    assert propose(SHAPE, [TARGET], pairs=[*pairs, *sublayer], **settings_) == found
    assert propose(SHAPE, [TARGET], pairs=pairs[::-1], **settings_) == found
    other = propose(SHAPE, [TARGET], pairs=pairs, **(settings_ | {"seed": 6}))
    assert other != found
    assert first_round() == first_round()
    assert first_round() != first_round(seed=1)


def test_several_sizes_are_served_alike(pairs, predictor):
    targets = [Target(keep_budget(SHAPE, keep), WHOLE) for keep in (0.6, 0.8, 0.9)]
    for found in (
        first_round(targets=targets),
        propose(
            SHAPE,
            targets,
            count=15,
            seed=0,
            round_=1,
            pairs=pairs,
            predictor=predictor,
            generations=5,
        ),
    ):
        rows = as_rows([one.plan for one in found])
        each = [meets(rows, target.budget).sum() for target in targets]
        assert each == [len(found) // 3] * 3


def test_plans_of_small_models_run_out():
    tiny = Synthetic(depth=2, groups=2, channels=3)
    target = Target(keep_budget(tiny.shape, 0.75), Ranges.above(tiny.shape))
    found = propose(tiny.shape, [target], count=50, seed=0, round_=0)
    assert 2 <= len(found) < 50
    assert len({one.plan for one in found}) == len(found)


def test_a_budget_that_no_plan_meets_is_refused():
    with pytest.raises(LmscoutError, match="nearest that can be met"):
        first_round(targets=[TARGET, Target(keep_budget(SHAPE, 0.05), WHOLE)])


def test_plans_that_begin_alike_are_neighbours():
    found = [one.plan for one in first_round()]
    assert found == order_for_prefix_sharing(found)
    apart = [one.plan for one in first_round(share=False)]
    assert shared_share(found) > 0.33
    assert shared_share(apart) < 0.2


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_no_order_shares_more(seed):
    rng = np.random.default_rng(seed)
    plans = as_plans(np.unique(rng.integers(0, 3, (6, 6)), axis=0))
    ordered = order_for_prefix_sharing(plans)
    assert sorted(ordered, key=steps) == ordered
    assert shared_share(ordered) == pytest.approx(shared_plainly(ordered))
    for _ in range(20):
        mixed = [plans[place] for place in rng.permutation(len(plans))]
        assert shared_plainly(mixed) <= shared_share(ordered) + 1e-12


def test_families_begin_with_the_same_half():
    wish = np.random.default_rng(0).uniform(0.2, 1, (10, 12)) * dense_row(SHAPE)
    rows = families(wish, WHOLE, BUDGET, size=4)
    assert meets(rows, BUDGET).all()
    for place in range(10):
        first = rows[place // 4 * 4]
        begun = np.concatenate([rows[place, :3], rows[place, 6:9]])
        assert (begun == np.concatenate([first[:3], first[6:9]])).all()
    assert len(np.unique(rows, axis=0)) == 10


def test_sharing_costs_no_more_than_it_may(predictor):
    plans = [one.plan for one in first_round(share=False)][:15]
    plans.sort(key=lambda plan: predictor.cautious(as_rows([plan]))[0])
    before = predictor.cautious(as_rows(plans))
    for tolerance in (0.0, 0.05):
        shared = share_prefixes(
            plans, predictor.cautious, SHAPE, WHOLE, BUDGET, tolerance=tolerance, taken=plans[:3]
        )
        assert len(set(shared)) == len(plans)
        assert (predictor.cautious(as_rows(shared)) <= before + tolerance + 1e-12).all()
        assert meets(as_rows(shared), BUDGET).all()
        assert shared_share(order_for_prefix_sharing(shared)) > shared_share(
            order_for_prefix_sharing(plans)
        )
    assert share_prefixes([], predictor.cautious, SHAPE, WHOLE, BUDGET, tolerance=0.0) == []


def test_rounds_come_near_to_the_best_there_is():
    # The whole loop: propose, measure, learn, narrow; against long search on the truth.
    model = Synthetic(depth=6, seed=3)
    target, known = Target(keep_budget(model.shape, 0.8), WHOLE), []
    predictor = None
    for number, count in enumerate((40, 20, 20)):
        if number:
            predictor = fit_predictor(
                known, model.shape, model.mass, seed=0, repeats=1, kinds=["ridge", "lightgbm"]
            )
            ranges, _ = narrow(target.ranges, predictor, known, model.shape, target.budget)
            target = Target(target.budget, ranges)
        found = propose(
            model.shape,
            [target],
            count=count,
            seed=0,
            round_=number,
            pairs=known,
            predictor=predictor,
            generations=25,
        )
        known += model.pairs([one.plan for one in found], round_=number)
    best = search(model.loss_increase, model.shape, WHOLE, target.budget, seed=0, generations=60)[
        0
    ].loss_increase
    even = model.loss_increase(as_rows([uniform(model.shape, WHOLE, target.budget)]))[0]
    winner = min(known, key=lambda pair: pair.value)
    assert best < winner.value < best + 0.25 * (even - best)


class Foretelling:
    """Prefers plans that keep much of the first column."""

    def cautious(self, rows):
        return -rows[:, 0].astype(float)

    def spread(self, rows):
        return np.ones(len(rows))

    def error_near(self, loss_increase):
        return 0.1


def test_a_size_of_so_few_plans_that_a_search_comes_by_none_is_no_error():
    shape = Shape((3,) * 3, (2,) * 3, (1854,) * 3, (144,) * 3)
    target = Target(keep_budget(shape, 0.5), Ranges.above(shape))
    settings_ = {"count": 8, "seed": 0}
    (only,) = propose(shape, [target], round_=0, **settings_)
    pairs = [Pair(only.plan, 1.0, 100, partial=True)]
    again = propose(shape, [target], round_=1, pairs=pairs, predictor=Foretelling(), **settings_)
    assert again == []


def test_what_is_being_measured_is_not_proposed_again(pairs, predictor):
    asked = {"count": 20, "round_": 1, "pairs": pairs, "predictor": predictor, "generations": 5}
    first = first_round(**asked)
    waiting = [one.plan for one in first]
    again = first_round(**asked, waiting=waiting)
    assert len(again) == 20
    assert not {one.plan for one in again} & {*waiting, *(pair.plan for pair in pairs)}
    covering = [one.plan for one in first_round()]
    assert not {one.plan for one in first_round(waiting=covering)} & {*covering}


def test_searches_side_by_side_find_what_they_find_one_after_the_other(pairs, predictor):
    asked = {"count": 20, "round_": 1, "pairs": pairs, "predictor": predictor, "generations": 3}
    with ThreadPoolExecutor(1) as beside:
        assert first_round(**asked, beside=beside) == first_round(**asked)
        # without a pair of the size, what is near is not known before something was found
        elsewhere = {**asked, "targets": [Target(keep_budget(SHAPE, 0.5), WHOLE)]}
        assert first_round(**elsewhere, beside=beside) == first_round(**elsewhere)
