import dataclasses
import json
import math

import pytest
import tiny_checkpoints
import torch

from lmscout.errors import LmscoutError
from lmscout.evaluation import (
    Text,
    load_model,
    perplexity,
    protocol_of,
    read_text,
    tokenize_windows,
)
from lmscout.evaluation.perplexity import Protocol, describe_tokenizer

TEXT = Text("made here", tiny_checkpoints.CONTENT, "its digest")
MODELS = {"llama": tiny_checkpoints.llama, "gpt2": tiny_checkpoints.gpt2}


def cut(window, stride):
    return Protocol("a test's", window, stride, "")


@torch.no_grad()
def token_losses(model, tokens):
    """Negative log-likelihood of every token but the first of one window, float64."""
    probabilities = model(torch.tensor(tokens)[None]).logits[0].double().log_softmax(-1)
    return [-probabilities[at - 1, tokens[at]].item() for at in range(1, len(tokens))]


def by_windows(model, tokens, window):
    losses = []
    for start in range(0, len(tokens) - window + 1, window):
        losses += token_losses(model, tokens[start : start + window])
    return losses


def by_sliding(model, tokens, window, stride):
    """Each token after the first, once, in the earliest window that holds it."""
    losses, by_start = [], {}
    for at in range(1, len(tokens)):
        start = 0
        while at >= start + window:
            start += stride
        start = min(start, len(tokens) - window)
        if start not in by_start:
            by_start[start] = token_losses(model, tokens[start : start + window])
        losses.append(by_start[start][at - start - 1])
    return losses


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_windows_that_do_not_overlap_equal_a_plain_loop(name, batch_tokens):
    model, tokenizer = MODELS[name](), tiny_checkpoints.byte_tokenizer()
    tokens = tokenizer(TEXT.content)["input_ids"]
    assert len(tokens) % 32
    losses = by_windows(model, tokens, 32)
    found = perplexity(model, tokenizer, TEXT, cut(32, 32), batch_tokens=batch_tokens)
    assert found.tokens == len(losses) == 31 * found.windows == 31 * (len(tokens) // 32)
    assert found.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.value == math.exp(found.nll)
    assert found.value > 300  # the model is far from the uniform guess, and so can be wrong


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("window", "stride"), [(32, 16), (32, 5), (17, 16), (200, 100)])
def test_windows_that_overlap_equal_a_plain_loop(name, window, stride):
    model, tokenizer = MODELS[name](), tiny_checkpoints.byte_tokenizer()
    text = dataclasses.replace(TEXT, content=TEXT.content[:290])
    tokens = tokenizer(text.content)["input_ids"]
    losses = by_sliding(model, tokens, window, stride)
    found = perplexity(model, tokenizer, text, cut(window, stride), batch_tokens=100)
    assert found.tokens == len(losses) == len(tokens) - 1
    assert found.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_bos_stands_before_the_text_once_and_is_stated():
    model, tokenizer = tiny_checkpoints.llama(), tiny_checkpoints.byte_tokenizer()
    windows = tokenize_windows(tokenizer, TEXT, 32)
    assert windows.dtype == torch.int64
    assert windows.flatten().tolist().count(tokenizer.bos_token_id) == 1
    assert windows[0, 0] == tokenizer.bos_token_id
    found = perplexity(model, tokenizer, TEXT, cut(32, 32))
    assert found.special_tokens == (tiny_checkpoints.BOS,)
    assert found.nll == pytest.approx(
        torch.tensor([token_losses(model, row) for row in windows.tolist()]).mean().item(), rel=1e-5
    )


def test_no_bos_where_the_tokenizer_adds_none():
    model = tiny_checkpoints.llama()
    plain, adding = tiny_checkpoints.byte_tokenizer(bos=False), tiny_checkpoints.byte_tokenizer()
    found = perplexity(model, plain, TEXT, cut(32, 32))
    assert found.special_tokens == ()
    assert perplexity(model, adding, TEXT, cut(32, 32)).nll != found.nll
    assert plain.bos_token_id not in tokenize_windows(plain, TEXT, 32)


def test_a_limit_uses_the_first_tokens():
    model, tokenizer = tiny_checkpoints.llama(), tiny_checkpoints.byte_tokenizer()
    limited = perplexity(model, tokenizer, TEXT, cut(32, 32), limit_tokens=200)
    shorter = dataclasses.replace(TEXT, content=TEXT.content[:199])  # and BOS
    assert limited.nll == perplexity(model, tokenizer, shorter, cut(32, 32)).nll
    assert (limited.windows, limited.limit_tokens) == (6, 200)


