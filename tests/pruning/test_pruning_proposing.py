"""The next step, here and in another process: the same, to the last bit."""

from dataclasses import replace

import pytest
from synthetic_quality import Synthetic

from lmscout.errors import LmscoutError
from lmscout.pruning.background import Beside
from lmscout.pruning.budgets import keep_budget
from lmscout.pruning.measuring import Question, Terms, asked_ahead, next_step
from lmscout.pruning.ranges import Ranges
from lmscout.pruning.space import PlanSpace

MODEL = Synthetic(depth=6)
BUDGET = keep_budget(MODEL.shape, 0.7)
TERMS = Terms(MODEL.shape, MODEL.mass, PlanSpace(MODEL.shape, 8), (BUDGET,), 5)
WHOLE = Ranges.above(MODEL.shape)


def question(count):
    first = next_step(TERMS, Question((), (WHOLE,), 0, 40))
    pairs = MODEL.pairs([one.plan for one in first.proposals])
    pairs = [replace(one, trajectory=((3000, one.value), (6000, one.value))) for one in pairs]
    return Question(tuple(pairs[:30]), (WHOLE,), 4, count, tuple(one.plan for one in pairs[30:]))


def test_other_processes_propose_what_this_one_does():
    asked = question(6)
    alone = next_step(TERMS, asked)
    assert len(alone.proposals) == len(alone.limits) == 6
    assert all(len(limits) == 1 for limits in alone.limits)
    assert not {one.plan for one in alone.proposals} & {*asked.waiting}
    fitted = next_step(TERMS, replace(asked, count=0))
    assert (fitted.proposals, fitted.limits) == ((), ())
    assert (fitted.ranges, fitted.narrowing_steps) == (alone.ranges, alone.narrowing_steps)
    with Beside("proposes plans") as there:
        assert there.submit(next_step, TERMS, asked).result() == alone
        assert next_step(TERMS, asked, there) == alone  # one of two searches is done there
        # and an error is the line that it is here
        same = replace(asked, pairs=tuple(replace(one, value=1.0) for one in asked.pairs))
        with pytest.raises(LmscoutError, match=r"^all 30 measured pairs have the same quality, so"):
            there.submit(next_step, TERMS, same).result()


def test_before_there_is_a_predictor_nobody_waits():
    few = replace(question(4), pairs=question(4).pairs[:9])
    with asked_ahead(TERMS) as ask:
        assert ask(few).done()
        assert ask(replace(few, round=0, pairs=())).result().limits == ((),) * 4
