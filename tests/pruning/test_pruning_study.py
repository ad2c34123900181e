"""Studies of pairs: no plan twice, nothing lost, and readable by Optuna."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import numpy as np
import optuna
import pytest
from study_files import open_files, sees_open_files, stored, trials_of

from lmscout.errors import LmscoutError
from lmscout.pruning.plan import Plan, Shape, as_plans
from lmscout.pruning.storage import FILE_NAME, storage_url
from lmscout.pruning.study import Pair, PairStudy

SHAPE = Shape((4, 4, 4), (50, 50, 50), (100,) * 3, (10,) * 3)
SETTINGS = {"model": "ab12", "tokens": 6000, "compensation": True, "seed": 0, "text": None}


def plans(count, seed=0):
    rows = np.random.default_rng(seed).integers(0, [5] * 3 + [51] * 3, (count, 6))
    return as_plans(np.unique(rows, axis=0))


def pair(plan, **changes):
    settings = {
        "value": 0.25 + plan.mlp[0] / 3,
        "tokens": 6000,
        "round": 1,
        "kept": SHAPE.kept_share(plan),
        "seconds": 1.5,
        "origin": "free",
    }
    settings |= changes
    last = (settings["tokens"], settings["value"])
    return Pair(plan, **({"trajectory": ((last[0] // 2, 0.5), last)} | settings))


def test_pairs_come_back_as_they_were_in_their_order(tmp_path):
    wanted = [
        pair(plan, partial=place % 3 == 0, tokens=1500 if place % 3 == 0 else 6000, round=place % 2)
        for place, plan in enumerate(plans(12))
    ]
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study:
        assert all(pair_study.add(one) for one in wanted)
        with PairStudy(tmp_path, SHAPE, SETTINGS) as again:
            assert again.pairs() == pair_study.pairs() == tuple(wanted)
    assert again.pairs(before_round=1) == tuple(one for one in wanted if one.round == 0)
    assert len(again) == len(wanted)
    assert again.find(wanted[5].plan) == wanted[5]
    assert again.find(Plan((4, 4, 4), (50, 50, 50))) is None


def test_no_plan_is_there_twice(tmp_path):
    plan = plans(1)[0]
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study:
        assert pair_study.add(pair(plan))
        assert not pair_study.add(pair(plan, value=9.0))
        with PairStudy(tmp_path, SHAPE, SETTINGS) as again:
            assert not again.add(pair(plan, value=9.0, partial=True))
            assert again.pairs() == (pair(plan),)


def test_pairs_are_a_study_that_optuna_reads(tmp_path):
    verbosity = optuna.logging.get_verbosity()
    first, second = plans(2)
    with PairStudy(tmp_path, SHAPE, SETTINGS, study="mine") as pair_study:
        pair_study.add(pair(first))
        pair_study.add(pair(second, partial=True, tokens=1500))
    assert optuna.logging.get_verbosity() == verbosity
    with stored(pair_study.url) as storage:
        study = optuna.load_study(study_name="mine", storage=storage)
        assert study.direction == optuna.study.StudyDirection.MINIMIZE
        assert study.best_value == pair(first).value
        complete, pruned = study.trials
    assert Plan.from_dict(complete.params) == first
    assert complete.distributions["block00.mlp"] == optuna.distributions.IntDistribution(0, 50)
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert pruned.intermediate_values == {750: 0.5, 1500: pair(second).value}
    assert complete.user_attrs["origin"] == "free"
    assert complete.duration.total_seconds() == pytest.approx(1.5)
    tables = sqlite3.connect(tmp_path / FILE_NAME)
    names = {name for (name,) in tables.execute("select name from sqlite_master")}
    tables.close()
    assert not [name for name in names if "lmscout" in name]


def test_reading_does_not_wait_for_each_trial(tmp_path):
    from sqlalchemy import event

    asked = []
    with (
        PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study,
        PairStudy(tmp_path, SHAPE, SETTINGS) as other,
    ):
        for plan in plans(20):
            pair_study.add(pair(plan))
        event.listen(
            other._storage.engine, "before_cursor_execute", lambda *seen: asked.append(seen)
        )
        other.refresh()
    assert len(other) == len(pair_study)
    assert 0 < len(asked) < 12  # a few for all trials, none for each


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed = 0, this run has 1"),
        ({"extra": "x"}, "extra = None, this run has x"),
    ],
)
def test_pairs_measured_otherwise_are_not_mixed_in(tmp_path, change, words):
    PairStudy(tmp_path, SHAPE, SETTINGS).close()
    with pytest.raises(LmscoutError, match=words) as caught:
        PairStudy(tmp_path, SHAPE, SETTINGS | change)
    assert "\n" not in str(caught.value)
    PairStudy(tmp_path, SHAPE, SETTINGS | change, study="another").close()


def test_a_study_of_another_shape_is_refused(tmp_path):
    PairStudy(tmp_path, SHAPE, SETTINGS).close()
    with pytest.raises(LmscoutError, match="channels = 50 50 50, this run has 60 60 60"):
        PairStudy(tmp_path, Shape((4,) * 3, (60,) * 3, (100,) * 3, (10,) * 3), SETTINGS)


def test_a_study_of_others_is_refused(tmp_path):
    with stored(storage_url(tmp_path)) as storage:
        study = optuna.create_study(storage=storage, study_name="theirs")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(LmscoutError, match="not a study"):
        PairStudy(tmp_path, SHAPE, SETTINGS, study="theirs")


@pytest.mark.parametrize("url", ["foo://x", "mysql://a/b", "sqlite:////no/such/folder/x.db"])
def test_a_storage_that_cannot_be_opened_is_one_line(url):
    with pytest.raises(LmscoutError, match=f"^study at {url}: ") as caught:
        PairStudy(url, SHAPE, SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(LmscoutError, match="in memory"):
        PairStudy(url, SHAPE, SETTINGS)


def test_a_file_that_is_no_study_is_one_line(tmp_path):
    (tmp_path / FILE_NAME).write_text("words" * 1000)
    with pytest.raises(LmscoutError, match="file is not a database"):
        PairStudy(tmp_path, SHAPE, SETTINGS)
    with pytest.raises(LmscoutError, match="cannot be made a folder"):
        PairStudy(tmp_path / FILE_NAME, SHAPE, SETTINGS)


def interrupted(folder):
    with PairStudy(folder, SHAPE, SETTINGS) as pair_study:
        assert FILE_NAME in open_files(folder)
        pair_study.add(pair(plans(1)[0]))
        raise KeyboardInterrupt


@sees_open_files
def test_nothing_is_left_open_by_what_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt) as interruption:
        interrupted(tmp_path)
    assert open_files(tmp_path) == []
    with pytest.raises(LmscoutError, match="seed = 0, this run has 1") as settings:
        PairStudy(tmp_path, SHAPE, SETTINGS | {"seed": 1})
    assert open_files(tmp_path) == []
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study:
        assert pair_study.pairs() == (pair(plans(1)[0]),)
        pair_study.study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(LmscoutError, match="trial 1 was not written by lmscout") as trial:
        PairStudy(tmp_path, SHAPE, SETTINGS)
    assert open_files(tmp_path) == []
    # Their tracebacks hold what was opened, so that the garbage collector has not closed it.
    assert all(one.tb for one in (interruption, settings, trial))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(tmp_path, value):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study:
        with pytest.raises(LmscoutError, match="not finite"):
            pair_study.add(pair(plans(1)[0], value=value))
        assert len(pair_study) == 0


WRITER = """
    import sys
    from test_pruning_study import SETTINGS, SHAPE, pair, plans
    from lmscout.pruning.study import PairStudy

    print(0, flush=True)
    with PairStudy(sys.argv[1], SHAPE, SETTINGS) as study:
        for plan in plans(20):
            if study.find(plan) is None:
                study.add(pair(plan))
                print(len(study), flush=True)
