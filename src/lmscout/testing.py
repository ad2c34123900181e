"""Conformance kit for model families.

Example:
    >>> def test_my_family():
    ...     model = random_model(MyConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, ...))
    ...     check_family(MyFamily(), model, torch.randint(64, (2, 12)))
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from lmscout.evaluation import parameter_count
from lmscout.pruning.compensation import refit
from lmscout.pruning.cutting import ShapeName, cut, is_uniform
from lmscout.pruning.evaluator import shape_of
from lmscout.pruning.export import save, write
from lmscout.pruning.families import (
    KINDS,
    Attention,
    ExpertChannels,
    Experts,
    Family,
    Mixture,
    family_of,
)
from lmscout.pruning.importance import sort_sublayer
from lmscout.pruning.plan import Plan

TOLERANCE = 1e-4  # of the largest logit, or of 1 if that is larger
_GENERATED = 4  # tokens


def check_family(
    family: Family, model: PreTrainedModel, tokens: Tensor, *, fresh_process: bool = False
) -> None:
    """Check that a family describes a model correctly, and that its plans can be saved.

    - Sublayers are views of the model whose shapes fit together.
    - The family's forward pass is the model's, and units can be reordered.
    - A prefix of units, a model with the other units masked, the cut model and its reloaded folder
      compute the same.
    - A refit model and its reloaded folder compute what the refit weights do; refitting the dense
      plan changes nothing.
    - A cut model has the parameters that the plan leaves, and generates the same with and without
      a cache.
    - bfloat16 survives saving bit by bit.

    Args:
        family: the family to check; `lmscout.pruning.families` must list it.
        model: a small model of it in float32 with at least 3 blocks, 2 groups and 4 channels
            or experts, none of its weights constant (see `random_model`).
        tokens: [B, T] int64, at least 4 tokens each.
        fresh_process: also save and reload as users do, which takes seconds.

    Raises:
        AssertionError: a check fails; the message says which.
    """
    assert model.dtype == torch.float32, "give the model in float32: it is compared to 1e-4"
    model = copy.deepcopy(model)
    model.train(False)
    _check_parts(family, model)
    dense = shape_of(family.all_parts(model)).dense
    assert dense.depth >= 3, "give a model of at least 3 blocks"
    assert min(dense.attention) >= 2, "give a model of at least 2 groups a block"
    assert min(dense.mlp) >= 4, "give a model of at least 4 channels a block"
    logits = _logits(model, tokens)
    _assert_same(
        functional_logits(family, model, tokens, dense), logits, "the family's forward pass"
    )
    for kind in KINDS:
        reversed_model = copy.deepcopy(model)
        for parts in family.all_parts(reversed_model):
            sublayer = parts.sublayers[kind]
            orders = [torch.arange(one.units).flip(0) for one in sublayer.members]
            if isinstance(sublayer, ExpertChannels):
                orders = [one.roll(number) for number, one in enumerate(orders)]
                sort_sublayer(sublayer, torch.stack(orders))
            else:
                sort_sublayer(sublayer, *orders)
        _assert_same(
            _logits(reversed_model, tokens), logits, f"the model with {kind} units reordered"
        )
    plans = _plans(dense)
    for name, plan in plans.items():
        _check_plan(family, model, plan, tokens, logits, f"plan {name!r}")
        _check_refit(family, model, plan, tokens, f"plan {name!r}")
    _check_bfloat16(model, plans["uneven"], tokens)
    if fresh_process:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "saved"
            save(model, plans["sublayers"], out, shape="any")


def _plans(dense: Plan) -> dict[str, Plan]:
    """Plans of every sort; the last block keeps all in most of them."""
    groups, channels = dense.attention, dense.mlp
    half = tuple(number // 2 for number in channels)

    def starting_with(*kept: tuple[int, int]) -> Plan:
        attention, mlp = zip(*kept, strict=True)
        return Plan(attention + groups[len(kept) :], mlp + channels[len(kept) :])

    def without_block_1(units: tuple[int, ...]) -> tuple[int, ...]:
        return (*units[:1], 0, *units[2:])

    return {
        "dense": dense,
        "uneven": starting_with((1, channels[0] - 1), (groups[1], half[1])),
        "sublayers": starting_with((0, half[0]), (1, 0)),
        "dropped block": starting_with((groups[0], half[0]), (0, 0)),
        "one MLP width": Plan(without_block_1(groups), without_block_1(half)),
        "one width": Plan(tuple(number - 1 for number in groups), half),
    }


def _check_parts(family: Family, model: PreTrainedModel) -> None:
    """Sublayers are views of the model's weights, and their sides agree on the units."""
    storages = {one.untyped_storage().data_ptr() for one in model.parameters()}
    for (block, kind), sublayer in family.all_sublayers(model).items():
        where, units = f"block {block} {kind}", sublayer.units
        for tensor in sublayer.tensors:
            assert tensor.untyped_storage().data_ptr() in storages, (
                f"{where}: a map is a copy, not a view of the model's weight"
            )
        if isinstance(sublayer, Mixture):
            assert {len(one) for one in sublayer.tensors} == {sublayer.experts}, (
                f"{where}: its tensors are not of {sublayer.experts} experts"
            )
            channels = [one.units for one in sublayer.members]
            assert not any(one % units for one in channels), (
                f"{where}: {channels} channels do not make {units} units each"
            )
            continue
        for one in sublayer.maps:
            assert one.bias is None or one.bias.shape == one.weight.shape[:1], (
                f"{where}: a bias does not have one entry for each output"
            )
        columns = sublayer.output.weight.shape[1]
        rows = [len(one.weight) for one in sublayer.inputs]
        each, expected = 1, [columns] * len(rows)
        if isinstance(sublayer, Attention):
            each = sublayer.head_size
            expected = [columns, units * each, units * each]
        assert columns % (units * each) == 0, (
            f"{where}: {columns} columns of output do not make {units} units of {each}"
        )
        assert rows == expected, (
            f"{where}: input maps have {rows} rows, but {units} units make {expected}"
        )


