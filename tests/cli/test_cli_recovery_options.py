"""The options of `lmscout prune` about recovery."""

import sys

import pytest

from lmscout.builtin import tiny_folder
from lmscout.cli.main import main
from lmscout.cli.prune import recovery_request
from lmscout.errors import LmscoutError


def asked(method=None, elastic=False, text=None, seed=0, **given):
    return recovery_request(method, elastic, seed, text=text, **given)


def test_nothing_asked_for_is_nothing_trained():
    request = asked()
    assert (request.winners, request.elastic) == (None, None)
    assert request.note() == {}


def test_what_is_asked_for_is_trained_within_its_bounds():
    request = asked("lora", steps=7, minutes=0.5, seed=3)
    assert request.elastic is None
    winners = request.winners
    assert (winners.method, winners.steps, winners.tokens) == ("lora", 7, None)
    assert (winners.seconds, winners.seed) == (30.0, 3)
    assert (winners.rank, winners.learning_rate, winners.batch_tokens) == (16, 1e-3, 2_048)
    wanted = asked("distill", rank=64, rate=3e-3, batch=8_192).winners
    assert (wanted.rank, wanted.learning_rate, wanted.batch_tokens) == (64, 3e-3, 8_192)
    both = asked("lora", elastic=True, tokens=10_000)
    assert both.elastic == both.winners
    assert both.winners.last_step(128) == 4  # of 2,048 tokens: the bound of steps gave way
    timed = asked("distill", minutes=10).winners
    assert (timed.steps, timed.tokens, timed.seconds) == (None, None, 600.0)
    alone = asked(elastic=True)
    assert alone.winners is None
    assert (alone.elastic.method, alone.elastic.steps) == ("distill", 300)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "luck"}, "unknown recovery 'luck': expected one of lora, distill"),
        ({"text": "TEXT"}, "--recover-text is for --recover lora, --recover distill or --elastic"),
        ({"steps": 5}, "--recover-steps is for"),
        ({"rate": 1e-4}, "--recover-rate is for"),
        ({"method": "lora", "steps": 0}, "steps of 0 is not above 0"),
        ({"method": "lora", "rate": 0.0}, "learning_rate of 0 is not above 0"),
        ({"method": "lora", "rank": -1}, "rank of -1 is not above 0"),
        ({"elastic": True, "minutes": -1.0}, "seconds of -60 is not above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(LmscoutError, match=said):
        asked(**options)


def test_without_peft_the_command_names_the_extra_and_writes_nothing(tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x\n" * 99)
    given = ["lmscout", "prune", tiny_folder(), "--calibration", text, "--recover", "distill"]
    monkeypatch.setattr("sys.argv", [*map(str, given), "--out", str(tmp_path / "run")])
    for name in ["peft", *(one for one in sys.modules if one.startswith("peft."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err == "lmscout: recovery needs peft: pip install 'lmscout[recover]'\n"
    assert not (tmp_path / "run").exists()
