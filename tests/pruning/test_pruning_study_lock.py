"""Several processes and one study: no plan twice, and no wait for dead processes."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import measuring_process
import optuna
import pytest
from measuring_process import alike, measured
from study_files import trials_of
from test_pruning_study import SETTINGS, SHAPE, pair, plans

import forking
from lmscout.errors import LmscoutError
from lmscout.pruning import study_lock
from lmscout.pruning.storage import FILE_NAME, reported, storage_url
from lmscout.pruning.study import PairStudy
from lmscout.pruning.study_lock import Holder, folder_lock

MEASURED = {"devices": 1, "pairs": 20, "size": 4}


def studies(folder):
    with closing(sqlite3.connect(folder / FILE_NAME)) as tables:
        return sorted(name for (name,) in tables.execute("select study_name from studies"))


def begun_studies(folder):
    """The same, of a file that is being made, too."""
    try:
        return studies(folder) if (folder / FILE_NAME).exists() else []
    except sqlite3.OperationalError:
        return []


def params_of(folder):
    return [tuple(sorted(trial.params.items())) for trial in trials_of(storage_url(folder))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return alike(measured(tmp_path_factory.mktemp("whole"), **MEASURED)[0])


def test_runs_that_start_at_once_measure_every_plan_once(tmp_path, undisturbed):
    runs = [forking.start(measuring_process.main, tmp_path, *MEASURED.values()) for _ in range(2)]
    assert [forking.exit_code(run) for run in runs] == [0, 0]
    found = params_of(tmp_path)
    assert len(found) == len(set(found)) == 20
    pairs, _, again = measured(tmp_path, **MEASURED)
    assert alike(pairs) == undisturbed
    assert again == []
    assert studies(tmp_path) == ["lmscout"]  # and no turn


def test_where_the_run_that_measures_is_killed_another_goes_on(tmp_path, undisturbed):
    arguments = (tmp_path, *MEASURED.values())
    first = subprocess.Popen(
        [sys.executable, measuring_process.__file__, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    until = time.monotonic() + 60
    while not any("|lock|" in name for name in begun_studies(tmp_path)):
        assert time.monotonic() < until
        time.sleep(0.02)
    second = forking.start(measuring_process.main, *arguments)
    time.sleep(0.3)
    first.send_signal(signal.SIGKILL)  # and is not waited for: it stays as a zombie
    code = forking.exit_code(second)
    first.wait()
    assert code == 0
    found = params_of(tmp_path)
    assert len(found) == len(set(found)) == 20
    assert alike(measured(tmp_path, **MEASURED)[0]) == undisturbed
    assert studies(tmp_path) == ["lmscout"]


def interrupt(_):
    raise KeyboardInterrupt


def test_processes_of_one_group_claim_every_plan_once(tmp_path):
    six = plans(6)
    with PairStudy(tmp_path, SHAPE, SETTINGS) as one, PairStudy(tmp_path, SHAPE, SETTINGS) as other:
        with one.locked(group="alike"):
            with other.locked(group="alike"):
                assert (one.others, other.others) == (1, 1)
                assert one.claim(six, 4) == six[:4]
                assert other.claim(six, 4) == six[4:]
                assert one.claim(six, 6) == six[:4]  # its own
                other.add(pair(six[4]))
            assert one.others == 0
            assert one.claim(six, 6) == [*six[:4], six[5]]  # the other has left a plan unmeasured
            assert len(one) == 1
        assert not [key for key in one.study.user_attrs if "claim" in key]
        with one.locked(group="alike"), pytest.raises(KeyboardInterrupt), other.locked(interrupt):
            pass  # a process without a group waits


def opener(folder, seed, connection):
    """Open a new study when told to, and say its seed or the problem."""
    connection.send("there")
    connection.recv()
    try:
        with PairStudy(folder, SHAPE, SETTINGS | {"seed": seed}) as pair_study:
            said = pair_study.note("tail", str(seed))
            for plan in plans(4):
                pair_study.add(pair(plan))
    except LmscoutError as error:
        said = str(error)
    connection.send(said)


def opened_at_once(folder, *seeds):
    """What each process says that opens a new study with a seed, all at one moment."""
    here, there = zip(*(forking.pipe() for _ in seeds), strict=True)
    processes = [forking.start(opener, folder, *both) for both in zip(seeds, there, strict=True)]
    assert [one.recv() for one in here] == ["there"] * len(seeds)
    for one in here:
        one.send("go")
    said = [one.recv() for one in here]
    assert [forking.exit_code(one) for one in processes] == [0] * len(seeds)
    return said


def test_a_study_may_be_made_by_several_at_once(tmp_path):
    assert opened_at_once(tmp_path, 0, 0, 0, 0) == ["0"] * 4
    assert studies(tmp_path) == ["lmscout"]
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study:
        assert {one.plan for one in pair_study.pairs()} == set(plans(4))


def test_of_several_settings_at_once_one_is_kept_and_the_others_hear_of_it(tmp_path):
    said = opened_at_once(tmp_path, 1, 2, 3)
    (kept,) = (one for one in said if len(one) == 1)
    others = [one for one in said if len(one) > 1]
    assert len(others) == 2
    assert all(f"were measured with seed = {kept}, this run has" in one for one in others)
    with PairStudy(tmp_path, SHAPE, SETTINGS | {"seed": int(kept)}) as pair_study:
        assert pair_study.note("tail") == kept


def test_what_another_process_added_is_not_added_again(tmp_path):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as one, PairStudy(tmp_path, SHAPE, SETTINGS) as other:
        for plan in plans(5):
            assert one.add(pair(plan))
            assert not other.add(pair(plan, value=9.0))
        assert one.pairs() == other.pairs()
    assert len(params_of(tmp_path)) == 5


def held_elsewhere(pair_study, node="elsewhere"):
    """A turn of a process on another machine: its study's number."""
    holder = Holder("lmscout", node, "another", 7, "1", "token")
    with reported(""):
        study = optuna.create_study(storage=pair_study._storage, study_name=holder.name)
    study.set_user_attr("heartbeat", 0)
    return study


