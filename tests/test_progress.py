"""Stages, and progress as lines where there is no terminal."""

import io
import re
import sys
import threading
import time

import pytest

import lmscout
from lmscout import progress
from lmscout.builtin import tiny_folder
from lmscout.progress import LineReporter, Stages, shown_progress


def test_seconds_of_a_stage_that_is_entered_again_are_summed():
    stages = Stages()
    for _ in range(3):
        with stages("measuring") as update:
            assert update is None
            time.sleep(0.02)
    with stages("other"):
        pass
    assert stages.seconds["measuring"] >= 0.06
    assert stages.seconds["other"] < 0.02
    assert list(stages.seconds) == ["measuring", "other"]


def test_progress_is_reported_by_stage():
    calls = []
    stages = Stages(lambda *one: calls.append(one))
    with stages("measuring") as update:
        update(1, 2)
    assert calls == [("measuring", 1, 2)]


def test_a_stage_that_fails_has_no_seconds():
    stages = Stages()
    with pytest.raises(ValueError, match="no"), stages("measuring"):
        raise ValueError("no")
    assert stages.seconds == {}


def test_lines_at_the_start_of_a_stage_and_once_a_minute(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    report = LineReporter(stream)
    for second in range(0, 150, 10):
        clock[0] = 1000.0 + second
        report("measuring", second, 150)
    report("saving", 0, 1)
    report("saving", 1, 1)
    assert stream.getvalue().splitlines() == [
        "measuring: 0/150",
        "measuring: 60/150, 60 s",
        "measuring: 120/150, 120 s",
        "saving: 0/1",
    ]


def test_shown_progress_writes_lines_without_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with shown_progress() as report:
        report("measuring", 1, 2)
    assert stream.getvalue() == "measuring: 1/2\n"
    for off in (None, False):
        with shown_progress(off) as report:
            assert report is None
    monkeypatch.setattr(sys, "stderr", None)
    with shown_progress() as report:
        assert report is None


def test_a_silent_stage_writes_lines_as_well(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress.LineReporter.__init__, "__defaults__", (0.2,))
    before = threading.active_count()
    with shown_progress() as report:
        stages = Stages(report)
        with stages("measuring") as update:
            update(3, 9)
            time.sleep(0.5)
        with stages("saving"):  # which reports no step
            time.sleep(0.5)
        time.sleep(0.5)  # no stage
    assert threading.active_count() == before
    lines = stream.getvalue().splitlines()
    assert lines[0] == "measuring: 3/9"
    assert all(re.fullmatch(r"(measuring: 3/9, |saving: )\d s", line) for line in lines[1:])
    assert 1 <= sum(line.startswith("saving") for line in lines) <= 2


def test_a_stream_that_is_closed_ends_no_stage():
    stream = io.StringIO()
    lines = LineReporter(stream, every=0.05)
    with lines.ticking():
        lines("measuring", 0, 2)
        stream.close()
        time.sleep(0.2)
        lines("saving", 0, 2)


class Writer:
    """A stream as services put it in place of stderr: it only writes."""

    def write(self, text):
        pass

    def flush(self):
        pass


@pytest.mark.parametrize("stream", [None, io.StringIO(), Writer()])
def test_functions_work_without_standard_streams(monkeypatch, tmp_path, stream):
    if isinstance(stream, io.StringIO):
        stream.close()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    assert lmscout.load_model(tiny_folder()).tokenizer
    found = lmscout.design("nano", proxy="depth", max_params=10**6, evaluations=2)
    assert "parameters" in found.summary()
