"""The next step, here and in another process: the same to the last bit."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_quality import Synthetic

import forking
from lmscout.errors import LmscoutError
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.proposer import Known, Proposer, proposals
from lmscout.pruning.ranges import Ranges
from lmscout.pruning.space import PlanSpace

MODEL = Synthetic(depth=6)
BUDGET = keep_budget(MODEL.shape, 0.7)
PROPOSER = Proposer(MODEL.shape, MODEL.mass, PlanSpace(MODEL.shape, 8), (BUDGET,), 5)
WHOLE = Ranges.above(MODEL.shape)


def known(count):
    first = PROPOSER.propose(Known((), (WHOLE,), 0, 40))
    pairs = MODEL.pairs([one.plan for one in first.proposals])
    pairs = [replace(one, trajectory=((3000, one.value), (6000, one.value))) for one in pairs]
    return Known(tuple(pairs[:30]), (WHOLE,), 4, count, tuple(one.plan for one in pairs[30:]))


def test_another_process_proposes_the_same():
    state = known(6)
    step = PROPOSER.propose(state)
    assert len(step.proposals) == len(step.limits) == 6
    assert all(len(limits) == 1 for limits in step.limits)
    assert not {one.plan for one in step.proposals} & {*state.pending}
    narrowed = PROPOSER.propose(replace(state, count=0))
    assert (narrowed.proposals, narrowed.limits) == ((), ())
    assert (narrowed.ranges, narrowed.narrowing_steps) == (step.ranges, step.narrowing_steps)
    with ThreadPoolExecutor(1) as second:
        assert PROPOSER.propose(state, second) == step
    with proposals(PROPOSER, ahead=True) as propose:
        assert propose(state).result() == step
        same = replace(state, pairs=tuple(replace(one, value=1.0) for one in state.pairs))
        with pytest.raises(LmscoutError, match=r"^all 30 measured pairs have the same quality, so"):
            propose(same).result()


def test_without_a_predictor_a_step_is_proposed_at_once():
    few = replace(known(4), pairs=known(4).pairs[:9])
    with proposals(PROPOSER, ahead=True) as propose:
        assert propose(few).done()
        assert propose(replace(few, round=0, pairs=())).result().limits == ((),) * 4


class SlowSpace(PlanSpace):
    """Proposes for a minute, after it has written its process id to a file."""

    @property
    def narrows(self):  # the first that a fitted predictor needs of a space
        Path(os.environ["PROPOSING"]).write_text(str(os.getpid()))
        time.sleep(60)


def is_gone(process, seconds=20):
    until = time.monotonic() + seconds
    while os.path.exists(f"/proc/{process}"):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def proposing_process(file, seconds=60):
    """The id of the process that proposes, once it does."""
    until = time.monotonic() + seconds
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return int(file.read_text())


def test_a_process_that_proposes_ends_with_the_block(tmp_path, monkeypatch):
    monkeypatch.setenv("PROPOSING", str(tmp_path / "id"))
    slow = replace(PROPOSER, space=SlowSpace(MODEL.shape))
    with proposals(slow, ahead=True) as propose:
        propose(known(6))
        process = proposing_process(tmp_path / "id")
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert is_gone(process)


def killed_while_proposing(file):
    os.environ["PROPOSING"] = str(file)
    with proposals(replace(PROPOSER, space=SlowSpace(MODEL.shape)), ahead=True) as propose:
        propose(known(6))
        proposing_process(file)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc lists processes")
def test_a_process_that_proposes_ends_with_a_run_that_is_killed(tmp_path):
    file = tmp_path / "id"
    run = forking.start(killed_while_proposing, file, daemon=False)
    assert forking.exit_code(run) == -signal.SIGKILL
    assert is_gone(proposing_process(file))