"""


def writer(folder):
    paths = [os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def pairs_in(folder):
    with PairStudy(folder, SHAPE, SETTINGS) as pair_study:
        return pair_study.pairs()


def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path):
    rng = random.Random(0)
    reported = 0
    for _ in range(2):
        process = writer(tmp_path)
        assert process.stdout.readline() == b"0\n"
        assert process.stdout.readline()  # it writes
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        reported = max([reported, *map(int, rest)])
        assert len(pairs_in(tmp_path)) >= reported  # what was said to be written is there
    process = writer(tmp_path)
    process.communicate()
    assert process.returncode == 0
    assert pairs_in(tmp_path) == tuple(pair(plan) for plan in plans(20))
    assert len(trials_of(storage_url(tmp_path))) == len(plans(20))


def test_killed_while_it_begins_it_begins_again(tmp_path):
    for delay in (0.02, 0.15, 0.3):
        process = writer(tmp_path)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate()
    there = pairs_in(tmp_path)
    assert there == tuple(pair(plan) for plan in plans(20))[: len(there)]


def test_others_read_while_one_writes(tmp_path):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study:
        process = writer(tmp_path)
        seen = 0
        while process.poll() is None:
            pair_study.refresh()
            assert len(pair_study) >= seen
            seen = len(pair_study)
            time.sleep(0.05)
        process.communicate()
        pair_study.refresh()
    assert pair_study.pairs() == tuple(pair(plan) for plan in plans(20))
