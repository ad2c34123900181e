import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from lmscout.builtin import corpus_digest, corpus_text, tiny_folder
from lmscout.evaluation import Text, load_model, parameter_count, perplexity

RECORD = json.loads((tiny_folder() / "training.json").read_text())
MEASURED = RECORD["measured"]


@pytest.fixture(scope="module")
def tiny():
    return load_model(str(tiny_folder()))


def test_it_is_a_llama_of_3_million_parameters_in_12_blocks(tiny):
    assert isinstance(tiny.model, LlamaForCausalLM)
    assert tiny.model.config.num_hidden_layers == 12
    assert parameter_count(tiny.model) == RECORD["parameters"]
    assert 2.7e6 < RECORD["parameters"] < 3.3e6
    assert tiny.model.config.tie_word_embeddings


def test_it_ships_as_float16_and_in_8_megabytes():
    weights = load_file(tiny_folder() / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert all(weight.isfinite().all() for weight in weights.values())
    assert sum(file.stat().st_size for file in tiny_folder().rglob("*")) <= 8e6


def test_its_loss_is_the_recorded_one(tiny):
    content, digest = corpus_text("validation"), corpus_digest("validation")
    text = Text("built-in text, validation", content, digest)
    limit = MEASURED["slice_tokens"]
    found = perplexity(tiny.model, tiny.tokenizer, text, MEASURED["protocol"], limit_tokens=limit)
    recorded = MEASURED["slice"]
    if digest == RECORD["text"]["validation_sha256"]:
        assert found.tokens == recorded["tokens"]
        assert found.nll == pytest.approx(recorded["nll"], abs=1e-3)
    else:  # another version of Python, and of the documents with it
        assert found.nll == pytest.approx(recorded["nll"], abs=0.4)


def test_the_record_is_of_one_run():
    history, settings = RECORD["history"], RECORD["settings"]
    assert len(history) == settings["evaluations"]
    assert [one["step"] for one in history] == sorted({one["step"] for one in history})
    assert history[-1]["step"] == RECORD["steps"]
    losses = [one["validation_loss"] for one in history]
    assert RECORD["chosen"] == history[losses.index(min(losses))]
    # Training measured in the same windows, in float32 or TF32, before rounding to float16.
    assert MEASURED["validation"]["nll"] == pytest.approx(min(losses), abs=2e-3)
    for other in RECORD["compared"]:
        assert other["chosen"]["validation_loss"] >= min(losses)


def test_it_is_trained_until_it_gets_no_better():
    losses = [one["validation_loss"] for one in RECORD["history"]]
    assert losses[-1] > min(losses)
    assert MEASURED["test"]["perplexity"] < 25


def test_the_card_says_what_the_record_says():
    card = (tiny_folder() / "README.md").read_text(encoding="utf-8")
    for side in ("validation", "test"):
        measured = MEASURED[side]
        assert f"| {side} | {measured['nll']:.4f} | {measured['perplexity']:.2f} |" in card
    for number in (RECORD["parameters"], RECORD["text"]["train_tokens"], RECORD["steps"]):
        assert f"{number:,}" in card


def test_it_continues_python(tiny):
    prompt = "import os\nimport sys\n\ndef main("
    tokens = tiny.tokenizer(prompt, return_tensors="pt")
    found = tiny.model.generate(**tokens, max_new_tokens=24, do_sample=False, pad_token_id=0)
    line = tiny.tokenizer.decode(found[0])[len(prompt) :].splitlines()[0]
    assert line.endswith("):")
