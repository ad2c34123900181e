"""Low-rank adapters on a model's blocks, trained for one cut model and merged.

Low-rank adapters (LoRA, arXiv 2106.09685) of peft on a model's blocks, and merged back.

Recover one cut model: adapters trained on a text, against it or against the dense model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
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
    Head,
    Identity,
    Trained,
    divergence_loss,
    likelihood_loss,
    train,
)


def check_peft() -> None:
    """Make sure, before any work, that there is peft.

    Raises:
        LmscoutError: it is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise LmscoutError("recovery needs peft: pip install 'lmscout[recover]'")


class Adapted:
    """A model with an adapter on every linear layer of its blocks.

    Attributes:
        adapters: what can be trained, by name; in float32 where the model's weights are narrower.
    """

    def __init__(self, model: PreTrainedModel, rank: int, seed: int) -> None:
        """Put adapters in, in place; until they are trained the model computes what it did.

        Args:
            model: dense or cut; only the adapters can learn then.
            rank: of the adapters; their scale is 1.
            seed: of their first half, the other one starts at 0.

        Raises:
            LmscoutError: peft is not installed.
        """
        check_peft()
        from peft import LoraConfig, LoraModel

        layers = linear_layers(model)
        config: Any = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=list(layers),
            fan_in_fan_out=any(isinstance(one, Conv1D) for one in layers.values()),
        )
        devices = [model.device] if model.device.type == "cuda" else []
        with quiet(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            self._tuner: Any = LoraModel(model, config, "default")
        self.adapters: dict[str, nn.Parameter] = {}
        for name, one in model.named_parameters():
            if one.requires_grad:
                one.data = one.data.to(torch.promote_types(one.dtype, torch.float32))
                self.adapters[name] = one

    def merge(self) -> PreTrainedModel:
        """Add the adapters to the weights, and take them out: the model, plain again."""
        with quiet():
            merged: PreTrainedModel = self._tuner.merge_and_unload()
        return merged.requires_grad_(True)


def linear_layers(model: PreTrainedModel) -> Mapping[str, nn.Module]:
    """The linear layers of a model's blocks by name: all but embeddings and head."""
    whole: Any = model
    head = whole.get_output_embeddings()
    return {
        name: one
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear | Conv1D) and one is not head
    }


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
