"""Rounds of measuring: what is dropped early, and where a stopped run goes on."""

import itertools

import numpy as np
import pytest
from synthetic_quality import Synthetic

from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.measuring import measure_rounds
from lmscout.pruning.ranges import Ranges, Target
from lmscout.pruning.space import PlanSpace
from lmscout.pruning.study import PairStudy

MODEL = Synthetic(depth=4, groups=4, channels=60)


class SyntheticEvaluator:
    """Measures the synthetic model chunk by chunk, as the real evaluator does."""

    def __init__(self):
        self.shape = MODEL.shape
        self.measured = []

    def measure(self, plans, limits=None):
        for plan, most in zip(plans, limits or itertools.repeat(()), strict=False):
            measurement = MODEL.in_portions(plan, most)
            self.measured.append((plan, len(measurement.trajectory)))
            yield measurement


def rounds(folder, pairs=60, keep=(0.7,), stop_after=None):
    evaluator = SyntheticEvaluator()
    targets = [Target(keep_budget(MODEL.shape, one), Ranges.above(MODEL.shape)) for one in keep]

    def watch(done, _):
        if stop_after is not None and len(evaluator.measured) >= stop_after:
            raise KeyboardInterrupt

    with PairStudy(folder, MODEL.shape, {"model": "synthetic"}) as pair_study:
        try:
            fitted = measure_rounds(
                pair_study,
                evaluator,
                MODEL.mass,
                PlanSpace(MODEL.shape),
                targets,
                pairs=pairs,
                seed=0,
                progress=watch,
            )
        except KeyboardInterrupt:
            fitted = None
    return pair_study.pairs(), evaluator.measured, fitted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: a first round of 40 pairs, and one of 20."""
    return rounds(tmp_path_factory.mktemp("whole"))


def test_a_run_stopped_anywhere_measures_what_an_undisturbed_one_does(tmp_path, whole):
    measured = []
    for stop in (23, 45, None):
        pairs, some, _ = rounds(tmp_path, stop_after=stop)
        measured += [plan for plan, _ in some]
    plain, expected = (
        [(one.plan, one.value, one.partial, one.round, one.trajectory) for one in some]
        for some in (pairs, whole[0])
    )
    assert plain == expected
    assert len(measured) == len(set(measured)) == 60


def test_only_plans_behind_the_best_on_the_same_text_are_dropped(whole):
    pairs, measured, _ = whole
    assert not any(pair.partial for pair in pairs if pair.round == 0)
    assert 0 < sum(pair.partial for pair in pairs) < 20
    for place, pair in enumerate(pairs):
        if pair.partial:
            tokens, loss_increase = pair.trajectory[-1]
            before = [one for one in pairs[:place] if not one.partial]
            assert sum(dict(one.trajectory)[tokens] < loss_increase for one in before) >= 12
    assert [length for _, length in measured] == [len(pair.trajectory) for pair in pairs]


def test_later_rounds_are_better_than_the_first(whole):
    pairs, _, fitted = whole
    first = [pair.value for pair in pairs if pair.round == 0]
    last = [pair.value for pair in pairs if pair.round == 1 and not pair.partial]
    assert np.median(last) < min(first)
    assert fitted.predictor.report.chosen.kendall > 0.5
    assert fitted.narrowing_steps


def test_every_size_gets_its_part_and_a_new_one_measures_nothing(tmp_path):
    pairs, _, _ = rounds(tmp_path, pairs=40, keep=(0.8, 0.6))
    kept = np.array([pair.kept for pair in pairs])
    assert (np.abs(kept - 0.8) < 0.01).sum() == (np.abs(kept - 0.6) < 0.01).sum() == 20
    again, measured, fitted = rounds(tmp_path, pairs=40, keep=(0.7,))
    assert (again, measured) == (pairs, [])
    assert fitted.targets[0].budget.limit == pytest.approx(0.7, abs=1e-4)


def test_more_pairs_go_on_where_fewer_ended(tmp_path):
    few, _, _ = rounds(tmp_path, pairs=20)
    more, measured, _ = rounds(tmp_path, pairs=27)
    assert more[:20] == few
    assert (len(more), len(measured)) == (27, 7)
