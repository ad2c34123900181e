"""Studies in a journal on a shared file system: processes are killed, and lines are cut."""

import os
import resource
import shutil
import signal
import subprocess
from collections import Counter
from contextlib import closing

import pytest
from joining_process import (
    PAIRS,
    alike,
    begin,
    ended,
    joined,
    lines,
    measured,
    wait_for,
)
from test_pruning_study import SETTINGS, SHAPE, pair, plans

from lmscout.errors import LmscoutError
from lmscout.pruning.storage import open_storage, storage_option_url
from lmscout.pruning.study import PairStudy
from lmscout.pruning.study_record import read_pairs

COMPILER = shutil.which("cc")
CLOCK = """
    #define _GNU_SOURCE
    #include <stdio.h>
    #include <stdlib.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    int clock_gettime(clockid_t clock, struct timespec *now) {
        int result = syscall(SYS_clock_gettime, clock, now);
        FILE *file = clock == CLOCK_REALTIME ? fopen(getenv("CLOCK_FILE"), "r") : NULL;
        long days = 0;
        if (file) {
            if (fscanf(file, "%ld", &days) == 1) now->tv_sec += days * 86400;
            fclose(file);
        }
        return result;
    }
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return alike(joined(folder, folder / "log", seconds=0.0))


def test_no_pair_is_lost_or_measured_twice(tmp_path, expected):
    url = f"journal:{tmp_path}/pairs.log"
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    program, processes = begin(url, logs)
    wait_for(lambda: all(measured([log]) for log in logs))
    os.kill(processes[0], signal.SIGKILL)
    codes, errors = ended(program)
    assert codes == [-signal.SIGKILL, 0, 0], errors
    assert alike(read_pairs(url).pairs) == expected
    begun = Counter(line for log in logs for line in lines(log, "begun"))
    assert len(begun) == PAIRS
    # The killed process loses the plan that it was measuring, and one that it was handing over.
    again = {line for line, count in begun.items() if count > 1}
    assert again <= set(lines(logs[0], "begun")[-2:])


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
def test_a_clock_that_jumps_changes_nothing(tmp_path, expected):
    url = f"journal:{tmp_path}/pairs.log"
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    library, clock = tmp_path / "clock.so", tmp_path / "clock"
    build = [COMPILER, "-shared", "-fPIC", "-o", library, "-x", "c", "-"]
    subprocess.run(build, input=CLOCK, text=True, check=True)
    clock.write_text("0")
    program, _ = begin(url, logs, LD_PRELOAD=str(library), CLOCK_FILE=str(clock))
    for count, jump in enumerate(("90", "-400", "1"), 1):
        wait_for(lambda wanted=6 * count: measured(logs) >= wanted)
        clock.write_text(jump)
    codes, errors = ended(program)
    assert codes == [0, 0], errors
    found = read_pairs(url).pairs
    assert alike(found) == expected
    assert all(0 <= one.seconds < 60 for one in found)
    begun = [line for log in logs for line in lines(log, "begun")]
    assert len(begun) == len(set(begun)) == PAIRS
    with closing(open_storage(url)) as storage:
        years = {trial.datetime_complete.year for trial in storage.get_all_trials(0)}
    assert len(years) > 1  # the processes had that clock


@pytest.fixture
def journal(tmp_path):
    return f"journal:{tmp_path}/pairs.log", tmp_path / "pairs.log"


def opened(url):
    return PairStudy(url, SHAPE, SETTINGS)


def test_processes_claim_every_plan_once_and_claims_end_with_the_lock(journal):
    six = plans(6)
    with opened(journal[0]) as one, opened(journal[0]) as other:
        with one.locked(group="alike"):
            with other.locked(group="alike"):
                assert (one.others, other.others) == (1, 1)
                assert one.claim(six, 4) == six[:4]
                assert other.claim(six, 4) == six[4:]
                assert one.claim(six, 6) == six[:4]  # its own
                assert other.add(pair(six[4]))
                assert not one.add(pair(six[4], value=9.0))
            assert one.others == 0
            assert one.claim(six, 6) == [*six[:4], six[5]]  # the other has left a plan unmeasured
            assert len(one) == 1
        assert one.pairs() == other.pairs()
        assert [study.study_name for study in one._storage.get_all_studies()] == ["lmscout"]


def test_a_line_that_a_killed_process_has_not_finished_is_cut_off(journal):
    url, file = journal
    one, other = map(pair, plans(2))
    with opened(url) as study, opened(url) as reading:
        study.add(one)
        with file.open("a") as unfinished:
            unfinished.write('{"op_code":4,"worker_id":"a-1","study_id":0,"datetime_st')
        reading.refresh()
        assert reading.pairs() == (one,)
        study.add(other)
        reading.refresh()
        assert reading.pairs() == (one, other)
    assert read_pairs(url).pairs == (one, other)


def test_a_full_disk_is_one_line_and_the_study_continues(journal):
    url, file = journal
    one, other = map(pair, plans(2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(url) as study:
        study.add(one)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, hard))
        try:
            with pytest.raises(LmscoutError, match="no space is left to write to; ") as caught:
                study.add(other)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert file.read_bytes()[-1:] != b"\n"  # a part of the line is there
        assert study.add(other)
    assert read_pairs(url).pairs == (one, other)


def test_files_that_are_no_journal_are_left_alone(journal, tmp_path):
    url, file = journal
    with pytest.raises(LmscoutError, match="there is no such file"):
        read_pairs(url)
    for content, problem in (
        ("words", "is no journal of Optuna"),
        ('{"op_code":0}\n{"op_code":0}\n', "is damaged"),
    ):
        file.write_text(content)
        for opens in (opened, read_pairs):
            with pytest.raises(LmscoutError, match=f"{problem}.*; ") as caught:
                opens(url)
            assert "\n" not in str(caught.value)
        assert file.read_text() == content
    for asked, problem in (
        ("journal:", "names no file"),
        ("journal://x", "has no host: give a file"),
        ("journal:/proc/x", "folder /proc cannot be written"),
        (f"journal:{tmp_path}", "is a folder"),
        (f"journal:{tmp_path}/no/x", "no does not exist; create it first"),
    ):
        with pytest.raises(LmscoutError, match=problem):
            storage_option_url(asked)
