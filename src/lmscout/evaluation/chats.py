"""Chats: conversations as a tokenizer's template renders them, and the assistant's tokens.

In windows that recovery trains on, a token that carries no loss is coded as a negative number,
-1 - token; see `coded`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lmscout.errors import LmscoutError, brief, first_line

Chat = tuple[tuple[str, str], ...]
"""The turns of a conversation: role and content."""

ASSISTANT = "assistant"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def chat_of(value: object, where: str) -> Chat:
    """Check a list of messages.

    Raises:
        LmscoutError: it is empty, or a message is no object with a role and a text as content.
    """
    messages = value if isinstance(value, list) else []
    turns = [
        (one.get("role"), one.get("content")) if isinstance(one, dict) else (None, None)
        for one in messages
    ]
    for number, turn in enumerate(turns, start=1):
        if not all(isinstance(part, str) for part in turn):
            raise LmscoutError(
                f"{where}: message {number} has no role and content of text (got "
                f"{brief(messages[number - 1])}): give objects with role and content"
            )
    if not turns:
        raise LmscoutError(f"{where}: holds no list of messages (got {brief(value)})")
    return tuple((str(role), str(content)) for role, content in turns)


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    source: str,
    *,
    limit: int | None = None,
    masks: bool = False,
) -> tuple[Tensor, Tensor]:
    """Render conversations one after the other by the tokenizer's chat template.

    Args:
        tokenizer: the model's.
        chats: the conversations.
        source: their origin, for errors.
        limit: maximum number of tokens.
        masks: whether the tokens of assistant turns are found.  A template with generation blocks
            says which they are; else a turn is what the template adds to the conversation before
            it with its generation prompt (all of it, if it is the first turn).

    Returns:
        [tokens] int64, and whether each is of an assistant turn, [tokens] bool; all without
        `masks`.

    Raises:
        LmscoutError: the tokenizer has no template, it refuses a conversation, the turns that it
            renders are not found again, or there is no assistant turn.
    """
    if not tokenizer.chat_template:
        raise LmscoutError(
            f"{source}: chats need a chat template, and the model's tokenizer has none: give a "
            "field of text, or a model with chat_template.jinja"
        )
    ids: list[int] = []
    learned: list[bool] = []
    for number, chat in enumerate(chats, start=1):
        where = f"{source}, chat {number}"
        try:
            tokens, own = _rendered(tokenizer, chat, where, masks)
        except LmscoutError:
            raise
        except Exception as error:  # templates are programs
            raise LmscoutError(
                f"{where}: the chat template refuses it ({first_line(error)}): change the "
                "conversation, or give text"
            ) from error
        ids += tokens
        learned += own
        if limit is not None and len(ids) >= limit:
            break
    if masks and not any(learned):
        raise LmscoutError(
            f"{source}: no chat has a turn of the role {ASSISTANT}, so nothing carries a loss: "
            "give other text"
        )
    return (
        torch.tensor(ids[:limit], dtype=torch.int64),
        torch.tensor(learned[:limit], dtype=torch.bool),
    )


def _rendered(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, where: str, masks: bool
) -> tuple[list[int], list[bool]]:
    template: Any = tokenizer.apply_chat_template
    messages = [{"role": role, "content": content} for role, content in chat]
    if masks and _GENERATION.search(str(tokenizer.chat_template)):
        found = template(messages, return_dict=True, return_assistant_tokens_mask=True)
        return list(found["input_ids"]), list(map(bool, found["assistant_masks"]))
    text = template(messages, tokenize=False)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=masks, verbose=False)
    tokens = list(found["input_ids"])
    if not masks:
        return tokens, [True] * len(tokens)
    spans = list(_spans(template, messages, text, where))
    own = found["offset_mapping"]
    return tokens, [any(low < to and start < high for low, high in spans) for start, to in own]


def _spans(
    template: Any, messages: list[dict[str, str]], text: str, where: str
) -> Iterator[tuple[int, int]]:
    """Characters of assistant turns: from the generation prompt before one to its end."""
    for number, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = ""
        if number:
            before = template(messages[:number], tokenize=False, add_generation_prompt=True)
        upto = template(messages[: number + 1], tokenize=False)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise LmscoutError(
                f"{where}: the chat template renders turn {number + 1} otherwise once others "
                "follow, so its tokens are not known: give a template with generation blocks"
            )
        yield len(before), len(upto)


def coded(tokens: Tensor, learned: Tensor) -> Tensor:
    """Tokens with those that carry no loss as negative numbers."""
    return torch.where(learned, tokens, -1 - tokens)


def decoded(tokens: Tensor) -> Tensor:
    """All tokens as they are, whether they carry a loss or not."""
    return torch.where(tokens < 0, -1 - tokens, tokens)
