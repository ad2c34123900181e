"""Recover one cut model: adapters trained on a text, against it or against the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmscout.pruning.recovery.adapters import Adapted
from lmscout.pruning.recovery.checkpoint import Identity
from lmscout.pruning.recovery.losses import Head, divergence_loss, likelihood_loss
from lmscout.pruning.recovery.settings import DISTILL, RecoverySettings
from lmscout.pruning.recovery.training import Trained, train
from lmscout.stages import StageProgress


def recover(
    cut: PreTrainedModel,
    dense: PreTrainedModel,
    windows: Tensor,
    settings: RecoverySettings,
    checkpoint: Path,
    identity: Identity,
    *,
    progress: StageProgress | None = None,
) -> tuple[PreTrainedModel, Trained]:
    """Train adapters on a cut model, and merge them.

    The checkpoint stays when training has ended: the same call then merges what it holds.

    Args:
        cut: the cut model; changed in place.
        dense: the model that it was cut from, with the same vocabulary; only read.
        windows: [windows, T] int64, the text.
        settings: how, and for how long.
        checkpoint: file from which a training goes on.
        identity: all that the cut model and the text depend on.
        progress: called with steps made and allowed.

    Returns:
        The cut model with recovered weights, and what was done.

    Raises:
        LmscoutError: peft is not installed, the checkpoint does not fit, or the loss is not
            finite.
    """
    adapted = Adapted(cut, settings.rank, settings.seed)
    vocabulary = cut.config.vocab_size
    head, dense_head = _head(cut), _head(dense)

    def loss_of(_: int, tokens: Tensor) -> Tensor:
        hidden = _hidden(cut, tokens)
        if settings.method != DISTILL:
            return likelihood_loss(head, hidden, tokens, vocabulary)
        with torch.no_grad():
            theirs = _hidden(dense, tokens)
        return divergence_loss(head, hidden, dense_head, theirs, vocabulary)

    done = train(
        adapted.adapters,
        loss_of,
        windows,
        settings,
        checkpoint,
        {**identity, **settings.identity()},
        device=cut.device,
        dtype=cut.dtype,
        progress=progress,
    )
    return adapted.merge(), done


def _hidden(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The last hidden state, as the head reads it: [B, T, width]."""
    body: Any = model.base_model
    hidden: Tensor = body(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden


def _head(model: Any) -> Head:
    head: Head = model.get_output_embeddings()
    return head
