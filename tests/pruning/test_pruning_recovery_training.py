"""Training within bounds: which text each step reads, and what is left when it is stopped."""

import json
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recovering_process import SETTINGS, example
from torch import nn

import forking
from lmscout.errors import LmscoutError
from lmscout.pruning.recovery.training import (
    RecoverySettings,
    apart_from,
    batch_of,
    read_state,
    schedule,
    train,
    weights_digest,
)

CPU = torch.device("cpu")


@given(
    count=st.integers(1, 20),
    size=st.integers(1, 9),
    steps=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_steps_read_one_pass_after_another(count, size, steps, seed):
    windows = torch.arange(count)[:, None].expand(count, 3)
    read = torch.cat([batch_of(windows, size, step, seed) for step in range(steps)])
    assert read.shape == (size * steps, 3)
    for start in range(0, len(read), count):
        part = read[start : start + count, 0].tolist()
        assert len(set(part)) == len(part)


def test_another_seed_reads_in_another_order():
    windows = torch.arange(50)[:, None]
    assert not torch.equal(batch_of(windows, 50, 0, 0), batch_of(windows, 50, 0, 1))
    assert not torch.equal(batch_of(windows, 50, 0, 0), batch_of(windows, 50, 1, 0))


def test_windows_apart_from_others_keep_their_order():
    windows = torch.arange(12).view(6, 2)
    left = apart_from(windows, windows[[4, 1]], torch.tensor([[0, 1], [99, 99]]))
    assert torch.equal(left, windows[[2, 3, 5]])


def test_bounds_of_steps_and_of_tokens():
    assert RecoverySettings(batch_tokens=1000, steps=7).batch(128) == 7
    assert RecoverySettings(batch_tokens=10).batch(128) == 1
    assert RecoverySettings(batch_tokens=256, steps=7).last_step(128) == 7
    assert RecoverySettings(batch_tokens=256, steps=7, tokens=1000).last_step(128) == 3
    assert RecoverySettings(batch_tokens=256, steps=None, tokens=1024).last_step(128) == 4
    with pytest.raises(LmscoutError, match="100 tokens are fewer than one step of 256"):
        RecoverySettings(batch_tokens=256, tokens=100).last_step(128)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "luck"}, "unknown recovery 'luck': expected one of lora, distill"),
        ({"rank": 0}, "rank of 0"),
        ({"learning_rate": float("nan")}, "learning_rate of nan"),
        ({"seconds": -1.0}, "seconds of -1"),
        ({"steps": None}, "a limit of steps, tokens or seconds"),
    ],
)
def test_settings_that_cannot_be_trained_by(wrong, said):
    with pytest.raises(LmscoutError, match=said):
        replace(RecoverySettings(), **wrong).check()


