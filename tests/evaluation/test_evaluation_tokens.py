import dataclasses

import pytest
import tiny_checkpoints
import torch
from transformers import AutoTokenizer

from lmscout.errors import LmscoutError
from lmscout.evaluation import Text, model_windows, read_text, tokenize_windows
from lmscout.evaluation.perplexity import describe_tokenizer, tokenize

TEXT = Text("made here", tiny_checkpoints.CONTENT, "its digest")


@pytest.mark.parametrize("name", ["wiki-llama-16m", "stories260K"])
@pytest.mark.parametrize("limit", [0, 1, 500, 4000, 10**6])
def test_tokens_up_to_a_limit_are_the_first_of_the_whole_text(
    shared_models, wikitext_test, name, limit
):
    tokenizer = AutoTokenizer.from_pretrained(shared_models / name)
    text = read_text(str(wikitext_test))
    text = dataclasses.replace(text, content=text.content[:60_000])
    everything = tokenize(tokenizer, text)
    assert everything.tolist() == tokenizer(text.content)["input_ids"]
    assert torch.equal(tokenize(tokenizer, text, limit=limit), everything[:limit])


def test_windows_are_the_text_in_order_without_the_incomplete_tail():
    tokenizer = tiny_checkpoints.byte_tokenizer()
    tokens = tokenizer(TEXT.content)["input_ids"]
    windows = tokenize_windows(tokenizer, TEXT, 48)
    assert windows.shape == (len(tokens) // 48, 48)
    assert windows.flatten().tolist() == tokens[: windows.numel()]


def test_the_first_windows_alone():
    tokenizer = tiny_checkpoints.byte_tokenizer()
    windows = tokenize_windows(tokenizer, TEXT, 32)
    for count in (1, 5, len(windows), len(windows) + 9):
        assert torch.equal(tokenize_windows(tokenizer, TEXT, 32, count), windows[:count])


def test_a_text_shorter_than_a_window_is_one_line():
    short = dataclasses.replace(TEXT, content="too short")
    with pytest.raises(LmscoutError, match="10 tokens are fewer than one window of 128"):
        tokenize_windows(tiny_checkpoints.byte_tokenizer(), short, 128)


@pytest.mark.parametrize("family", [tiny_checkpoints.llama, tiny_checkpoints.gpt2])
def test_a_model_gets_windows_that_it_can_read(family):
    tokenizer, model = tiny_checkpoints.byte_tokenizer(), family(positions=48)
    windows = model_windows(model, tokenizer, TEXT, 48)
    assert torch.equal(windows, tokenize_windows(tokenizer, TEXT, 48))
    with pytest.raises(LmscoutError, match=r"window: 49 tokens are too many, the model reads 48"):
        model_windows(model, tokenizer, TEXT, 49)
    model.resize_token_embeddings(100)
    with pytest.raises(LmscoutError, match=r"makes token \d+, the model knows 100"):
        model_windows(model, tokenizer, TEXT, 48)


def test_a_tokenizer_is_told_by_its_vocabulary(tmp_path):
    tokenizer = tiny_checkpoints.byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    described = describe_tokenizer(tokenizer)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert describe_tokenizer(again) == described
    again.add_tokens(["fox"])
    assert describe_tokenizer(again) != described
