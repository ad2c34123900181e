"""Cut a plan out of a dense model: a smaller model with copies of what is kept.

Shape "any": every block at its own sizes, in the classes of `modeling_lmscout`.  Shape "uniform":
one size for all kept blocks, a plain model of the family.  Shape "deci": attention whole or absent
and an MLP width of its own in every block, as the DeciLM family of serving engines has it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lmscout.errors import LmscoutError
from lmscout.evaluation import plain_type, unfilled_model
from lmscout.evaluation.modeling_lmscout import DECI, PRUNED, WIDTH_STEP
from lmscout.pruning.compensation import Refit
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.families import (
    EXPERTS,
    KINDS,
    Affine,
    BlockParts,
    ExpertChannels,
    Family,
    Place,
    Sublayer,
    family_of,
    set_units,
)
from lmscout.pruning.placement import block_devices, place
from lmscout.pruning.plan import Plan

ShapeName = Literal["any", "uniform", "deci"]
_FIRST = 0  # block whose attention stays: vLLM and SGLang begin the residual stream there
_BY_BLOCK = ("layer_types", "no_rope_layers", "expert_channels")  # lists in configurations


@torch.no_grad()
def cut(
    model: PreTrainedModel,
    plan: Plan,
    outputs: Mapping[Place, Affine] | None = None,
    *,
    refit: Refit | None = None,
    shape: ShapeName = "any",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """A model that computes what a plan keeps of the dense one.

    A block without groups has no attention, one without channels no MLP (nor their output
    biases), and one with neither is left out.

    Args:
        model: the dense model, its units in final order.
        plan: the units that each block keeps.
        outputs: (block, kind) -> an output projection [width, kept columns] that replaces the one
            cut from the model.
        refit: weights that replace all of those cut, and the factors of the final norm.
        shape: "any", "uniform" for a plain model of the family, or "deci".
        dtype: of its weights; the dense model's if None.
        device: where it is made, a matrix at a time; if None every block is where the dense one is.

    Returns:
        The model, in evaluation mode, sharing no storage with the dense one.

    Raises:
        LmscoutError: the plan does not fit the model or the shape, or the family has no model of
            the shape.
    """
    if shape not in (known := get_args(ShapeName)):
        raise LmscoutError(f"unknown shape {shape!r}: expected {', '.join(known)}")
    family = family_of(model.config)
    parts = family.all_parts(model)
    shape_of(parts).check(plan)
    kept = plan.kept
    if not kept:
        raise LmscoutError("the plan keeps no block at all: keep at least one")
    if shape == "uniform":
        model_class, config = type(model), uniform_config(model.config, plan)
    elif shape == "deci":
        model_class, config = PRUNED[DECI][-1], deci_config(model.config, plan)
    else:
        model_class, config = _any_classes(model.config)[1], any_config(model.config, plan, parts)
    set_units(config, EXPERTS)
    make = partial(cast(Any, model_class)._from_config, config, dtype=dtype or model.dtype)
    # on the CPU first, where the dense model's buffers, too, were computed
    pruned: Any = unfilled_model(make, "cpu")
    blocks = block_devices(model, family)
    homes = [blocks[one] if device is None else torch.device(device) for one in kept]
    place(pruned, family, homes)
    pruned.eval()
    _copy_uncut(model, pruned, family, kept)
    views = dict(zip(KINDS, (family.attention, family.mlp), strict=True))
    for block, cut_block in zip(kept, family.blocks(pruned), strict=True):
        for kind, units in zip(KINDS, (plan.attention[block], plan.mlp[block]), strict=True):
            if units:
                first = parts[block].sublayers[kind].first(units)
                output = (outputs or {}).get((block, kind), first.output)
                source = dataclasses.replace(first, output=output)
                if refit is not None:
                    source = refit.sublayers[block, kind]
                _copy_tensors(source, views[kind](cut_block))
    if refit is not None:  # one rounding, whatever the dtype
        gain = cast(Tensor, family.final_norm(model).weight).double() + family.norm_offset
        scaled = gain * refit.norm - family.norm_offset
        cast(Tensor, family.final_norm(pruned).weight).copy_(scaled)
    return cast(PreTrainedModel, pruned)


def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert a model's weights to a dtype, in place; buffers (rotary frequencies) keep theirs."""
    for one in model.parameters():
        one.data = one.data.to(dtype)


