import time

import pytest

from lmscout.progress import Stages


def test_a_stage_that_is_entered_again_is_counted_in_all():
    stages = Stages()
    for _ in range(3):
        with stages("reading") as update:
            assert update is None
            time.sleep(0.02)
    with stages("other"):
        pass
    assert stages.seconds["reading"] >= 0.06
    assert stages.seconds["other"] < 0.02
    assert list(stages.seconds) == ["reading", "other"]


def test_progress_is_told_by_stage():
    heard = []
    stages = Stages(lambda *one: heard.append(one))
    with stages("reading") as update:
        update(1, 2)
    assert heard == [("reading", 1, 2)]


def test_a_stage_that_fails_has_not_ended():
    stages = Stages()
    with pytest.raises(ValueError, match="no"), stages("reading"):
        raise ValueError("no")
    assert stages.seconds == {}
