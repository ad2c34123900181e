import dataclasses

import pytest
import torch
import transformers
from hypothesis import given, settings
from model_strategies import llama_specs
from torch.nn import functional

from lmscout.errors import LmscoutError
from lmscout.models import LlamaSpec
from lmscout.models.layers import fuse_attention


def tiny(**changes):
    given = {
        "width": 16,
        "heads": (4, 4, 4),
        "key_value_heads": (2, 2, 2),
        "inner": (20, 20, 20),
        "vocabulary": 23,
        "max_length": 12,
    }
    return LlamaSpec(**{**given, **changes})


HALVES = tiny(heads=(4, 0, 2), key_value_heads=(4, 0, 1), inner=(0, 20, 12))


def shaken(spec, seed=0):
    """A model none of whose weights is special: norms are not the identity either."""
    model = spec.build(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def transformers_twin(model, spec):
    config = transformers.LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.inner[0],
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads[0],
        num_key_value_heads=spec.key_value_heads[0],
        max_position_embeddings=spec.max_length,
        rms_norm_eps=spec.norm_epsilon,
        tie_word_embeddings=spec.tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    assert config.rope_parameters["rope_theta"] == spec.rope_theta
    twin = transformers.LlamaForCausalLM(config).eval()
    state = {
        "model.embed_tokens.weight": model.tokens.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for number, block in enumerate(model.blocks):
        for theirs, ours in (
            ("self_attn.q_proj", block.attention.query),
            ("self_attn.k_proj", block.attention.key),
            ("self_attn.v_proj", block.attention.value),
            ("self_attn.o_proj", block.attention.output),
            ("mlp.gate_proj", block.mlp.gate),
            ("mlp.up_proj", block.mlp.up),
            ("mlp.down_proj", block.mlp.down),
            ("input_layernorm", block.attention_norm),
            ("post_attention_layernorm", block.mlp_norm),
        ):
            state[f"model.layers.{number}.{theirs}.weight"] = ours.weight
    twin.load_state_dict({name: value.detach() for name, value in state.items()})
    return twin


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shared", [4, 2, 1])
@pytest.mark.parametrize("fused", [True, False])
def test_numbers_are_those_of_transformers_llama(tied, shared, fused):
    spec = tiny(tied=tied, key_value_heads=(shared,) * 3)
    model = shaken(spec)
    twin = transformers_twin(model, spec)
    if fused:
        fuse_attention(model)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 23, (3, 12), generator=generator)
    theirs = twin(tokens, labels=tokens)
    torch.testing.assert_close(model.head(model(tokens)), theirs.logits)
    loss = model.loss(tokens)
    torch.testing.assert_close(loss, theirs.loss)
    for ours, other in (
        (model.tokens.weight, twin.model.embed_tokens.weight),
        (model.blocks[0].attention.key.weight, twin.model.layers[0].self_attn.k_proj.weight),
        (model.blocks[2].mlp.gate.weight, twin.model.layers[2].mlp.gate_proj.weight),
    ):
        (gradient,) = torch.autograd.grad(loss, ours, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs.loss, other, retain_graph=True)
        torch.testing.assert_close(gradient, expected)
    assert spec.parameters() == sum(p.numel() for p in twin.parameters())


@settings(max_examples=50, deadline=None)
@given(spec=llama_specs())
def test_counts_equal_the_built_module(spec):
    model = spec.build(seed=0)
    assert sum(p.numel() for p in model.parameters()) == spec.parameters()
    body = [*model.blocks.parameters(), *model.norm.parameters()]
    assert sum(p.numel() for p in body) == spec.body_parameters()
    assert spec.depth == len(model.blocks) == len(model.probe_points())


def test_a_block_may_have_one_half_alone():
    model = shaken(HALVES)
    attending, computing, both = model.blocks
    hidden = torch.randn(2, 5, 16)
    normed = functional.rms_norm(hidden, (16,), attending.attention_norm.weight, eps=1e-5)
    torch.testing.assert_close(attending(hidden), hidden + attending.attention(normed))
    normed = functional.rms_norm(hidden, (16,), computing.mlp_norm.weight, eps=1e-5)
    mlp = computing.mlp
    inner = functional.silu(normed @ mlp.gate.weight.T) * (normed @ mlp.up.weight.T)
    torch.testing.assert_close(computing(hidden), hidden + inner @ mlp.down.weight.T)
    first, second, third = model.probe_points()
    assert [len(p.linear) for p in (first, second, third)] == [4, 3, 7]
    assert [len(p.mlp) for p in (first, second, third)] == [0, 3, 3]
    assert [len(p.act) for p in (first, second, third)] == [0, 1, 1]
    assert [len(p.gate) for p in (first, second, third)] == [0, 1, 1]
    assert [len(p.head) for p in (first, second, third)] == [3, 0, 3]
    assert [len(p.softmax) for p in (first, second, third)] == [1, 0, 1]
    assert both(hidden).shape == hidden.shape


def test_probabilities_and_activations_are_seen():
    model = HALVES.build(seed=0)
    shapes = []
    for points in model.probe_points():
        for module in (*points.softmax, *points.act):
            module.register_forward_hook(lambda _m, _a, output: shapes.append(tuple(output.shape)))
    model(torch.randint(0, 23, (3, 12)))
    assert shapes == [(3, 4, 12, 12), (3, 12, 20), (3, 2, 12, 12), (3, 12, 12)]


def test_no_position_sees_a_later_token():
    model = shaken(HALVES)
    tokens = torch.randint(0, 23, (1, 12))
    changed = tokens.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 23
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_a_build_is_in_eval_mode_repeats_by_seed_and_leaves_the_global_generator():
    before = torch.get_rng_state()
    first, again, other = (HALVES.build(seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.tokens.weight, other.tokens.weight)
    assert torch.equal(first.norm.weight, torch.ones(16))


def test_weights_have_the_standard_deviation_of_the_spec():
    spec = dataclasses.replace(tiny(weight_std=0.5), width=128, inner=(200, 200, 200))
    model = spec.build(seed=0)
    for layer in (model.blocks[0].attention.key, model.blocks[1].mlp.down, model.tokens):
        assert layer.weight.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 0}, "width must be a whole number above 0"),
        ({"heads": (4, 4)}, "heads has 2 entries and inner 3"),
        ({"key_value_heads": (2, 2)}, "key_value_heads has 2 entries and heads 3"),
        ({"heads": (4, 3, 4)}, r"heads\[1\] is 3, which does not divide width 16"),
        ({"heads": (4, -1, 4)}, r"heads\[1\] must be a whole number above 0, or 0 where"),
        ({"key_value_heads": (2, 3, 2)}, r"key_value_heads\[1\] is 3, which does not divide"),
        ({"key_value_heads": (2, 0, 2)}, r"key_value_heads\[1\] must be a whole number above 0"),
        ({"heads": (4, 0, 4)}, r"key_value_heads\[1\] is 2, but the block has no attention"),
        ({"heads": (4, 16, 4)}, r"a head has size 1; rotary positions need an even one"),
        (
            {"heads": (4, 0, 4), "key_value_heads": (2, 0, 2), "inner": (20, 0, 20)},
            r"heads\[1\] and inner\[1\] are both 0",
        ),
    ],
)
def test_a_bad_spec_names_the_field(changes, said):
    with pytest.raises(LmscoutError, match=said) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)


def test_sequences_that_do_not_fit_are_refused():
    model = tiny().build(seed=0)
    with pytest.raises(LmscoutError, match=r"13 tokens are too long.* 12 positions"):
        model.loss(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(LmscoutError, match="at least 2 tokens"):
        model.loss(torch.zeros(4, 1, dtype=torch.int64))