def test_sliding_takes_the_window_that_the_model_reads_and_states_it():
    tokenizer = tiny_checkpoints.byte_tokenizer()
    found = perplexity(tiny_checkpoints.llama(200), tokenizer, TEXT, "sliding")
    assert (found.protocol.window, found.protocol.stride) == (200, 100)
    expected = perplexity(tiny_checkpoints.llama(200), tokenizer, TEXT, cut(200, 100))
    assert found.nll == expected.nll


def test_the_json_carries_the_whole_protocol():
    tokenizer = tiny_checkpoints.byte_tokenizer()
    found = perplexity(tiny_checkpoints.llama(), tokenizer, TEXT, "llm-pruner")
    result = json.loads(json.dumps(found.to_json()))
    assert result["protocol"] == {
        "name": "llm-pruner",
        "window": 128,
        "stride": 128,
        "bos": "once",
        "note": protocol_of("llm-pruner").note,
    }
    assert (result["text"], result["text_sha256"]) == ("made here", "its digest")
    assert (result["perplexity"], result["nll"]) == (found.value, found.nll)
    assert result["special_tokens"] == [tiny_checkpoints.BOS]
    assert result["tokenizer"] == describe_tokenizer(tokenizer)
    assert (result["windows"], result["tokens"]) == (7, 7 * 127)


def test_progress_counts_windows():
    seen = []
    perplexity(
        tiny_checkpoints.llama(),
        tiny_checkpoints.byte_tokenizer(),
        TEXT,
        cut(32, 16),
        batch_tokens=320,
        progress=lambda done, total: seen.append((done, total)),
    )
    total = seen[0][1]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)


def test_logits_stay_bounded_where_the_vocabulary_is_large():
    model = tiny_checkpoints.llama(vocab_size=1 << 18)
    sizes = []
    model.lm_head.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
    tokenizer, protocol = tiny_checkpoints.byte_tokenizer(), cut(64, 64)
    found = perplexity(model, tokenizer, TEXT, protocol, limit_tokens=320)
    assert sizes == [1 << 26, 1 << 24]  # four windows, and the fifth
    one_by_one = perplexity(model, tokenizer, TEXT, protocol, limit_tokens=320, batch_tokens=64)
    assert len(sizes) == 2 + 5
    assert found.nll == pytest.approx(one_by_one.nll, rel=1e-6)


def broken(factor):
    model = tiny_checkpoints.llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(factor)
    return model


def refusal(model, protocol="llm-pruner", text=TEXT, tokenizer=None, **options):
    with pytest.raises(LmscoutError) as error:
        perplexity(model, tokenizer or tiny_checkpoints.byte_tokenizer(), text, protocol, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_a_user_can_mend_is_one_line():
    model = tiny_checkpoints.llama()
    short = dataclasses.replace(TEXT, content="too short")
    assert "10 tokens are fewer than one window of 128" in refusal(model, text=short)
    assert "fewer than one window" in refusal(model, limit_tokens=127)
    assert "the model reads 256" in refusal(model, "windows-512")
    assert "llm-pruner" in refusal(model, "sliding-104")
    assert "not finite" in refusal(broken(math.nan))
    assert "not finite" in refusal(broken(math.inf))
    assert "no finite perplexity" in refusal(broken(1e5))
    assert "not the model's" in refusal(tiny_checkpoints.llama(vocab_size=100))


def test_a_model_in_training_mode_is_a_defect_of_the_caller():
    with pytest.raises(ValueError, match="eval"):
        perplexity(
            tiny_checkpoints.llama().train(), tiny_checkpoints.byte_tokenizer(), TEXT, "llm-pruner"
        )


@pytest.mark.parametrize("name", ["wiki-llama-16m", "stories260K"])
def test_trained_models_equal_a_plain_loop(shared_models, wikitext_test, name):
    loaded = load_model(str(shared_models / name))
    text = read_text(str(wikitext_test))
    text = dataclasses.replace(text, content=text.content[:3000])
    tokens = loaded.tokenizer(text.content)["input_ids"]
    assert tokens[0] == loaded.model.config.bos_token_id
    losses = by_windows(loaded.model, tokens, 128)
    found = perplexity(loaded.model, loaded.tokenizer, text, "llm-pruner")
    assert found.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.tokens == len(losses)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "key"),
    [("llm-pruner", "wikitext2_test_ppl_128"), ("windows-512", "wikitext2_test_ppl_512")],
)
def test_the_figures_recorded_at_training(shared_models, wikitext_test, protocol, key):
    folder = shared_models / "wiki-llama-16m"
    recorded = json.loads((folder / "training.json").read_text())[key]
    loaded = load_model(str(folder))
    found = perplexity(loaded.model, loaded.tokenizer, read_text(str(wikitext_test)), protocol)
    # The weights on disk were rounded to float16 after the figure was taken.
    assert found.value == pytest.approx(recorded, abs=1e-3)