def test_a_process_of_another_machine_is_waited_for_while_it_gives_signs(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(study_lock, "LEASE", 1.5)
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study:
        other = held_elsewhere(pair_study)
        stops = time.monotonic() + 3

        def give_signs():
            number = 0
            while time.monotonic() < stops:
                number += 1
                other.set_user_attr("heartbeat", number)
                time.sleep(0.2)

        signs = threading.Thread(target=give_signs)
        signs.start()
        with pair_study.locked():
            assert time.monotonic() > stops + 1  # and then it was taken over
            assert not any("elsewhere" in name for name in studies(tmp_path))
        signs.join()
    (line,) = (one.getMessage() for one in caplog.records)
    assert "waiting for process 7 on elsewhere" in line


def test_a_process_whose_turn_was_taken_measures_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(study_lock, "HEARTBEAT", 0.05)
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study, pair_study.locked():
        pair_study.add(pair(plans(1)[0]))
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as tables, tables:
            tables.execute("delete from studies where study_name like '%|lock|%'")
        until = time.monotonic() + 30
        with pytest.raises(LmscoutError, match="another run took over"):  # noqa: PT012
            while time.monotonic() < until:
                pair_study.check(pair(plans(1)[0]))
                time.sleep(0.05)


def test_control_c_while_waiting_leaves_nothing(tmp_path):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as one, PairStudy(tmp_path, SHAPE, SETTINGS) as other:
        with one.locked():
            with pytest.raises(KeyboardInterrupt), other.locked(interrupt):
                pass
            assert len(studies(tmp_path)) == 2  # the study, and the turn that is held
        with other.locked(), other.locked():  # within another it is as it is
            pass
    assert studies(tmp_path) == ["lmscout"]


def test_a_run_folder_is_written_by_one_at_a_time(tmp_path):
    order = []

    def write(name, seconds):
        with folder_lock(tmp_path / "run"):
            order.append(f"{name} begins")
            time.sleep(seconds)
            order.append(f"{name} ends")

    others = [threading.Thread(target=write, args=(name, 0.3)) for name in "ab"]
    for one in others:
        one.start()
    for one in others:
        one.join()
    assert [one.split()[1] for one in order] == ["begins", "ends"] * 2
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LmscoutError, match="cannot be made a folder"),
        folder_lock(tmp_path / "file"),
    ):
        pass
