"""A text's tokens: made at once, as one row or in windows."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lmscout.errors import LmscoutError
from lmscout.evaluation.cost import vocabulary_size
from lmscout.evaluation.protocols import (
    BOS_NONE,
    BOS_ONCE,
    Protocol,
    attention_span,
    longest_window,
)
from lmscout.evaluation.text import Text

_MARGIN = 64  # tokens at a cut that the text after it could have changed


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    text: Text,
    bos: str = BOS_ONCE,
    limit: int | None = None,
) -> Tensor:
    """A text's tokens, made at once.

    Args:
        tokenizer: the model's.
        text: the text.
        bos: as in `Protocol`.
        limit: how many tokens are wanted.  Only as much of the text is tokenised as surely
            holds them: tokenising costs some 200 bytes of memory a character.

    Returns:
        [tokens] int64.
    """

    def first(characters: int | None) -> Tensor:
        content = text.content[:characters]
        tokens = tokenizer(content, add_special_tokens=bos == BOS_ONCE, verbose=False)
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
    """A text, tokenised once and cut into windows that do not overlap.

    These are the windows that protocol `llm-pruner` scores, where `window` is 128.

    Args:
        tokenizer: the model's.
        text: the text.
        window: tokens a window.
        count: how many windows are wanted, from the text's beginning; all by default.

    Returns:
        [windows, window] int64, at most `count`; the incomplete last window is dropped.

    Raises:
        LmscoutError: the text is shorter than one window.
    """
    tokens = tokenize(tokenizer, text, limit=None if count is None else count * window)
    check_length(tokens, window, text)
    found = len(tokens) // window
    return tokens[: found * window].view(found, window)


def model_windows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Text, window: int
) -> Tensor:
    """A text in windows that do not overlap, all of which a model can read.

    Args:
        model: that is to read them.
        tokenizer: the model's.
        text: the text.
        window: tokens a window.

    Returns:
        [windows, window] int64; the incomplete last window is dropped.

    Raises:
        LmscoutError: the text is shorter than one window, the window is longer than the model
            reads, or the tokenizer is not the model's.
    """
    check_window(window, model.config)
    windows = tokenize_windows(tokenizer, text, window)
    check_vocabulary(windows, model, text)
    return windows


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A tokenizer's size and the digest of its vocabulary."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(vocabulary.encode()).hexdigest()
    return f"{len(tokenizer)} tokens, vocabulary sha256 {digest[:16]}"


def special_tokens(tokenizer: PreTrainedTokenizerBase, protocol: Protocol) -> tuple[str, ...]:
    """The special tokens that a text gets under a protocol."""
    if protocol.bos == BOS_NONE:
        return ()
    return tuple(tokenizer.convert_ids_to_tokens(tokenizer("", verbose=False)["input_ids"]))


def check_length(tokens: Tensor, window: int, text: Text, limit: int | None = None) -> None:
    """Refuse a text of fewer tokens than one window.

    Args:
        tokens: [tokens] of the text.
        window: tokens a window.
        text: the text.
        limit: to how many tokens it was cut; None for all.

    Raises:
        LmscoutError: it is.
    """
    if len(tokens) < window:
        cut = limit is not None and len(tokens) == limit
        remedy = f"raise the limit to {window} or more" if cut else "give a longer text"
        raise LmscoutError(
            f"{text.source}: {len(tokens)} tokens are fewer than one window of {window}; {remedy}"
        )


def check_window(window: int, config: PreTrainedConfig) -> None:
    """Refuse windows that are longer than a model reads with full attention.

    Raises:
        LmscoutError: they are.
    """
    longest = attention_span(config)
    if longest is not None and longest < window:
        positions = longest_window(config)
        slides = positions is None or longest < positions
        why = f"attention slides over {longest}" if slides else f"the model reads {longest}"
        raise LmscoutError(
            f"window: {window} tokens are too many, {why}: give --window {longest} or less, or "
            "leave it out"
        )


def check_vocabulary(tokens: Tensor, model: PreTrainedModel, text: Text) -> None:
    """Refuse tokens that a model does not know.

    Raises:
        LmscoutError: there is one.
    """
    vocabulary = vocabulary_size(model)
    highest = int(tokens.max())
    if highest >= vocabulary:
        raise LmscoutError(
            f"{text.source}: the tokenizer makes token {highest}, the model knows {vocabulary}; "
            "the tokenizer in the folder is not the model's"
        )
