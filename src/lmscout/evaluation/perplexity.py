"""Perplexity under a named protocol, which every value carries with it.

A perplexity says nothing without how the text was cut: on one model and one text, windows of
128 and of 512 tokens differ by a sixth.  So the protocols are a table, and a value states its
text, its windows, what was put before the text, and its tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmscout.errors import LmscoutError
from lmscout.evaluation.cost import vocabulary_size
from lmscout.evaluation.protocols import Protocol, fit_protocol, scored_spans
from lmscout.evaluation.text import Text
from lmscout.evaluation.tokens import (
    check_length,
    check_vocabulary,
    describe_tokenizer,
    special_tokens,
    tokenize,
)
from lmscout.progress import StageProgress

_LOGITS = 1 << 26  # elements of one forward's logits, 256 MiB in float32, unless a window has more
_PIECE = 1 << 22  # elements of them that the loss works on at a time


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and all that it depends on.

    Attributes:
        value: exp(nll).
        nll: mean negative log-likelihood of a scored token, nats.
        tokens: number of scored tokens.
        windows: number of windows.
        protocol: as applied, with the window that the model allowed.
        special_tokens: what stood in the text because of `protocol.bos`; empty for nothing.
        source: where the text is from.
        text_sha256: of the text.
        tokenizer: its size and a digest of its vocabulary.
        limit_tokens: how much of the text was used at most; None for all.
    """

    value: float
    nll: float
    tokens: int
    windows: int
    protocol: Protocol
    special_tokens: tuple[str, ...]
    source: str
    text_sha256: str
    tokenizer: str
    limit_tokens: int | None = None

    def to_json(self) -> dict[str, object]:
        """The value with its whole protocol, as the command line prints it."""
        return {
            "text": self.source,
            "text_sha256": self.text_sha256,
            "perplexity": self.value,
            "nll": self.nll,
            "tokens": self.tokens,
            "windows": self.windows,
            "limit_tokens": self.limit_tokens,
            "protocol": asdict(self.protocol),
            "special_tokens": list(self.special_tokens),
            "tokenizer": self.tokenizer,
        }


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
    """Perplexity of a causal language model on a text.

    Args:
        model: in eval mode; its forward takes `input_ids` and returns `logits`.
        tokenizer: the model's.
        text: the text.
        protocol: one of `PROTOCOLS`, its name, or another.
        batch_tokens: tokens a forward, at most, and at least one window; fewer where the
            vocabulary is so large that the logits would take more than 256 MiB.
        limit_tokens: use only so many tokens from the text's beginning.
        progress: called with the number of windows done and of all.

    Returns:
        The perplexity with its protocol.

    Raises:
        LmscoutError: the protocol is unknown or asks for longer windows than the model reads,
            the text is shorter than one window, the tokenizer is not the model's, or the loss
            is not finite.
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
    return Perplexity(
        value=_exp(nll, text),
        nll=nll,
        tokens=scored_tokens,
        windows=len(spans),
        protocol=protocol,
        special_tokens=special_tokens(tokenizer, protocol),
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
    """What `perplexity` would measure, as far as can be told without the model's forward.

    Args:
        model: that is to read the text.
        tokenizer: the model's.
        text: the text.
        protocol: one of `PROTOCOLS`, its name, or another.
        limit_tokens: make only so many tokens, from the text's beginning.

    Returns:
        The protocol with the window that the model allows, and the text's tokens [tokens].

    Raises:
        LmscoutError: the protocol is unknown or asks for longer windows than the model reads,
            the text is shorter than one window, or the tokenizer is not the model's.
    """
    protocol = fit_protocol(protocol, model.config)
    tokens = tokenize(tokenizer, text, protocol.bos, limit_tokens)
    check_length(tokens, protocol.window, text, limit_tokens)
    check_vocabulary(tokens, model, text)
    return protocol, tokens


def _batches(spans: list[tuple[int, int]], rows: int) -> Iterator[tuple[int, list[int]]]:
    """Runs of windows that score equally many tokens, at most `rows` at a time."""
    starts: list[int] = []
    for index, (scored, start) in enumerate(spans):
        starts.append(start)
        following = spans[index + 1][0] if index + 1 < len(spans) else None
        if following != scored or len(starts) == rows:
            yield scored, starts
            starts = []


def _loss(model: PreTrainedModel, windows: Tensor, scored: int) -> float:
    """Summed negative log-likelihood of the last `scored` tokens of each window [B, T]."""
    windows = windows.to(next(model.parameters()).device)
    logits = model(input_ids=windows, use_cache=False).logits
    piece = max(1, _PIECE // logits.shape[-1])
    total = 0.0
    for row, tokens in zip(logits, windows, strict=True):
        predicted, targets = row[-scored - 1 : -1], tokens[-scored:]
        for some, wanted in zip(predicted.split(piece), targets.split(piece), strict=True):
            losses = cross_entropy(some.float(), wanted, reduction="none")
            total += losses.cpu().double().sum().item()  # some devices have no float64
    return total


def _exp(nll: float, text: Text) -> float:
    try:
        return math.exp(nll)
    except OverflowError:
        raise LmscoutError(
            f"{text.source}: the loss, {nll:.3g} nats a token, has no finite perplexity; the "
            "model's weights are damaged"
        ) from None