def _check_plan(
    family: Family,
    model: PreTrainedModel,
    plan: Plan,
    tokens: Tensor,
    dense_logits: Tensor,
    name: str,
) -> None:
    """A plan is the same as prefixes, masked, cut and saved."""
    expected = _logits(masked_model(family, model, plan), tokens)
    if name != "plan 'dense'":
        change = (expected - dense_logits).abs().max().item()
        assert change > 100 * TOLERANCE * _scale(dense_logits), (
            f"{name}: changes logits by {change:.2g} only, too little to check anything; make the "
            "model's weights larger"
        )
    _assert_same(
        functional_logits(family, model, tokens, plan), expected, f"{name}: prefixes of units"
    )
    shapes: list[ShapeName] = ["any"]
    if is_uniform(plan, model.config):
        shapes.append("uniform")
    for shape in shapes:
        pruned = cut(model, plan, shape=shape)
        _assert_same(_logits(pruned, tokens), expected, f"{name}: the cut model ({shape})")
        _check_parameters(family, model, pruned, plan, f"{name} ({shape})")
        _check_generation(pruned, tokens, expected, f"{name} ({shape})")
        reloaded = _reloaded(pruned)
        assert type(reloaded) is type(pruned), f"{name}: reloads as {type(reloaded).__name__}"
        _assert_same(_logits(reloaded, tokens), expected, f"{name}: the saved folder ({shape})")
        reloaded.set_attn_implementation("eager")
        _assert_same(_logits(reloaded, tokens), expected, f"{name}: eager attention ({shape})")


def _check_refit(
    family: Family, model: PreTrainedModel, plan: Plan, tokens: Tensor, name: str
) -> None:
    """Refit weights compute the same by themselves, in the cut model and in its saved folder."""
    weights = refit(model, family, plan, {}, tokens)
    pruned = cut(model, plan, refit=weights)
    with torch.no_grad():
        hidden = family.embed(model, tokens)
        context = family.context(model, hidden)
        for sublayer in weights.sublayers.values():
            hidden = sublayer.step(hidden, context)
        expected = family.logits(pruned, hidden)
    _assert_same(_logits(pruned, tokens), expected, f"{name}: the refit model")
    if name == "plan 'uneven'":  # folders of the other plans are those without a refit
        saved = _logits(_reloaded(pruned), tokens)
        _assert_same(saved, expected, f"{name}: the refit model, saved")
    if name == "plan 'dense'":
        _assert_same(expected, _logits(model, tokens), f"{name}: refit")


def _check_parameters(
    family: Family, model: PreTrainedModel, pruned: PreTrainedModel, plan: Plan, name: str
) -> None:
    """A cut model has the dense model's parameters less what the plan removes.

    A removed sublayer also removes its norm and output bias.
    """
    expected, removed_sublayer = parameter_count(model), False
    for index, (block, *kept) in enumerate(
        zip(family.blocks(model), plan.attention, plan.mlp, strict=True)
    ):
        if index in plan.dropped:
            expected -= parameter_count(block)
            continue
        for sublayer, units in zip(family.parts(block).sublayers.values(), kept, strict=True):
            expected -= sublayer.parameters - sublayer.first(units).parameters
            removed_sublayer |= not units
    number = parameter_count(pruned)
    assert number < expected if removed_sublayer else number == expected, (
        f"{name}: the cut model has {number} parameters, not {expected}"
        + (" less norms and output biases of removed sublayers" if removed_sublayer else "")
    )


