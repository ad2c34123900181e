"""Protocols of perplexity: how a text is cut into windows, and which tokens are scored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from lmscout.errors import LmscoutError

_SLIDING = ("mistral", "mixtral", "phi3")  # all layers slide, and no `layer_types` says so


@dataclass(frozen=True)
class Protocol:
    """How a text, tokenised once as a whole, is cut, and which tokens are scored.

    With `stride` equal to `window`, windows do not overlap, the first token of each is not
    scored, and the incomplete last window is dropped.  With a smaller `stride`, each window
    scores its last `stride` tokens, the first one all that have a predecessor, and a last window
    that ends with the text scores the rest: every token but the first is scored once, each beyond
    the first window with at least `window - stride` tokens of context.

    Attributes:
        name: as given on the command line.
        window: tokens per window.
        stride: tokens from the start of one window to the next.
        note: source of the protocol.
        bos: "once": the special tokens that the tokenizer adds (BOS before the text, for most;
            nothing, for GPT-2's) are added to the text, not to each window.
    """

    name: str
    window: int
    stride: int
    note: str
    bos: str = "once"


PROTOCOLS: tuple[Protocol, ...] = (
    Protocol(
        *("llm-pruner", 128, 128),
        "LLM-Pruner (arXiv 2305.11627): rows joined by blank lines; a file is taken as it is",
    ),
    Protocol("windows-512", 512, 512, "as llm-pruner, with windows of 512"),
    Protocol(
        *("sliding", 2048, 1024),
        "windows as long as the model reads, at most 2048, that overlap by half",
    ),
    Protocol("sliding-1024", 1024, 512, "windows of 1024 that overlap by half"),
)


def protocol_of(name: str) -> Protocol:
    """The protocol of a name; raises LmscoutError if it is unknown."""
    for protocol in PROTOCOLS:
        if protocol.name == name:
            return protocol
    known = ", ".join(protocol.name for protocol in PROTOCOLS)
    raise LmscoutError(f"unknown protocol {name!r}; known are {known}")


def fit_protocol(protocol: Protocol | str, config: PreTrainedConfig) -> Protocol:
    """The protocol for a model; only "sliding" adapts its window.

    Raises:
        LmscoutError: the protocol is unknown, or its window is longer than the model reads.
    """
    if isinstance(protocol, str):
        protocol = protocol_of(protocol)
    longest = longest_window(config)
    if longest is None or longest >= protocol.window:
        return protocol
    if protocol.name != "sliding":
        raise LmscoutError(
            f"protocol {protocol.name}: the model reads {longest} tokens, fewer than the "
            f"window of {protocol.window}; use sliding"
        )
    return replace(protocol, window=longest, stride=longest // 2)


def longest_window(config: PreTrainedConfig) -> int | None:
    """The number of positions of a model; None if its configuration names no bound."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or None


def attention_span(config: PreTrainedConfig) -> int | None:
    """Tokens over which every layer attends to all before it; None without a bound.

    The number of positions, or the window of sliding attention if any layer slides.
    """
    window = getattr(config.get_text_config(), "sliding_window", None) if slides(config) else None
    bounds = [longest_window(config), window]
    return min((one for one in bounds if one), default=None)


def slides(config: PreTrainedConfig) -> bool:
    """Whether attention of any layer slides, if the model has a window for it."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ()
    return "sliding_attention" in kinds or plain_type(text) in _SLIDING


def plain_type(config: PreTrainedConfig) -> str:
    """The `model_type` of the family, also for a model of blocks of different sizes."""
    return config.model_type.removeprefix("lmscout_")


def scored_spans(tokens: int, protocol: Protocol) -> list[tuple[int, int]]:
    """The windows of a text.

    Args:
        tokens: number of tokens of the text; at least one window.
        protocol: how it is cut.

    Returns:
        (number of last tokens scored, start) of each window, in the order of the text.
    """
    window, stride = protocol.window, protocol.stride
    starts = range(0, tokens - window + 1, stride)
    if stride == window:
        return [(window - 1, start) for start in starts]
    spans = [(window - 1 if start == 0 else stride, start) for start in starts]
    left = tokens - (starts[-1] + window)
    return [*spans, (left, tokens - window)] if left else spans