def test_the_rate_rises_and_falls_by_steps_or_by_the_clock():
    rates = [schedule(step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[0] == pytest.approx(0.2, abs=0.01)  # the first of five steps of warm-up
    assert rates[-1] < 0.03
    assert np.all(np.diff(rates[5:]) < 0)
    assert schedule(50, 100, 0.9) == pytest.approx(schedule(90, 100))
    by_clock = [schedule(step, 10**8, step / 100) for step in range(100)]
    assert max(by_clock) == pytest.approx(1.0, abs=0.01)
    assert by_clock[0] < 0.01
    assert by_clock[-1] < 0.03
    assert np.all(np.diff(by_clock[5:]) < 0)


def parabola(tmp_path, settings, identity=None, size=4, progress=None):
    """Train a vector towards the mean token of each batch."""
    vector = nn.Parameter(torch.zeros(size))
    windows = torch.randint(5, (16, 4), generator=torch.Generator().manual_seed(0))

    def loss_of(_, tokens):
        return ((vector - tokens.float().mean()) ** 2).sum()

    done = train(
        {"vector": vector},
        loss_of,
        windows,
        settings,
        tmp_path / "recovery" / "x.safetensors",
        {"a": 1} if identity is None else identity,
        device=CPU,
        progress=progress,
    )
    return vector, done


PLAIN = RecoverySettings(batch_tokens=8, steps=20, learning_rate=0.1)


def test_a_training_says_what_it_did(tmp_path):
    vector, done = parabola(tmp_path, PLAIN)
    assert (done.steps, done.tokens, done.passes) == (20, 160, 2.5)
    assert done.last < done.first
    assert done.seconds > 0
    again, same = parabola(tmp_path, PLAIN)  # it has ended: nothing is done again
    assert torch.equal(vector, again)
    assert same == done


def test_a_step_is_adamw_with_a_gradient_of_norm_one_at_most(tmp_path):
    """Against AdamW written out; the steps' gradients differ in size by far."""
    sizes = [0.1, 300.0, 0.02, 5.0, 0.3, 900.0, 0.1, 1.0]
    target = torch.tensor([1.0, -2.0, 0.5, 3.0])
    settings = replace(PLAIN, steps=len(sizes))
    vector = nn.Parameter(torch.zeros(4))
    train(
        {"vector": vector},
        lambda step, _: sizes[step] * ((vector - target) ** 2).sum() / 2,
        torch.zeros(16, 4, dtype=torch.int64),
        settings,
        tmp_path / "x.safetensors",
        {},
        device=CPU,
    )
    x, mean, square = (np.zeros(4) for _ in range(3))
    for step, size in enumerate(sizes):
        gradient = size * (x - target.numpy())
        gradient /= max(1.0, np.linalg.norm(gradient))
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        rate = settings.learning_rate * schedule(step, len(sizes))
        down = np.sqrt(square / (1 - 0.95 ** (step + 1))) + 1e-8
        x -= rate * mean / (1 - 0.9 ** (step + 1)) / down
    np.testing.assert_allclose(vector.detach().numpy(), x, rtol=1e-4)


def test_seconds_bound_a_training(tmp_path):
    _, done = parabola(tmp_path, replace(PLAIN, steps=10**7, seconds=0.05))
    assert 0 < done.steps < 10**7
    assert 0.05 <= done.seconds < 5


def test_seconds_alone_are_a_limit_and_the_progress(tmp_path):
    shown = []
    settings = replace(PLAIN, steps=None, seconds=1.5)
    settings.check()
    vector, done = parabola(tmp_path, settings, progress=lambda *step: shown.append(step))
    assert 1.5 <= done.seconds < 10
    assert (shown[0], shown[-1]) == ((0, 2), (2, 2))
    assert sorted(set(shown)) == [(0, 2), (1, 2), (2, 2)]
    target = torch.randint(5, (16, 4), generator=torch.Generator().manual_seed(0)).float().mean()
    assert (vector - target).abs().max() < 0.5  # from 2; its batches' means vary


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"identity": {"a": 2}}, r"trained with a = 1, this run has 2"),
        ({"identity": {}}, r"trained with a = 1, this run has None"),
        ({"size": 5}, r"vector is \[4\] in the file and \[5\] in this model"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, other, said):
    parabola(tmp_path, PLAIN)
    with pytest.raises(LmscoutError, match=said) as error:
        parabola(tmp_path, PLAIN, **other)
    assert "does not fit" in str(error.value)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    parabola(tmp_path, PLAIN)
    file = tmp_path / "recovery" / "x.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(LmscoutError, match="is damaged"):
        parabola(tmp_path, PLAIN)


def test_a_loss_that_is_not_finite_is_one_line(tmp_path):
    with pytest.raises(LmscoutError, match="lower the learning rate"):
        parabola(tmp_path, replace(PLAIN, learning_rate=1e30))


def test_a_training_that_is_killed_comes_to_the_same_weights(tmp_path):
    whole, _ = example(tmp_path / "whole")
    file = tmp_path / "killed" / "x.safetensors"
    process = forking.start(example, file.parent, None, 0.1)
    deadline = time.monotonic() + 60
    while not file.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert forking.exit_code(process) == -signal.SIGKILL
    made: list[int] = []
    continued, _ = example(tmp_path / "killed", made.append)
    assert 0 < made[0] < SETTINGS.last_step(16)  # it did not begin anew, nor was it at its end
    assert weights_digest(continued) == weights_digest(whole)
    lines = [read_log(tmp_path / name) for name in ("whole", "killed")]
    assert [line["step"] for line in lines[1]] == list(range(SETTINGS.steps))
    same = ("loss", "learning_rate", "tokens")
    assert [[line[key] for key in same] for line in lines[0]] == [
        [line[key] for key in same] for line in lines[1]
    ]
    seconds = [line["seconds"] for line in lines[1]]
    assert seconds == sorted(seconds)


def read_log(folder):
    return [json.loads(line) for line in (folder / "x.jsonl").read_text().splitlines()]


def test_the_log_has_the_losses_of_the_checkpoint(tmp_path):
    example(tmp_path)
    state, lines = read_state(tmp_path / "x.safetensors"), read_log(tmp_path)
    assert tuple(line["loss"] for line in lines) == state.losses
    assert lines[-1]["tokens"] == SETTINGS.steps * SETTINGS.batch_tokens
    assert lines[-1]["learning_rate"] == SETTINGS.learning_rate * schedule(23, SETTINGS.steps)
    before = (tmp_path / "x.jsonl").read_bytes()
    example(tmp_path)  # it has ended: nothing is written again
    assert (tmp_path / "x.jsonl").read_bytes() == before


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(LmscoutError, match=r"recovery log .*x\.jsonl: cannot be read \(Is a dir"):
        example(tmp_path)


def test_an_ended_training_keeps_its_adapter_alone(tmp_path):
    weights, identity = example(tmp_path)
    state = read_state(tmp_path / "x.safetensors")
    assert state.identity == identity
    assert weights_digest(state.weights) == weights_digest(weights)
    assert state.ended
    assert not state.optimizer
    assert len(state.losses) == SETTINGS.steps
