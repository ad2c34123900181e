"""Low-rank adapters (LoRA, arXiv 2106.09685) of peft on a model's blocks, and merged back."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lmscout.errors import LmscoutError
from lmscout.evaluation.quiet import quiet


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
