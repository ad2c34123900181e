"""Small models to test with, and slow plain ways to compute what a plan leaves of one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lmscout.pruning.families import Affine, Family
from lmscout.pruning.plan import Plan


@torch.no_grad()
def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose every weight matters: norms and biases are random too.

    Args:
        config: its configuration, small.
        seed: of the random numbers.
    """
    auto: Any = AutoModelForCausalLM
    model: Any = auto.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        norm = weight.ndim == 1 and not name.endswith("bias")
        weight.copy_(1 + 0.3 * noise if norm else 0.3 * noise)
    return model.eval()  # type: ignore[no-any-return]


def dense_plan(family: Family, model: PreTrainedModel) -> Plan:
    """The plan that keeps all units of a model."""
    parts = [family.parts(block) for block in family.blocks(model)]
    return Plan(
        tuple(block.attention.groups for block in parts),
        tuple(block.mlp.channels for block in parts),
    )


@torch.no_grad()
def functional_logits(family: Family, model: PreTrainedModel, tokens: Tensor, plan: Plan) -> Tensor:
    """Logits of a plan, computed by the family from prefixes of the model's parts.

    Args:
        family: the family.
        model: the dense model.
        tokens: [B, T] int64.
        plan: how many units each block keeps.

    Returns:
        [B, T, vocabulary].
    """
    hidden = family.embed(model, tokens)
    context = family.context(model, hidden)
    for index, block in enumerate(family.blocks(model)):
        parts = family.parts(block)
        if plan.attention[index]:
            attention = parts.attention.first(plan.attention[index])
            normed = family.attention_norm(block, hidden)
            inner = family.attend(block, attention, normed, context)
            hidden = hidden + _project(inner, attention.output)
        if plan.mlp[index]:
            mlp = parts.mlp.first(plan.mlp[index])
            inner = family.activate(block, mlp, family.mlp_norm(block, hidden))
            hidden = hidden + _project(inner, mlp.output)
    return family.logits(model, hidden)


@torch.no_grad()
def masked_model(family: Family, model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """A copy of the dense model in which what a plan removes adds nothing.

    Output columns of units past the plan's prefix are zero, and so is the output bias where
    nothing is kept.
    """
    masked = copy.deepcopy(model)
    for index, block in enumerate(family.blocks(masked)):
        parts = family.parts(block)
        for part, kept, each in (
            (parts.attention, plan.attention[index], parts.attention.output_columns),
            (parts.mlp, plan.mlp[index], 1),
        ):
            part.output.weight[:, kept * each :] = 0
            if not kept and part.output.bias is not None:
                part.output.bias.zero_()
    return masked


def _project(inner: Tensor, output: Affine) -> Tensor:
    return functional.linear(inner, output.weight, output.bias)
