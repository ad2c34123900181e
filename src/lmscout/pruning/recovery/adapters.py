"""Recover one cut model: low-rank adapters of peft (LoRA, arXiv 2106.09685), trained and merged."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lmscout.errors import LmscoutError
from lmscout.evaluation.quiet import quiet
from lmscout.progress import StageProgress
from lmscout.pruning.recovery.config import DISTILL, RecoverySettings
from lmscout.pruning.recovery.training import (
    Identity,
    Trained,
    divergence_loss,
    likelihood_loss,
    train,
)


def check_peft() -> None:
    """Check that peft is installed.

    Raises:
        LmscoutError: it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise LmscoutError("recovery needs peft: pip install 'lmscout[recover]'")


def add_adapters(
    model: PreTrainedModel, rank: int, seed: int
) -> tuple[Any, dict[str, nn.Parameter]]:
    """Put an adapter on every linear layer of a model's blocks, in place; at first it adds nothing.

    Args:
        model: dense or cut; only its adapters require gradients afterwards.
        rank: of the adapters; their scale is 1.
        seed: of the adapters' first factor; the second one is 0.

    Returns:
        The `peft.LoraModel`, and its adapters by name, in float32 or wider.

    Raises:
        LmscoutError: peft is not installed.
    """
    check_peft()
    from peft import LoraConfig, LoraModel

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(one, Conv1D) for one in model.modules()),
    )
    with quiet(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        adapted = LoraModel(model, config, "default")
    adapters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    for one in adapters.values():
        one.data = one.data.to(torch.promote_types(one.dtype, torch.float32))
    return adapted, adapters


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
        dense: the model that it was cut from; not changed.
        windows: [windows, T] int64, the text.
        settings: how, and for how long.
        checkpoint: file to continue from.
        identity: all that the cut model and the text depend on.
        progress: called with steps done and allowed.

    Returns:
        The cut model with recovered weights, and a summary of the training.

    Raises:
        LmscoutError: peft is not installed, the checkpoint does not fit, or the loss is not
            finite.
    """
    adapted, adapters = add_adapters(cut, settings.rank, settings.seed)
    models: tuple[Any, Any] = cut, dense
    head, dense_head = (one.get_output_embeddings() for one in models)
    vocabulary = cut.config.vocab_size

    def loss_of(_: int, tokens: Tensor) -> Tensor:
        hidden = _hidden(cut, tokens)
        if settings.method != DISTILL:
            return likelihood_loss(head, hidden, tokens, vocabulary)
        with torch.no_grad():
            target = _hidden(dense, tokens)
        return divergence_loss(head, hidden, dense_head, target, vocabulary)

    trained = train(
        adapters,
        loss_of,
        windows,
        settings,
        checkpoint,
        {**identity, **settings.identity()},
        device=cut.device,
        dtype=cut.dtype,
        progress=progress,
    )
    with quiet():
        merged: PreTrainedModel = adapted.merge_and_unload()
    return merged.requires_grad_(True), trained


def _hidden(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The last hidden state, [B, T, width]."""
    body: Any = model.base_model
    hidden: Tensor = body(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden
