"""Narrowing on a model of which it is known what is cheap."""

import numpy as np
import pytest
from synthetic_quality import Synthetic

from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.plan import as_rows, dense_row, kept_shares
from lmscout.pruning.proposer import (
    INSENSITIVE,
    SENSITIVE,
    NarrowingStep,
    narrow,
    partial_dependence,
)
from lmscout.pruning.ranges import Ranges, Target, best_pairs, fit
from lmscout.pruning.study import Pair

MODEL = Synthetic(depth=6)
BUDGET = keep_budget(MODEL.shape, 0.75)
WHOLE = Ranges.above(MODEL.shape)


class Exact:
    """A predictor of the true loss increase."""

    def __init__(self, model=MODEL, error=0.01):
        self.model, self.error = model, error

    def predict(self, rows):
        return self.model.loss_increase(rows)

    def error_near(self, loss_increase):
        return self.error


@pytest.fixture(scope="module")
def pairs():
    wish = np.random.default_rng(0).uniform(0.1, 1, (120, 12)) * dense_row(MODEL.shape)
    return MODEL.pairs(fit(wish, WHOLE, BUDGET))


def test_dependence_is_measured_at_one_size_within_what_was_measured(pairs):
    measured = as_rows([pair.plan for pair in pairs])
    around = measured[:5]
    curves = partial_dependence(Exact(), MODEL.shape, WHOLE, BUDGET, around, measured)
    for column, curve in enumerate(curves):
        assert curve.units.min() >= measured[:, column].min()
        assert curve.units.max() <= measured[:, column].max()
        assert len(curve.units) > 2
    column, place = 7, 4
    wanted = around.copy()
    wanted[:, column] = curves[column].units[place]
    low, high = (np.tile(one, (5, 1)) for one in as_rows([WHOLE.low, WHOLE.high]))
    low[:, column] = high[:, column] = wanted[:, column]
    rows = fit(wanted, (low, high), BUDGET)
    assert kept_shares(MODEL.shape, rows) == pytest.approx(0.75, abs=0.001)
    assert curves[column].loss_increase[place] == pytest.approx(MODEL.loss_increase(rows).mean())


def test_sensitive_and_insensitive_blocks_are_told_apart(pairs):
    ranges, narrowing_steps = narrow(WHOLE, Exact(), pairs, MODEL.shape, BUDGET)
    assert ranges.low.mlp[0] > 400  # was 87
    assert narrowing_steps[0].verdict == SENSITIVE
    assert (narrowing_steps[0].kind, narrowing_steps[0].blocks[0]) == ("mlp", 0)
    assert narrowing_steps[0].cost > 0.2
    assert all(one.cost > 0.03 for one in narrowing_steps if one.verdict == SENSITIVE)
    assert all(one.cost < 0.03 for one in narrowing_steps if one.verdict == INSENSITIVE)
    assert {one.verdict for one in narrowing_steps} == {INSENSITIVE, SENSITIVE}
    # Attention of block 3 costs nothing, and no step says that it is sensitive.
    assert not [
        one
        for one in narrowing_steps
        if one.kind == "attention"
        and one.blocks[0] <= 3 <= one.blocks[1]
        and one.verdict == SENSITIVE
    ]
    assert list(narrowing_steps) == sorted(narrowing_steps, key=lambda one: -one.cost)


def test_numbers_in_words_are_those_of_the_dependence(pairs):
    _, narrowing_steps = narrow(WHOLE, Exact(), pairs, MODEL.shape, BUDGET)
    around = as_rows([pair.plan for pair in best_pairs(pairs, Target(BUDGET, WHOLE).holds, 12)])
    measured = as_rows([pair.plan for pair in pairs])
    curves = partial_dependence(Exact(), MODEL.shape, WHOLE, BUDGET, around, measured)
    single = [one for one in narrowing_steps if one.blocks[0] == one.blocks[1]]
    assert single
    for one in single:
        column = one.blocks[0] + (MODEL.depth if one.kind == "mlp" else 0)
        shares = curves[column].units / dense_row(MODEL.shape)[column]
        loss_increase = dict(zip(shares, curves[column].loss_increase, strict=True))
        assert one.cost == pytest.approx(loss_increase[one.keeping] - loss_increase[one.instead_of])


def test_words_read_well():
    assert NarrowingStep("mlp", (4, 4), INSENSITIVE, 0.6, 1.0, 0.004).words == (
        "block 4 mlp is insensitive: keeping 60% instead of 100%, at the same size, "
        "costs 0.004 nats"
    )
    assert NarrowingStep("attention", (0, 1), SENSITIVE, 0.8, 1.0, 0.31).words == (
        "blocks 0-1 attention is sensitive: keeping 80% instead of 100%, at the same size, "
        "costs 0.310 nats"
    )
    one = NarrowingStep("mlp", (4, 4), INSENSITIVE, 0.6, 1.0, -0.02, pairs=40)
    assert one.words.startswith("after 40 pairs, block 4 mlp is insensitive")
    assert one.words.endswith("saves 0.020 nats")


@pytest.mark.parametrize("seed", range(3))
def test_the_best_measured_stay_and_ranges_stay_wide(pairs, seed):
    model = Synthetic(depth=6, seed=seed)
    rows = as_rows([pair.plan for pair in pairs])
    ranges, units = WHOLE, dense_row(model.shape)
    for _ in range(6):  # again and again, by one that is very sure of itself
        before = as_rows([ranges.low, ranges.high])
        ranges, _ = narrow(ranges, Exact(model, 1e-6), model.pairs(rows), model.shape, BUDGET)
        after = as_rows([ranges.low, ranges.high])
        assert (after[0] >= before[0]).all()
        assert (after[1] <= before[1]).all()
        width, was = after[1] - after[0], before[1] - before[0]
        assert (width >= np.floor(0.5 * was)).all()
        assert (width >= np.minimum(was, np.floor(0.3 * units))).all()
        best = best_pairs(model.pairs(rows), Target(BUDGET, WHOLE).holds, 12)
        assert ranges.holds(as_rows([pair.plan for pair in best])).all()
    assert (after[1] - after[0]).sum() < 0.8 * (units - as_rows([WHOLE.low])[0]).sum()


def test_nothing_is_narrowed_where_nothing_fits(pairs):
    other = keep_budget(MODEL.shape, 0.4)
    assert narrow(WHOLE, Exact(), pairs, MODEL.shape, other) == (WHOLE, ())
    partial = [Pair(one.plan, one.value, 100, partial=True) for one in pairs]
    assert narrow(WHOLE, Exact(), partial, MODEL.shape, BUDGET) == (WHOLE, ())


def test_the_best_are_whole_within_and_of_the_size(pairs):
    best = best_pairs(pairs, Target(BUDGET, WHOLE).holds, 5)
    assert [one.value for one in best] == sorted(one.value for one in pairs)[:5]
    first = best[0]
    dropped = Pair(first.plan, first.value, 100, partial=True)
    others = [one for one in pairs if one is not first]
    assert best_pairs([dropped, *others], Target(BUDGET, WHOLE).holds, 1)[0] == best[1]
    protected = WHOLE.protected(MODEL.shape)
    assert best_pairs(pairs, Target(BUDGET, protected).holds, 5) == []
    assert best_pairs(pairs[::-1], Target(BUDGET, WHOLE).holds, 5) == best
