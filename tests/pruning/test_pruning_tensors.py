"""What is read of a trained model, against transformers' own pass seen by plain hooks."""

import pytest
import torch
from tiny_language_models import CONFIGS, random_model, random_windows

from lmscout.pruning.families import family_of
from lmscout.pruning.prefix_tables import visit_tensors

KINDS = [name for name in CONFIGS if name != "mistral"]  # which computes as llama does


def read(model, tokens):
    family = family_of(model.config)
    places = []

    def visit(place):
        places.append((place, {name: one.clone() for name, one in place.tensors.items()}))

    visit_tensors(model, family, tokens, visit)
    return places


def of(places, block, leaf):
    return [one[leaf] for place, one in places if place.block == block and leaf in one]


@pytest.mark.parametrize("name", KINDS)
def test_tensors_are_those_of_the_models_own_pass(name):
    model, tokens = random_model(name), random_windows()
    places = read(model, tokens)
    assert all(one.grad is None and one.requires_grad for one in model.parameters())

    model.set_attn_implementation("eager")
    base = model.transformer if name == "gpt2" else model.model
    blocks = base.h if name == "gpt2" else base.layers
    seen = {"hidden": [], "act": []}

    def keep(kind):
        def hook(_, inputs, output):
            tensor = inputs[0] if kind == "hidden" else output
            if tensor.requires_grad:
                tensor.retain_grad()
            seen[kind].append(tensor)

        return hook

    for block in blocks:
        block.register_forward_hook(keep("hidden"))
        (block.mlp.act if name == "gpt2" else block.mlp.act_fn).register_forward_hook(keep("act"))
    output = model(tokens, labels=tokens, output_attentions=True)
    output.loss.backward()
    for index, block in enumerate(blocks):
        assert torch.allclose(of(places, index, "softmax")[0], output.attentions[index], atol=1e-5)
        assert torch.allclose(of(places, index, "act")[0], seen["act"][index], atol=1e-5)
        gradient = of(places, index, "act_grad")[0]
        assert torch.allclose(gradient, seen["act"][index].grad, atol=1e-6)
        jacob = of(places, index, "jacob")[0]
        assert torch.allclose(jacob, seen["hidden"][index].grad, atol=1e-6)
        own = {
            (round(one.grad.double().norm().item(), 6), one.numel())
            for one in block.parameters()
            if one.dim() == 2
        }
        read_norms = [round(one.double().norm().item(), 6) for one in of(places, index, "grad")]
        if name == "gpt2":  # query, key and value are thirds of one matrix
            whole = block.attn.c_attn.weight.grad.double().norm().item()
            sublayers = [one for one in of(places, index, "grad") if one.shape == (32, 32)]
            assert len(sublayers) == 4
            assert len(read_norms) == 6
            thirds = [
                torch.equal(one, third.T) or torch.allclose(one, third.T, atol=1e-6)
                for third in block.attn.c_attn.weight.grad.chunk(3, dim=1)
                for one in sublayers
            ]
            assert sum(thirds) == 3
            assert whole > 0
        else:
            expected = sorted(norm for norm, _ in own)
            assert sorted(read_norms) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_heads_are_the_projections_outputs_and_a_prefix_is_what_a_plan_keeps(name):
    model, tokens = random_model(name), random_windows()
    family = family_of(model.config)
    places = read(model, tokens)
    normed = []
    block = family.blocks(model)[1]
    attention = block.attn if name == "gpt2" else block.self_attn
    attention.register_forward_hook(
        lambda _, inputs, named, __: normed.append(inputs[0] if inputs else named["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(tokens)
        parts = family.parts(block).attention
        wanted = [one.weight for one in parts.inputs]
        heads = of(places, 1, "head")
        for weight, head, affine in zip(wanted, heads, parts.inputs, strict=True):
            plain = normed[0] @ weight.T
            plain = plain if affine.bias is None else plain + affine.bias
            assert torch.allclose(head, plain, atol=1e-5)
    for place, _ in places:
        first = place.first(1)
        for tensor_name, tensor in first.items():
            dense = place.tensors[tensor_name]
            if place.kind == "block":
                assert tensor is dense
            else:
                assert tensor.shape[place.axis] * place.units == dense.shape[place.axis]
