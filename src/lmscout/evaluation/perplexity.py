"""Tokens of a text, and perplexity under a named protocol that every value carries.

On one model and one text, windows of 128 and of 512 tokens give perplexities that differ by a
sixth, so a value states its text, its windows, its special tokens and its tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lmscout.errors import LmscoutError
from lmscout.evaluation.cost import vocabulary_size
from lmscout.evaluation.text import Text, coded, rendered
from lmscout.progress import StageProgress

_LOGITS = 1 << 26  # logits per forward pass, 256 MiB in float32, unless a window has more
_PIECE = 1 << 22  # logits whose loss is computed at a time
_MARGIN = 64  # tokens at a cut that the text after it could have changed
_SLIDING = ("mistral", "mixtral", "phi3")  # all layers slide, and no `layer_types` says so


@dataclass(frozen=True)
class Protocol:
    """How a text, tokenised once as a whole, is cut, and which tokens are scored.

    With `stride` equal to `window`, windows do not overlap, the first token of each is not
    scored, and the incomplete last window is dropped.  With a smaller `stride`, each window
    scores its last `stride` tokens, the first one all that have a predecessor, and a last window
    that ends with the text scores the rest: every token but the first is scored once, each beyond
    the first window with at least `window - stride` tokens of context.
    """

    name: str  # as given on the command line
    window: int  # tokens per window
    stride: int  # tokens from the start of one window to the next
    note: str  # source of the protocol
    # special tokens of the tokenizer (BOS before the text, for most; none for GPT-2's) are added
    # once to the text, not to each window
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
    """(number of last tokens scored, start) of each window of a text, in order."""
    window, stride = protocol.window, protocol.stride
    starts = range(0, tokens - window + 1, stride)
    if stride == window:
        return [(window - 1, start) for start in starts]
    spans = [(window - 1 if start == 0 else stride, start) for start in starts]
    left = tokens - (starts[-1] + window)
    return [*spans, (left, tokens - window)] if left else spans


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and all that it depends on."""

    value: float  # exp(nll)
    nll: float  # mean negative log-likelihood of a scored token, nats
    tokens: int  # number of scored tokens
    windows: int  # number of windows
    protocol: Protocol  # as applied, with the window that the model allowed
    special_tokens: tuple[str, ...]  # those that the tokenizer added to the text
    source: str  # of the text
    text_sha256: str  # of the text
    tokenizer: str  # its size and a digest of its vocabulary
    limit_tokens: int | None = None  # first tokens of the text that were used; None for all

    def to_json(self) -> dict[str, object]:
        """The value with its whole protocol, as the command line prints it."""
        values = asdict(self)
        return {"text": values.pop("source"), "perplexity": values.pop("value"), **values}


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Text,
    protocol: Protocol | str,
    *,
    batch_tokens: int = 4096,
    limit_tokens: int | None = None,
    progress: StageProgress | None = None,
) -> Perplexity:
    """Perplexity of a causal language model in eval mode on a text.

    Args:
        model: its forward takes `input_ids` and returns `logits`.
        tokenizer: the model's.
        text: the text.
        protocol: a protocol, or the name of one of `PROTOCOLS`.
        batch_tokens: tokens per forward pass, at most, and at least one window; fewer if the
            logits would take more than 256 MiB.
        limit_tokens: first tokens of the text that are used; None for all.
        progress: called with the number of windows done and of all.

    Raises:
        LmscoutError: as `checked_tokens`, or the loss is not finite.
    """
    if model.training:
        raise ValueError("the model is in training mode; call its eval() first")
    protocol, tokens = checked_tokens(model, tokenizer, text, protocol, limit_tokens)
    rows = min(batch_tokens, _LOGITS // vocabulary_size(model)) // protocol.window
    spans = scored_spans(len(tokens), protocol)
    total, scored_tokens, done = 0.0, 0, 0
    for scored, starts in _batches(spans, max(1, rows)):
        windows = torch.stack([tokens[start : start + protocol.window] for start in starts])
        loss = _loss(model, windows, scored)
        if not math.isfinite(loss):
            raise LmscoutError(
                f"{text.source}: the model's loss is not finite in tokens {starts[0]} to "
                f"{starts[-1] + protocol.window}; its weights are damaged, or {model.dtype} is "
                "too narrow for it (load it as float32)"
            )
        total += loss
        scored_tokens += scored * len(starts)
        done += len(starts)
        if progress is not None:
            progress(done, len(spans))
    nll = total / scored_tokens
    try:
        value = math.exp(nll)
    except OverflowError:
        raise LmscoutError(
            f"{text.source}: the loss, {nll:.3g} nats/token, has no finite perplexity; the "
            "model's weights are damaged"
        ) from None
    return Perplexity(
        value=value,
        nll=nll,
        tokens=scored_tokens,
        windows=len(spans),
        protocol=protocol,
        special_tokens=tuple(
            tokenizer.convert_ids_to_tokens(tokenizer("", verbose=False)["input_ids"])
        ),
        source=text.source,
        text_sha256=text.sha256,
        tokenizer=describe_tokenizer(tokenizer),
        limit_tokens=limit_tokens,
    )


def checked_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Text,
    protocol: Protocol | str,
    limit_tokens: int | None = None,
) -> tuple[Protocol, Tensor]:
    """Check the arguments of `perplexity` without a forward pass.

    Returns:
        The protocol with the window that the model allows, and the text's tokens [tokens].

    Raises:
        LmscoutError: the protocol is unknown or its windows are longer than the model reads,
            the text is shorter than one window, or the tokenizer is not the model's.
    """
    protocol = fit_protocol(protocol, model.config)
    tokens = tokenize(tokenizer, text, limit_tokens)
    _check_length(tokens, protocol.window, text, limit_tokens)
    _check_vocabulary(tokens, model, text)
    return protocol, tokens


