import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig

from lmscout.errors import LmscoutError
from lmscout.evaluation.perplexity import (
    PROTOCOLS,
    Protocol,
    fit_protocol,
    protocol_of,
    scored_spans,
)


def cut(window, stride):
    return Protocol("a test's", window, stride, "")


@given(st.integers(2, 300), st.integers(2, 60), st.data())
def test_every_token_is_scored_once_with_its_context(tokens, window, data):
    window = min(window, tokens)
    stride = data.draw(st.integers(1, window))
    spans = scored_spans(tokens, cut(window, stride))
    scored = [at for count, start in spans for at in range(start + window - count, start + window)]
    if stride == window:
        kept = tokens // window * window
        assert scored == [at for at in range(kept) if at % window]
    else:
        assert scored == list(range(1, tokens))
        assert all(window - count >= window - stride for count, _ in spans[1:])
    assert all(start >= 0 and start + window <= tokens for _, start in spans)


def test_the_named_protocols():
    names = [protocol.name for protocol in PROTOCOLS]
    assert names == ["llm-pruner", "windows-512", "sliding", "sliding-1024"]
    cuts = [(protocol.window, protocol.stride) for protocol in PROTOCOLS]
    assert cuts == [(128, 128), (512, 512), (2048, 1024), (1024, 512)]
    assert {protocol.bos for protocol in PROTOCOLS} == {"once"}
    with pytest.raises(LmscoutError, match=r"'slidin'.*llm-pruner, windows-512"):
        protocol_of("slidin")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=131072), (2048, 1024)),
        (LlamaConfig(max_position_embeddings=2048), (2048, 1024)),
        (LlamaConfig(max_position_embeddings=1001), (1001, 500)),
        (GPT2Config(n_positions=1024), (1024, 512)),
    ],
)
def test_sliding_takes_the_window_that_the_model_reads(config, expected):
    fitted = fit_protocol("sliding", config)
    assert (fitted.window, fitted.stride) == expected
    assert (fitted.name, fitted.note) == ("sliding", protocol_of("sliding").note)


def test_other_protocols_keep_their_window_or_are_refused():
    config = LlamaConfig(max_position_embeddings=512)
    assert fit_protocol("windows-512", config) == protocol_of("windows-512")
    assert fit_protocol(cut(512, 7), config) == cut(512, 7)
    for protocol in ("sliding-1024", cut(513, 513)):
        with pytest.raises(LmscoutError, match="the model reads 512 tokens"):
            fit_protocol(protocol, config)