def _check_generation(pruned: Any, tokens: Tensor, expected: Tensor, name: str) -> None:
    """Logits in two parts with a cache, and greedy generation with and without one, are right."""
    half = tokens.shape[1] // 2
    with torch.no_grad():
        first = pruned(input_ids=tokens[:, :half], use_cache=True)
        second = pruned(input_ids=tokens[:, half:], past_key_values=first.past_key_values)
    parts = torch.cat([first.logits, second.logits], dim=1)
    _assert_same(parts, expected, f"{name}: text in two parts with the cache")
    by_hand = prompts = tokens[:, :3]
    for _ in range(_GENERATED):
        following = _logits(pruned, by_hand)[:, -1].argmax(-1, keepdim=True)
        by_hand = torch.cat([by_hand, following], dim=1)
    settings: Any = GenerationConfig
    # The model's own settings might stop at a token, or sample.
    pruned.generation_config = settings(max_new_tokens=_GENERATED, do_sample=False, pad_token_id=0)
    mask = torch.ones_like(prompts)
    for use_cache in (True, False):
        generated = pruned.generate(prompts, attention_mask=mask, use_cache=use_cache)
        assert torch.equal(generated, by_hand), (
            f"{name}: generate() with use_cache={use_cache} gives {generated.tolist()}, "
            f"the largest logits {by_hand.tolist()}"
        )


def _check_bfloat16(model: PreTrainedModel, plan: Plan, tokens: Tensor) -> None:
    """In bfloat16, saving and loading changes no bit."""
    pruned = cut(copy.deepcopy(model).to(torch.bfloat16), plan)  # type: ignore[arg-type]
    reloaded = _reloaded(pruned)
    loaded = reloaded.state_dict()
    for name, weight in pruned.state_dict().items():
        assert weight.dtype == torch.bfloat16, f"{name} is cut as {weight.dtype}, not bfloat16"
        assert loaded[name].dtype == torch.bfloat16, f"{name} reloads as {loaded[name].dtype}"
        assert torch.equal(weight, loaded[name]), f"{name} changes when saved in bfloat16"
    assert torch.equal(_logits(pruned, tokens), _logits(reloaded, tokens)), (
        "logits change when a bfloat16 model is saved and loaded"
    )


def _reloaded(pruned: PreTrainedModel) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        write(pruned, Path(folder))
        reloaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        return reloaded.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def _logits(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens).logits  # type: ignore[no-any-return]


def _scale(logits: Tensor) -> float:
    return max(1.0, logits.abs().max().item())


def _assert_same(ours: Tensor, expected: Tensor, what: str) -> None:
    assert ours.shape == expected.shape, f"{what}: {ours.shape} logits, not {expected.shape}"
    difference = (ours - expected).abs().max().item()
    assert difference <= TOLERANCE * _scale(expected), (
        f"{what}: logits differ by {difference:.3g} from the model's"
    )


@torch.no_grad()
def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose every weight matters: norms and biases are random too."""
    offset = family_of(config).norm_offset
    auto: Any = AutoModelForCausalLM
    model: Any = auto.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        norm = weight.ndim == 1 and not name.endswith("bias")
        weight.copy_(1 - offset + 0.3 * noise if norm else 0.3 * noise)
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

    Output columns of removed units are zero, and so is the output bias where nothing is kept.  A
    norm over all outputs of an input map divides by the root mean square of those kept.  A router
    selects among the experts that are kept.
    """
    masked = copy.deepcopy(model)
    for sublayer, kept in zip(family.all_sublayers(masked).values(), plan.steps, strict=True):
        if not sublayer.units:
            continue
        output = sublayer.output
        for member in sublayer.members:
            member.views()[0][member.units // sublayer.units * kept :] = 0
        if isinstance(sublayer, Experts) and kept:
            _mask_router(masked, sublayer, kept)
        if not kept and output.bias is not None:
            output.bias.zero_()
        for one in sublayer.inputs:
            if one.norm is not None and kept:
                for tensor in (one.weight, one.bias):
                    if tensor is not None:
                        tensor[len(tensor) // sublayer.units * kept :] = 0
                one.norm.weight.mul_((kept / sublayer.units) ** 0.5)
    return masked


def _mask_router(masked: PreTrainedModel, experts: Experts, kept: int) -> None:
    """Let the router of these experts select among the first ones, by a hook."""
    pointer = experts.router.data_ptr()
    (router,) = (
        module
        for module in masked.modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor)
        and weight.data_ptr() == pointer
    )

    def select(_: Any, __: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        logits, scores, _ = output
        logits[:, kept:] = -torch.inf
        top, index = logits.softmax(-1).topk(min(scores.shape[1], kept), dim=-1)
        return logits, top / top.sum(-1, keepdim=True) if experts.normalized else top, index

    router.register_forward_hook(select)