def tokenize(tokenizer: PreTrainedTokenizerBase, text: Text, limit: int | None = None) -> Tensor:
    """Tokenise a text as a whole, with the special tokens that the tokenizer adds: [tokens] int64.

    Chats are rendered by the tokenizer's template, which has the special tokens that it needs. With
    a limit, only a part of the text that surely holds so many tokens is tokenised: that costs some
    200 bytes of memory per character.

    Raises:
        LmscoutError: the tokenizer has no chat template for chats, or it refuses them.
    """
    if text.chats:
        return rendered(tokenizer, text.chats, text.source, limit=limit)[0]

    def first(characters: int | None) -> Tensor:
        content = text.content[:characters]
        tokens = tokenizer(content, verbose=False)
        return torch.tensor(tokens["input_ids"], dtype=torch.int64)

    characters = len(text.content) if limit is None else 8 * (limit + _MARGIN)
    while limit is not None and characters < len(text.content):
        tokens = first(characters)
        if len(tokens) >= limit + _MARGIN:
            return tokens[:limit]
        characters *= 2
    return first(None)[:limit]


def tokenize_windows(
    tokenizer: PreTrainedTokenizerBase, text: Text, window: int, count: int | None = None
) -> Tensor:
    """Tokenise a text once and cut it into windows that do not overlap.

    Protocol `llm-pruner` scores these windows if `window` is 128.

    Returns:
        [windows, window] int64, from the text's start, `count` at most; the incomplete last window
        is dropped.

    Raises:
        LmscoutError: the text is shorter than one window.
    """
    tokens = tokenize(tokenizer, text, None if count is None else count * window)
    _check_length(tokens, window, text)
    found = len(tokens) // window
    return tokens[: found * window].view(found, window)


def model_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Text,
    window: int,
    *,
    learned: bool = False,
) -> Tensor:
    """The windows of `tokenize_windows`, checked against a model.

    With `learned`, tokens of chats that are not of the assistant are coded as `coded` does.

    Raises:
        LmscoutError: the text is shorter than one window, the window is longer than the model
            reads, or the tokenizer is not the model's.
    """
    check_window(window, model.config)
    windows = tokenize_windows(tokenizer, text, window)
    _check_vocabulary(windows, model, text)
    if learned and text.chats:
        both = rendered(tokenizer, text.chats, text.source, masks=True)
        windows = coded(*both)[: windows.numel()].view(windows.shape)
    return windows


def check_window(window: int, config: PreTrainedConfig) -> None:
    """Raise LmscoutError if windows are longer than a model reads with full attention."""
    longest = attention_span(config)
    if longest is not None and longest < window:
        positions = longest_window(config)
        slides = positions is None or longest < positions
        why = f"attention slides over {longest}" if slides else f"the model reads {longest}"
        raise LmscoutError(
            f"window: {window} tokens are too many, {why}: give a window of {longest} or less, or "
            "leave it out"
        )


def _check_length(tokens: Tensor, window: int, text: Text, limit: int | None = None) -> None:
    if len(tokens) < window:
        cut = limit is not None and len(tokens) == limit
        remedy = f"raise the limit to {window} or more" if cut else "give a longer text"
        raise LmscoutError(
            f"{text.source}: {len(tokens)} tokens are fewer than one window of {window}; {remedy}"
        )


def _check_vocabulary(tokens: Tensor, model: PreTrainedModel, text: Text) -> None:
    vocabulary, highest = vocabulary_size(model), int(tokens.max())
    if highest >= vocabulary:
        raise LmscoutError(
            f"{text.source}: the tokenizer makes token {highest}, the model knows {vocabulary}; "
            "the tokenizer in the folder is not the model's"
        )


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The size of a tokenizer and the digest of its vocabulary."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(vocabulary.encode()).hexdigest()
    return f"{len(tokenizer)} tokens, vocabulary sha256 {digest[:16]}"


def _batches(spans: list[tuple[int, int]], rows: int) -> Iterator[tuple[int, list[int]]]:
    """Consecutive windows that score equally many tokens, at most `rows` at a time."""
    for scored, group in groupby(spans, key=itemgetter(0)):
        starts = [start for _, start in group]
        for first in range(0, len(starts), rows):
            yield scored, starts[first : first + rows]


def _loss(model: PreTrainedModel, windows: Tensor, scored: int) -> float:
    """Summed negative log-likelihood of the last `scored` tokens of each window [B, T]."""
    windows = windows.to(next(model.parameters()).device)
    logits = model(input_ids=windows, use_cache=False).logits
    piece = max(1, _PIECE // logits.shape[-1])
    total = 0.0
    for row, tokens in zip(logits, windows.to(logits.device), strict=True):
        predicted, targets = row[-scored - 1 : -1], tokens[-scored:]
        for some, wanted in zip(predicted.split(piece), targets.split(piece), strict=True):
            losses = cross_entropy(some.float(), wanted, reduction="none")
            total += losses.cpu().double().sum().item()  # some devices have no float64
    return total
