"""The conformance kit for families of models.

from lmscout.testing import check_family, random_model

def test_my_family():
    model = random_model(MyConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, ...))
    check_family(MyFamily(), model, torch.randint(64, (2, 12)))
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from lmscout.evaluation import parameter_count
from lmscout.pruning.cutting import cut, is_uniform
from lmscout.pruning.export import save, write
from lmscout.pruning.families import Family, unit_maps, unit_parameters
from lmscout.pruning.plan import Plan
from lmscout.testing.reference_models import dense_plan, functional_logits, masked_model

TOLERANCE = 1e-4  # of the largest logit, or of 1 if that is larger


def check_family(
    family: Family,
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    fresh_process: bool = False,
) -> None:
    """Check that a family says of a model what is true, and that its plans can be saved.

    Checked are: that parts are views of the model and fit together; that the family's forward
    pass is the model's, and what proxies read a part of it; that units can be put in another
    order; that a prefix of units, a model in which the other units are masked, a cut model and its
    saved and reloaded folder compute the same; that a cut model has the parameters that the plan
    leaves, and generates alike with and without the cache; and that bfloat16 survives saving bit
    by bit.

    Args:
        family: the family to check; `lmscout.pruning.families` must list it.
        model: a small model of it in float32 with at least 3 blocks, 2 groups and 4 channels,
            none of its weights constant (see `random_model`).
        tokens: [B, T] int64, at least 4 tokens each.
        fresh_process: also save and reload as users do, which takes seconds.

    Raises:
        AssertionError: something does not hold; the message says what.
    """
    assert model.dtype == torch.float32, "give the model in float32: it is compared to 1e-4"
    model = copy.deepcopy(model)
    model.train(False)
    _check_parts(family, model)
    dense = dense_plan(family, model)
    assert dense.depth >= 3, "give a model of at least 3 blocks"
    assert min(dense.attention) >= 2, "give a model of at least 2 groups a block"
    assert min(dense.mlp) >= 4, "give a model of at least 4 channels a block"
    logits = _logits(model, tokens)
    _assert_same(
        functional_logits(family, model, tokens, dense), logits, "the family's forward pass"
    )
    for kind in ("attention", "mlp"):
        permuted = _permuted(family, model, kind)
        _assert_same(_logits(permuted, tokens), logits, f"the model with {kind} units reordered")
    for name, plan in _plans(dense).items():
        _check_plan(family, model, plan, tokens, logits, f"plan {name!r}")
    _check_readings(family, model, tokens)
    _check_bfloat16(model, _plans(dense)["uneven"], tokens)
    if fresh_process:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "saved"
            save(model, _plans(dense)["sublayers"], out, shape="any")


def _plans(dense: Plan) -> dict[str, Plan]:
    """Plans of every sort: the middle block is block 1, the last one keeps all."""
    groups, channels = list(dense.attention), list(dense.mlp)

    def with_blocks(*kept: tuple[int, int]) -> Plan:
        attention, mlp = groups.copy(), channels.copy()
        for block, (one, other) in enumerate(kept):
            attention[block], mlp[block] = one, other
        return Plan(tuple(attention), tuple(mlp))

    sublayer = tuple(number // 2 for number in channels)
    return {
        "dense": dense,
        "uneven": with_blocks((1, channels[0] - 1), (groups[1], sublayer[1])),
        "sublayers": with_blocks((0, sublayer[0]), (1, 0)),
        "dropped block": with_blocks((groups[0], sublayer[0]), (0, 0)),
        "one MLP width": Plan(
            tuple(0 if block == 1 else number for block, number in enumerate(groups)),
            tuple(0 if block == 1 else number for block, number in enumerate(sublayer)),
        ),
        "one width": Plan(tuple(number - 1 for number in groups), sublayer),
    }


@torch.no_grad()
def _check_readings(family: Family, model: PreTrainedModel, tokens: Tensor) -> None:
    """What proxies read is what the family computes with."""
    hidden = family.embed(model, tokens)
    context = family.context(model, hidden)
    for index, block in enumerate(family.blocks(model)):
        parts = family.parts(block)
        attention = parts.attention
        normed = family.attention_norm(block, hidden)
        seen = family.probabilities(block, attention, normed, context)
        value = torch.nn.functional.linear(normed, attention.value.weight, attention.value.bias)
        value = value.view(*tokens.shape, attention.groups, -1).transpose(1, 2)
        attended = seen @ value.repeat_interleave(attention.group_size, dim=1)
        _assert_same(
            attended.transpose(1, 2).flatten(2),
            family.attend(block, attention, normed, context),
            f"block {index}: values weighted by the attention probabilities",
        )
        normed = family.mlp_norm(block, hidden)
        act, inner = family.activated(block, parts.mlp, normed)
        assert act.shape == inner.shape, f"block {index}: one activation a channel is expected"
        _assert_same(
            inner, family.activate(block, parts.mlp, normed), f"block {index}: what is activated"
        )


def _check_parts(family: Family, model: PreTrainedModel) -> None:
    """Parts are views of the model's weights, and their sides agree on the units."""
    storages = {one.untyped_storage().data_ptr() for one in model.parameters()}
    for index, block in enumerate(family.blocks(model)):
        parts = family.parts(block)
        for kind, part in parts.sublayers.items():
            for one in unit_maps(part):
                for tensor in (one.weight, one.bias):
                    assert tensor is None or tensor.untyped_storage().data_ptr() in storages, (
                        f"block {index} {kind}: a part is a copy, not a view of the model's weight"
                    )
                assert one.bias is None or one.bias.shape == one.weight.shape[:1], (
                    f"block {index} {kind}: a bias does not have one entry an output"
                )
        attention, mlp = parts.attention, parts.mlp
        wide = attention.groups * attention.group_size * attention.head_size
        narrow = attention.groups * attention.head_size
        for name, length, expected in (
            ("rows of query", attention.query.weight.shape[0], wide),
            ("rows of key", attention.key.weight.shape[0], narrow),
            ("rows of value", attention.value.weight.shape[0], narrow),
            ("columns of output", attention.output.weight.shape[1], wide),
        ):
            assert length == expected, (
                f"block {index} attention: {length} {name}, but {attention.groups} groups of "
                f"{attention.group_size} heads of {attention.head_size} make {expected}"
            )
        for one in mlp.expand:
            assert one.weight.shape[0] == mlp.channels, (
                f"block {index} mlp: {one.weight.shape[0]} rows expand to {mlp.channels} channels"
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
    if plan != dense_plan(family, model):
        change = (expected - dense_logits).abs().max().item()
        assert change > 100 * TOLERANCE * _scale(dense_logits), (
            f"{name}: changes logits by {change:.2g} only, too little to check anything; make the "
            "model's weights larger"
        )
    _assert_same(
        functional_logits(family, model, tokens, plan), expected, f"{name}: prefixes of units"
    )
    shapes = ("any", "uniform") if is_uniform(plan, model.config) else ("any",)
    for shape in shapes:
        pruned = cut(model, plan, shape=shape)  # type: ignore[arg-type]
        _assert_same(_logits(pruned, tokens), expected, f"{name}: the cut model ({shape})")
        _check_parameters(family, model, pruned, plan, f"{name} ({shape})")
        _check_cache(pruned, tokens, expected, f"{name} ({shape})")
        _check_generation(pruned, tokens[:, :3], f"{name} ({shape})")
        reloaded = _reloaded(pruned)
        assert type(reloaded) is type(pruned), f"{name}: reloads as {type(reloaded).__name__}"
        _assert_same(_logits(reloaded, tokens), expected, f"{name}: the saved folder ({shape})")
        reloaded.set_attn_implementation("eager")
        _assert_same(_logits(reloaded, tokens), expected, f"{name}: eager attention ({shape})")


def _check_parameters(
    family: Family, model: PreTrainedModel, pruned: PreTrainedModel, plan: Plan, name: str
) -> None:
    """A cut model has the dense model's parameters less what the plan removes.

    Where attention or MLP goes as a whole, its norm and output bias must go too, and only the
    rest is known to stay.
    """
    least = most = parameter_count(model)
    kept = plan.kept
    for index, block in enumerate(family.blocks(model)):
        if index not in kept:
            least, most = least - parameter_count(block), most - parameter_count(block)
            continue
        parts = family.parts(block)
        units_kept = plan.attention[index], plan.mlp[index]
        sublayers = tuple(zip(parts.sublayers.values(), units_kept, strict=True))
        for part, units in sublayers:
            removed = unit_parameters(part) - unit_parameters(part.first(units))
            least, most = least - removed, most - removed
        whole = parameter_count(block) - sum(unit_parameters(part) for part, _ in sublayers)
        if not all(units for _, units in sublayers):
            least, most = least - whole + 1, most - 1
    number = parameter_count(pruned)
    assert least <= number <= most, (
        f"{name}: the cut model has {number} parameters, not {least}"
        + ("" if least == most else f" to {most}")
    )


def _check_cache(pruned: Any, tokens: Tensor, expected: Tensor, name: str) -> None:
    """Text in two parts, the second with the first one's cache, is the same as at once."""
    sublayer = tokens.shape[1] // 2
    with torch.no_grad():
        first = pruned(input_ids=tokens[:, :sublayer], use_cache=True)
        second = pruned(input_ids=tokens[:, sublayer:], past_key_values=first.past_key_values)
    parts = torch.cat([first.logits, second.logits], dim=1)
    _assert_same(parts, expected, f"{name}: text in two parts with the cache")


def _check_generation(pruned: PreTrainedModel, prompts: Tensor, name: str, length: int = 6) -> None:
    """Greedy generation with the cache, without it, and by hand is the same."""
    by_hand = prompts
    for _ in range(length):
        following = _logits(pruned, by_hand)[:, -1].argmax(-1, keepdim=True)
        by_hand = torch.cat([by_hand, following], dim=1)
    for use_cache in (True, False):
        generated = _generate(pruned, prompts, length, use_cache)
        assert torch.equal(generated, by_hand), (
            f"{name}: generate() with use_cache={use_cache} gives {generated.tolist()}, "
            f"the largest logits {by_hand.tolist()}"
        )


def _check_bfloat16(model: PreTrainedModel, plan: Plan, tokens: Tensor) -> None:
    """In bfloat16, saving and loading changes no bit."""
    pruned = cut(copy.deepcopy(model).to(torch.bfloat16), plan)  # type: ignore[arg-type]
    reloaded = _reloaded(pruned)
    theirs = reloaded.state_dict()
    for name, weight in pruned.state_dict().items():
        assert weight.dtype == torch.bfloat16, f"{name} is cut as {weight.dtype}, not bfloat16"
        assert theirs[name].dtype == torch.bfloat16, f"{name} reloads as {theirs[name].dtype}"
        assert torch.equal(weight, theirs[name]), f"{name} changes when saved in bfloat16"
    assert torch.equal(_logits(pruned, tokens), _logits(reloaded, tokens)), (
        "logits change when a bfloat16 model is saved and loaded"
    )


def _permuted(family: Family, model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """A copy of the model with the units of every block in reverse order."""
    permuted = copy.deepcopy(model)
    for block in family.blocks(permuted):
        for tensor, axis, units in _sides(family, block, kind):
            each = tensor.shape[axis] // units
            order = torch.arange(units * each).view(units, each).flip(0).flatten()
            tensor.copy_(tensor.index_select(axis, order))
    return permuted


def _sides(family: Family, block: Any, kind: str) -> Iterator[tuple[Tensor, int, int]]:
    """Every tensor side that follows the units: the tensor, the axis, how many units."""
    part = family.parts(block).sublayers[kind]
    for one in part.inputs:
        yield one.weight, 0, part.units
        if one.bias is not None:
            yield one.bias, 0, part.units
    yield part.output.weight, 1, part.units


def _reloaded(pruned: PreTrainedModel) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        write(pruned, Path(folder))
        reloaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        return reloaded.eval()  # type: ignore[no-any-return]


def _generate(pruned: Any, prompts: Tensor, length: int, use_cache: bool) -> Tensor:
    settings: Any = GenerationConfig
    # The model's own settings might stop at a token, or sample.
    pruned.generation_config = settings(max_new_tokens=length, do_sample=False, pad_token_id=0)
    mask = torch.ones_like(prompts)
    generated: Tensor = pruned.generate(prompts, attention_mask=mask, use_cache=use_cache)
    return generated


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
