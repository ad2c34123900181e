"""Small models to test with, and slow plain ways to compute a plan."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lmscout.pruning.families import Family
from lmscout.pruning.plan import Plan


@torch.no_grad()
def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose every weight matters: norms and biases are random too."""
    auto: Any = AutoModelForCausalLM
    model: Any = auto.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        norm = weight.ndim == 1 and not name.endswith("bias")
        weight.copy_(1 + 0.3 * noise if norm else 0.3 * noise)
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def functional_logits(family: Family, model: PreTrainedModel, tokens: Tensor, plan: Plan) -> Tensor:
    """Logits of a plan from prefixes of the model's units: [B, T] to [B, T, vocabulary]."""
    hidden = family.embed(model, tokens)
    context = family.context(model, hidden)
    for sublayer, kept in zip(family.all_sublayers(model).values(), plan.steps, strict=True):
        if kept:
            hidden = sublayer.first(kept).step(hidden, context)
    return family.logits(model, hidden)


@torch.no_grad()
def masked_model(family: Family, model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """A copy of the dense model in which what a plan removes adds nothing.

    Output columns of removed units are zero, and so is the output bias where nothing is kept.
    """
    masked = copy.deepcopy(model)
    for sublayer, kept in zip(family.all_sublayers(masked).values(), plan.steps, strict=True):
        output = sublayer.output
        output.weight[:, output.weight.shape[1] // sublayer.units * kept :] = 0
        if not kept and output.bias is not None:
            output.bias.zero_()
    return masked