def check_range(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raise LmscoutError if a weight is larger than the largest number of a dtype."""
    most = torch.finfo(dtype).max
    for name, one in model.named_parameters():
        largest = one.detach().abs().max().item() if one.numel() else 0.0
        if largest > most:
            raise LmscoutError(
                f"dtype of the saved weights: {str(dtype).removeprefix('torch.')} holds numbers up "
                f"to {most:.4g}, and {name} has one of {largest:.4g}: save as bfloat16 or float32"
            )


def is_uniform(plan: Plan, config: PreTrainedConfig) -> bool:
    """Whether a plan of the dense model with `config` can be saved as a plain model."""
    try:
        uniform_config(config, plan)
    except LmscoutError:
        return False
    return True


def uniform_config(config: PreTrainedConfig, plan: Plan) -> PreTrainedConfig:
    """The plain configuration of a uniform plan; LmscoutError if the family has none."""
    if plain_type(config) != config.model_type:
        raise LmscoutError("the blocks of the model have different sizes: save it with shape any")
    kept = plan.kept
    widths = {(plan.attention[block], plan.mlp[block]) for block in kept}
    if len(widths) != 1 or 0 in next(iter(widths)):
        raise LmscoutError(
            "the plan is not uniform (one width for all blocks, or a block dropped whole): "
            "save it with shape any"
        )
    if plan.dropped and getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise LmscoutError(
            "attention of this model is scaled by the number of its block, so a plain model "
            "cannot leave blocks out: save it with shape any"
        )
    groups, channels = widths.pop()
    family = family_of(config)
    plain = family.uniform_config(config, depth=len(kept), groups=groups, channels=channels)
    _keep_blocks(plain, kept)
    try:
        validated: PreTrainedConfig = type(plain).from_dict(plain.to_dict())
    except (ValueError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        reason = reason.removeprefix("ValueError: ").rstrip(".")
        raise LmscoutError(
            f"{config.model_type} has no plain form with {groups} groups and {channels} channels "
            f"({reason}): save it with shape any"
        ) from error
    return validated


def deci_config(config: PreTrainedConfig, plan: Plan) -> PreTrainedConfig:
    """The configuration of the DeciLM family; docs/export.md has its entries and their sources.

    Raises:
        LmscoutError: the family does not hold this model, or this plan of it.
    """
    given: Any = config
    heads, hidden = given.num_attention_heads, given.hidden_size
    reasons = {
        f"is {config.model_type}, and the family holds llama and mistral": config.model_type
        not in ("llama", "mistral"),
        "has biases": getattr(given, "attention_bias", False) or getattr(given, "mlp_bias", False),
        "has a sliding window": getattr(given, "sliding_window", None),
        "has heads of another size than hidden size by heads": getattr(given, "head_dim", None)
        not in (None, hidden // heads),
    }
    for reason, holds in reasons.items():
        if holds:
            raise LmscoutError(
                f"the model {reason}, which shape deci cannot hold: save it with shape any or "
                "uniform"
            )
    groups = given.num_key_value_heads
    if not set(plan.attention) <= {0, groups} or any(width % WIDTH_STEP for width in plan.mlp):
        raise LmscoutError(
            f"shape deci: attention is whole ({groups} groups) or absent, and MLP widths are "
            f"multiples of {WIDTH_STEP}: save the plan with shape any"
        )
    if plan.attention[_FIRST] == 0:
        raise LmscoutError("shape deci: the first block keeps its attention: use shape any")
    values = config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version", "layer_types"):
        values.pop(name, None)
    values.pop("sliding_window", None)
    attention = {
        **dict.fromkeys(("sparsify", "window_length", "num_sink_tokens")),
        **dict.fromkeys(("use_prefill_window_in_sink_attention", "unshifted_sink"), False),
    }

    def half(kept: int, name: str, value: float) -> dict[str, Any]:
        no_op = {"no_op": not kept, "replace_with_linear": False, "sparsify": None}
        return {**no_op, name: value if kept else None}

    values["num_hidden_layers"] = len(plan.kept)
    values["intermediate_size"] = max(plan.mlp)
    values["block_configs"] = [
        {
            "attention": {
                **attention,
                **half(plan.attention[block], "n_heads_in_group", heads // groups),
            },
            # The middle of the multipliers of this width, so that no engine rounds it to another.
            "ffn": half(
                plan.mlp[block], "ffn_mult", 1.5 * (plan.mlp[block] - WIDTH_STEP / 2) / hidden
            ),
        }
        for block in plan.kept
    ]
    made: PreTrainedConfig = PRUNED[DECI][0].from_dict(values)
    return made


def any_config(
    config: PreTrainedConfig, plan: Plan, parts: Sequence[BlockParts]
) -> PreTrainedConfig:
    """The configuration of any plan: the dense model's, and the sizes of each kept block."""
    config_class, _ = _any_classes(config)
    kept = plan.kept
    values = config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version"):
        values.pop(name, None)
    pruned: Any = config_class.from_dict(values)
    pruned.num_hidden_layers = len(kept)
    pruned.attention_groups = [plan.attention[block] for block in kept]
    experts = {
        block: one.mlp.experts
        for block, one in enumerate(parts)
        if isinstance(one.mlp, ExpertChannels) and plan.mlp[block]
    }
    pruned.mlp_channels = [experts.get(block, plan.mlp[block]) for block in kept]
    numbers = getattr(config, "block_numbers", None) or range(plan.depth)
    pruned.block_numbers = [numbers[block] for block in kept]
    if hasattr(config, "num_key_value_heads") and not getattr(pruned, "head_dim", None):
        pruned.head_dim = pruned.hidden_size // pruned.num_attention_heads
    if getattr(config, "output_router_logits", False):
        pruned.output_router_logits = False  # their loss wants one number of experts
    _keep_blocks(pruned, kept)
    if experts:
        first = (parts[block].mlp.first(plan.mlp[block]) for block in kept)
        pruned.expert_channels = [one.moments[1] for one in first]
    if types := getattr(pruned, "layer_types", None):
        pruned.layer_types = _types_for_cache(types, pruned.attention_groups)
    return pruned  # type: ignore[no-any-return]


def _any_classes(config: PreTrainedConfig) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    kind = plain_type(config)
    if kind not in PRUNED:
        raise LmscoutError(
            f"there is no class for models of type {kind!r} with blocks of different "
            "sizes: save it with shape uniform"
        )
    config_class, _, causal_class = PRUNED[kind]
    return config_class, causal_class


def _keep_blocks(config: Any, kept: tuple[int, ...]) -> None:
    """Reduce the entries of a configuration that list something of every block, in place."""
    for name in _BY_BLOCK:
        if values := getattr(config, name, None):
            setattr(config, name, [values[block] for block in kept])


def _types_for_cache(types: list[str], groups: list[int]) -> list[str]:
    """Layer types: the first block of each has attention, as `cache_slots` needs."""
    having = np.flatnonzero(groups)
    if not len(having):
        return list(types)
    following = np.searchsorted(having, np.arange(len(groups))).clip(max=len(having) - 1)
    return [types[index] for index in having[following]]


def _copy_uncut(
    dense: PreTrainedModel, pruned: PreTrainedModel, family: Family, kept: tuple[int, ...]
) -> None:
    """Copy what has no units: embeddings, norms, output biases, the head."""
    sources = dict(dense.named_parameters(remove_duplicate=False))
    inside = {id(one) for block in family.blocks(pruned) for one in block.parameters()}
    for name, target in pruned.named_parameters():
        if id(target) not in inside:
            target.copy_(sources[name])
    for block, cut_block in zip(kept, family.blocks(pruned), strict=True):
        whole = dict(family.blocks(dense)[block].named_parameters())
        for name, target in cut_block.named_parameters():
            if whole[name].shape == target.shape:
                target.copy_(whole[name])


def _copy_tensors(source: Sublayer, target: Sublayer) -> None:
    for ours, theirs in zip(source.tensors, target.tensors, strict=True):
        theirs.copy_(ours)
