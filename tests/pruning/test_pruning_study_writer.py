"""Pairs written by another process: all are stored, in order, or an error says why not."""

import os
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest
from test_pruning_study import SETTINGS, SHAPE, pair, pairs_in, plans

from lmscout.errors import LmscoutError
from lmscout.pruning.storage import FILE_NAME, storage_url
from lmscout.pruning.study import PairStudy, StudyWriter

PAIRS = tuple(pair(plan, value=1 / (3 + place)) for place, plan in enumerate(plans(6)))


def test_what_is_handed_over_is_what_the_study_and_others_find(tmp_path):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study:
        with StudyWriter(pair_study) as writer:
            for place, one in enumerate(PAIRS):
                writer.add(one)
                assert len(pair_study) == place  # one behind
            writer.flush()
            assert pair_study.pairs() == PAIRS
        pair_study.refresh()
        assert pair_study.pairs() == PAIRS
    assert pairs_in(tmp_path) == PAIRS


def test_handing_over_does_not_wait_for_the_storage(tmp_path):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study, StudyWriter(pair_study) as writer:
        writer.add(PAIRS[0])
        writer.flush()
        with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody else can write until it ends
            started = time.monotonic()
            writer.add(PAIRS[1])
            assert time.monotonic() - started < 5
            assert len(pair_study) == 1
            other.execute("ROLLBACK")
        other.close()
        writer.flush()
        assert pair_study.pairs() == PAIRS[:2]


def test_nothing_begins_without_a_pair_and_a_bad_one_is_refused_at_once(tmp_path):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study, StudyWriter(pair_study) as writer:
        writer.flush()
        with pytest.raises(LmscoutError, match="not finite"):
            writer.add(pair(plans(1)[0], value=float("nan")))
        assert writer._process is None


def test_what_cannot_be_written_is_one_line_at_the_next_pair(tmp_path):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study, StudyWriter(pair_study) as writer:
        writer.add(PAIRS[0])
        writer.flush()
        with sqlite3.connect(tmp_path / FILE_NAME) as other:
            other.execute("DROP TABLE trial_params")
        other.close()
        writer.add(PAIRS[1])
        with pytest.raises(LmscoutError, match=f"^study at {storage_url(tmp_path)}: .*trial_par"):
            writer.add(PAIRS[2])
        assert len(pair_study) == 1


def test_a_writer_that_was_killed_is_told_of(tmp_path):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study, StudyWriter(pair_study) as writer:
        writer.add(PAIRS[0])
        writer.flush()
        writer._process.kill()
        writer._process.wait()
        writer.add(PAIRS[1])
        with pytest.raises(LmscoutError, match="has ended"):
            writer.flush()


def interrupted(pair_study):
    with StudyWriter(pair_study) as writer:
        writer.add(PAIRS[0])
        raise KeyboardInterrupt


def test_what_was_measured_is_kept_where_measuring_ends_in_an_error(tmp_path):
    with PairStudy(tmp_path, SHAPE, SETTINGS) as pair_study:
        with pytest.raises(KeyboardInterrupt):
            interrupted(pair_study)
        assert pair_study.pairs() == PAIRS[:1]


KILLED = """
    import os, signal, sys
    from test_pruning_study_writer import PAIRS
    from test_pruning_study import SETTINGS, SHAPE
    from lmscout.pruning.study import PairStudy, StudyWriter

    with PairStudy(sys.argv[1], SHAPE, SETTINGS) as study, StudyWriter(study) as writer:
        for one in PAIRS:
            writer.add(one)
        print(writer._process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_measures_is_killed_and_all_that_was_handed_over_is_there(tmp_path):
    paths = [os.path.dirname(__file__), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    until = time.monotonic() + 30
    while os.path.exists(f"/proc/{int(done.stdout)}") and time.monotonic() < until:
        time.sleep(0.05)
    assert pairs_in(tmp_path) == PAIRS
