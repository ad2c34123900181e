"""Steps with a tail, the next of which is proposed while it is measured: the same end, always."""

import itertools
import os
import random
import signal
from collections import Counter

import measuring_process
import pytest
from measuring_process import MODEL, TAIL, alike, measured

import forking
from lmscout.errors import LmscoutError
from lmscout.pruning.sampler import propose
from lmscout.pruning.space import PlanSpace

EACH = {round_: 2 - round_ % 2 for round_ in range(12)} | {12: 1, 13: 1}  # of steps of three


def interrupted(at):
    def watch(done):
        if done >= at:
            raise KeyboardInterrupt

    return watch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run on one device."""
    return measured(tmp_path_factory.mktemp("whole"))


def test_every_step_has_a_body_and_a_tail(whole):
    pairs, fitted, plans = whole
    assert Counter(pair.round for pair in pairs) == EACH
    assert len(plans) == len({*plans}) == 20
    assert fitted.predictor.report.pairs == 20


def test_the_end_is_the_same_on_two_devices(whole, tmp_path):
    pairs, fitted, plans = measured(tmp_path, 2)
    assert alike(pairs) == alike(whole[0])
    assert fitted.narrowing_steps == whole[1].narrowing_steps
    assert fitted.targets[0].ranges == whole[1].targets[0].ranges
    assert fitted.predictor.report == whole[1].predictor.report
    assert len(plans) == 20


def stopped_and_continued(folder, stops, devices):
    """Pairs at the end; each part of the run has another number of devices."""
    for stop, number in zip([*stops, None], itertools.cycle(devices), strict=False):
        watch = None if stop is None else interrupted(stop)
        pairs, _, _ = measured(folder, number, watch=watch)
    return pairs


def test_a_run_that_is_stopped_goes_on_to_the_same_end(whole, tmp_path):
    assert alike(stopped_and_continued(tmp_path, (8, 14), (2, 1, 3))) == alike(whole[0])


@pytest.mark.slow
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_end(whole, tmp_path):
    rng = random.Random(0)
    for trial in range(20):
        stops, devices = sorted(rng.sample(range(1, 20), 5)), rng.choices((1, 2, 3), k=6)
        pairs = stopped_and_continued(tmp_path / str(trial), stops, devices)
        assert alike(pairs) == alike(whole[0]), stops


def test_a_run_that_is_killed_goes_on_to_the_same_end(whole, tmp_path):
    # a tail and the next body have both begun
    run = forking.start(measuring_process.main, tmp_path, 2, 20, 3, 13)
    assert forking.exit_code(run) == -signal.SIGKILL
    pairs, _, plans = measured(tmp_path, 2)
    assert alike(pairs) == alike(whole[0])
    assert len(plans) <= 20 - 13


def test_a_device_that_fails_is_told_of_and_the_run_goes_on_to_the_same_end(whole, tmp_path):
    with pytest.raises(LmscoutError, match="the device is full"):
        measured(tmp_path, 2, fails_at=4)
    pairs, _, plans = measured(tmp_path, 2)
    assert alike(pairs) == alike(whole[0])
    assert 20 - 2 * 4 <= len(plans) < 20


class DyingSpace(PlanSpace):
    """Ends its process when there is a predictor."""

    @property
    def narrows(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_where_the_process_that_proposes_is_killed_the_run_ends_with_a_line(tmp_path):
    with pytest.raises(LmscoutError, match="the process that proposes plans has ended"):
        measured(
            tmp_path, 2, pairs=60, size=20, space=DyingSpace(MODEL.shape), another_process=True
        )


def test_more_pairs_and_other_sizes_go_on_where_a_run_ended(whole, tmp_path):
    some, _, _ = measured(tmp_path, 2, pairs=20)
    more, _, plans = measured(tmp_path, 2, pairs=29, keep=0.6)
    assert alike(some) == alike(whole[0])
    assert {*alike(some)} < {*alike(more)}
    assert (len(more), len(plans)) == (29, 9)
    again, fitted, plans = measured(tmp_path, 1, pairs=29, keep=0.8)
    assert (alike(again), plans) == (alike(more), [])
    assert fitted.targets[0].budget.limit == pytest.approx(0.8, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("begun", "goes_on"), [(0.0, TAIL), (TAIL, 0.0)])
def test_a_study_continues_as_it_was_started(tmp_path, begun, goes_on):
    whole, _, _ = measured(tmp_path / "whole", 2, tail=begun)
    measured(tmp_path / "other", 2, tail=begun, watch=interrupted(11))
    pairs, _, _ = measured(tmp_path / "other", 2, tail=goes_on)
    assert alike(pairs) == alike(whole)
    assert max(pair.round for pair in pairs) == (13 if begun else 5)


def test_all_plans_there_are_may_be_fewer_than_are_wanted(tmp_path):
    def few(space, targets, *, waiting=(), pairs=(), **asked):
        taken = {*waiting, *(pair.plan for pair in pairs)}
        every = propose(space, targets, pairs=(), **asked | {"count": 9, "round_": 0})
        return [one for one in every if one.plan not in taken]

    pairs, fitted, _ = measured(tmp_path, 2, proposing=few)
    assert len(pairs) == 9
    assert fitted.predictor is None


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_with_a_predictor_in_another_process_the_end_is_the_same(tmp_path, devices):
    asked = {"pairs": 80, "size": 12, "proposing": propose, "another_process": True}
    whole, fitted, _ = measured(tmp_path / "whole", 1, **asked)
    for stop in (30, 55, None):
        watch = None if stop is None else interrupted(stop)
        pairs, again, _ = measured(tmp_path / "stopped", devices, watch=watch, **asked)
    assert alike(pairs) == alike(whole)
    assert {"found", "near", "unsure"} <= {pair.origin for pair in pairs}
    assert again.narrowing_steps == fitted.narrowing_steps
    assert again.predictor.report == fitted.predictor.report
