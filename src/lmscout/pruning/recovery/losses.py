"""What recovery minimises: the text's own next tokens, or the distance from the dense model.

Logits are by far the widest tensor of a small batch.  They are computed from hidden states a
piece at a time, in float32, and again when their gradient is wanted, so that those of a whole
batch are never there at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]  # hidden states [n, width] to logits [n, vocabulary]

_PIECE = 1 << 24  # logits at a time: 64 MiB in float32


def likelihood_loss(head: Head, hidden: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """Mean negative log-likelihood of the next token, in nats.

    Args:
        head: of the model that learns.
        hidden: [B, T, width], its last hidden state.
        tokens: [B, T] int64.
        vocabulary: how many logits a token has.
    """
    states, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()

    def loss(states: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(head(states).float(), targets, reduction="sum")

    return _in_pieces(loss, vocabulary, states, targets) / len(targets)


def divergence_loss(
    head: Head, hidden: Tensor, dense_head: Head, dense_hidden: Tensor, vocabulary: int
) -> Tensor:
    """Mean KL(dense || model) of the next token's distribution, in nats.

    Args:
        head: of the model that learns.
        hidden: [B, T, width], its last hidden state.
        dense_head: of the dense model.
        dense_hidden: [B, T, width], the dense model's last hidden state, without gradient.
        vocabulary: how many logits a token has.
    """
    states, theirs = hidden.flatten(0, 1), dense_hidden.flatten(0, 1)

    def loss(states: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = dense_head(theirs).float().log_softmax(-1)
        ours = head(states).float().log_softmax(-1)
        return functional.kl_div(ours, wanted, reduction="sum", log_target=True)

    return _in_pieces(loss, vocabulary, states, theirs) / len(states)


def _in_pieces(
    loss: Callable[[Tensor, Tensor], Tensor], vocabulary: int, states: Tensor, others: Tensor
) -> Tensor:
    size = max(1, _PIECE // vocabulary)
    if len(states) <= size:
        return loss(states, others)
    total = states.new_zeros((), dtype=torch.float32)
    for start in range(0, len(states), size):
        pair = states[start : start + size], others[start : start + size]
        total = total + checkpoint(loss, *pair, use_reentrant=False)
    return total
