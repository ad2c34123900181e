import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import tiny as trainer
from corpus_tokens import Corpus, read_corpus, write_corpus

SCRIPT = Path(trainer.__file__)
SETTINGS = trainer.Settings(
    width=16,
    blocks=2,
    heads=2,
    inner=24,
    vocabulary=48,
    window=16,
    batch=4,
    epochs=1.5,
    learning_rate=0.02,
    weight_decay=0.1,
    evaluations=10,
)
OPTIONS = [
    f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(SETTINGS).items()
]


def sides():
    """Tokens of which every second one follows from the one before."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for side, pairs in (("train", 2000), ("validation", 200), ("test", 200)):
        first = torch.randint(24, (pairs,), generator=draw)
        found[side] = torch.stack([first, 47 - first], dim=1).flatten()
    return found


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    write_corpus(Corpus(sides(), {"python": "none"}), file)
    return file


@pytest.fixture(scope="module")
def undisturbed(tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    trainer.main([str(folder), "--tokens", str(tokens), *OPTIONS])
    return folder


def record(folder):
    return json.loads((folder / "training.json").read_text())


def test_a_file_of_tokens_is_what_was_written(tokens):
    corpus = read_corpus(tokens)
    assert corpus.made_of == {"python": "none"}
    for side, expected in sides().items():
        assert corpus.sides[side].dtype == torch.int64
        assert torch.equal(corpus.sides[side], expected)


def test_it_learns_and_keeps_its_best_weights(undisturbed):
    found = record(undisturbed)
    losses = [one["validation_loss"] for one in found["history"]]
    assert len(losses) == SETTINGS.evaluations
    # Half of the tokens can be predicted, half cannot.
    assert losses[0] > 2.6
    assert 0.5 * math.log(24) < min(losses) < 0.5 * math.log(24) + 0.5
    assert found["chosen"]["validation_loss"] == min(losses)
    model = LlamaForCausalLM.from_pretrained(undisturbed, dtype=torch.float32).eval()
    windows = sides()["validation"][: 3 * 128].view(3, 128)
    with torch.inference_mode():
        logits = model(input_ids=windows).logits[:, :-1].log_softmax(-1)
    nll = -logits.gather(-1, windows[:, 1:, None]).mean().item()
    assert nll == pytest.approx(min(losses), abs=5e-3)  # the file is float16


def assert_same_run(folder, undisturbed):
    assert record(folder)["history"] == record(undisturbed)["history"]
    for name in ("model.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
    expected = load_file(undisturbed / "checkpoint.safetensors")
    for name, tensor in load_file(folder / "checkpoint.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_interrupted_and_started_again_it_ends_with_the_same_weights(undisturbed, tokens, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    arguments = [str(tmp_path), "--tokens", str(tokens), *OPTIONS]
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5 * record(undisturbed)["seconds"])
        with pytest.raises(KeyboardInterrupt):
            trainer.main(arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not (tmp_path / "training.json").exists()
    trainer.main(arguments)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_weights(undisturbed, tokens, tmp_path):
    arguments = [str(tmp_path), "--tokens", str(tokens), *OPTIONS]
    run = subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = [run.stdout.readline() for _ in range(2)]
    run.kill()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL, errors
    assert lines[-1].startswith("step "), errors
    assert not (tmp_path / "model.safetensors").exists()
    trainer.main(arguments)
    assert_same_run(tmp_path, undisturbed)


def test_other_settings_do_not_go_on_from_a_checkpoint(undisturbed, tokens):
    before = (undisturbed / "checkpoint.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="is of other settings or another text"):
        trainer.main([str(undisturbed), "--tokens", str(tokens), *OPTIONS, "--seed=1"])
    assert (undisturbed / "checkpoint.safetensors").read_bytes() == before


def test_an_epoch_reads_every_window_once():
    tokens = torch.arange(1000)
    steps = trainer.steps_an_epoch(len(tokens), SETTINGS)
    epochs = []
    for epoch in range(3):
        windows = [trainer.batch_of(tokens, SETTINGS, epoch * steps + n) for n in range(steps)]
        starts = torch.cat(windows)[:, 0]
        assert torch.equal(torch.cat(windows), starts[:, None] + torch.arange(17))
        assert len(starts.unique()) == len(starts) == steps * SETTINGS.batch
        assert len((starts % SETTINGS.window).unique()) == 1
        assert len(starts) * SETTINGS.window > len(tokens) - 6 * SETTINGS.window
        epochs.append(starts)
    assert not torch.equal(epochs[0], epochs[1])
    assert len({int(starts[0]) % SETTINGS.window for starts in epochs}) > 1


def test_the_rate_rises_and_falls():
    rates = [trainer.learning_rate(SETTINGS, step, 1000) for step in range(1000)]
    peak = rates.index(max(rates))
    assert peak == 19  # the last step of the warm-up, of 2 %
    assert max(rates) == SETTINGS.learning_rate
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[20 + 490] == pytest.approx(0.505 * SETTINGS.learning_rate)  # half of the way
    assert rates[-1] == pytest.approx(SETTINGS.floor * SETTINGS.learning_rate, rel=1e-3)
