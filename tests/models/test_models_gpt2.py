import math

import pytest
import torch
import transformers
import yaml
from hypothesis import given, settings
from model_strategies import gpt2_specs
from torch.nn import functional

from lmscout.benchmarks import load
from lmscout.errors import LmscoutError
from lmscout.models import Gpt2Spec


def tiny(**changes):
    settings = {
        "width": 8,
        "heads": (2, 4),
        "inner": (5, 12),
        "embedding_width": 12,
        "divisor": 2,
        "cutoffs": (7, 11),
        "tied": (False, True, True),
        "vocabulary": 17,
        "max_length": 10,
    }
    return Gpt2Spec(**{**settings, **changes})


@pytest.fixture(scope="module")
def folder(shared_data):
    path = shared_data / "lts" / "random_GPT2_wt103"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the FlexiBERT benchmark")
    return path


def test_counts_equal_those_recorded_upstream_for_all_200(folder):
    recorded = yaml.safe_load((folder / "params_summary.yaml").read_text())
    benchmark = load(f"lts:{folder}")
    assert len(recorded) == 200
    assert set(benchmark.identifiers) == set(recorded)
    for identifier, spec in zip(benchmark.identifiers, benchmark.specs, strict=True):
        counted = {
            "Attn": spec.attention_parameters(),
            "FFN": spec.mlp_parameters(),
            "AdaEmb": spec.embedding_parameters(),
            "nonembedding": spec.body_parameters(),
            "total": spec.parameters(),
        }
        assert counted == recorded[identifier], identifier


def test_counts_equal_the_built_module_on_real_rows(folder):
    benchmark = load(f"lts:{folder}")
    kinds = set()
    for identifier in ("config_0_j0", "config_12_j4", "config_13_j5", "config_16_j0"):
        spec = benchmark.specs[benchmark.identifiers.index(identifier)]
        kinds.add((spec.divisor, spec.embedding_width == spec.width))
        model = spec.build(seed=0)
        assert sum(p.numel() for p in model.parameters()) == spec.parameters()
    assert len(kinds) >= 3


@settings(max_examples=50, deadline=None)
@given(spec=gpt2_specs())
def test_counts_equal_the_built_module(spec):
    model = spec.build(seed=0)

    def size(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    assert size(model) == spec.parameters()
    assert size(model.blocks, model.norm) == spec.body_parameters()
    attending = [b for b in model.blocks if b.attention]
    assert size(*(b.attention for b in attending)) == spec.attention_parameters()
    mlps = [b.mlp for b in model.blocks if b.mlp]
    assert size(*mlps) == spec.mlp_parameters()
    tables = size(model.vocabulary.tables, model.vocabulary.projections)
    assert tables + size(model.positions) == spec.embedding_parameters()


def test_a_block_is_causal_attention_then_mlp_each_on_the_normed_state():
    model = tiny().build(seed=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    layer = model.blocks[1]
    hidden = torch.randn(1, 6, 8, dtype=torch.float64)
    normed = functional.layer_norm(
        hidden, (8,), layer.attention_norm.weight, layer.attention_norm.bias, eps=1e-5
    )
    query, key, value = (
        getattr(layer.attention, name)(normed)[0] for name in ("query", "key", "value")
    )
    context = torch.zeros(6, 8, dtype=torch.float64)
    for head in range(4):
        part = slice(2 * head, 2 * head + 2)
        for position in range(6):
            scores = key[: position + 1, part] @ query[position, part] / math.sqrt(2)
            context[position, part] = scores.softmax(0) @ value[: position + 1, part]
    added = hidden + layer.attention.output(context)
    normed = functional.layer_norm(
        added, (8,), layer.mlp_norm.weight, layer.mlp_norm.bias, eps=1e-5
    )
    inner = layer.mlp.expand(normed)
    inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    torch.testing.assert_close(layer(hidden), added + layer.mlp.contract(inner))


def test_numbers_are_those_of_transformers_gpt2():
    # Theirs has one head count, neither scales embeddings nor has token biases, and keeps
    # query, key and value in one transposed matrix.
    spec = tiny(
        heads=(4, 4), inner=(20, 20), embedding_width=8, divisor=1, cutoffs=(), tied=(True,)
    )
    model = spec.build(seed=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.vocabulary.token_bias.zero_()
    config = transformers.GPT2Config(
        vocab_size=17,
        n_positions=10,
        n_embd=8,
        n_layer=2,
        n_head=4,
        n_inner=20,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    table = model.vocabulary.tables[0].weight
    state = {
        "transformer.wte.weight": table * math.sqrt(8),
        "transformer.wpe.weight": model.positions.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
        "lm_head.weight": table,
    }
    for number, block in enumerate(model.blocks):
        inside = f"transformer.h.{number}"
        attention = block.attention
        joined = (attention.query, attention.key, attention.value)
        state[f"{inside}.attn.c_attn.weight"] = torch.cat([one.weight.T for one in joined], 1)
        state[f"{inside}.attn.c_attn.bias"] = torch.cat([one.bias for one in joined])
        for name, layer in (
            ("attn.c_proj", attention.output),
            ("mlp.c_fc", block.mlp.expand),
            ("mlp.c_proj", block.mlp.contract),
        ):
            state[f"{inside}.{name}.weight"] = layer.weight.T
            state[f"{inside}.{name}.bias"] = layer.bias
        for name, layer in (("ln_1", block.attention_norm), ("ln_2", block.mlp_norm)):
            state[f"{inside}.{name}.weight"] = layer.weight
            state[f"{inside}.{name}.bias"] = layer.bias
    theirs.load_state_dict({name: value.detach() for name, value in state.items()})
    tokens = torch.randint(0, 17, (3, 10), generator=generator)
    torch.testing.assert_close(model.loss(tokens), theirs(tokens, labels=tokens).loss)


def test_a_block_may_have_one_half_alone():
    spec = tiny(heads=(2, 0), inner=(0, 12))
    model = spec.build(seed=1)
    attending, computing = model.blocks
    hidden = torch.randn(2, 5, 8)
    expected = hidden + attending.attention(attending.attention_norm(hidden))
    torch.testing.assert_close(attending(hidden), expected)
    inner = functional.gelu(computing.mlp.expand(computing.mlp_norm(hidden)), approximate="tanh")
    torch.testing.assert_close(computing(hidden), hidden + computing.mlp.contract(inner))
    first, second = model.probe_points()
    assert (first.act, first.mlp, len(first.head), len(first.linear)) == ((), (), 3, 4)
    assert (second.head, second.softmax, len(second.act)) == ((), (), 1)
    assert second.linear == second.mlp == (computing.mlp.expand, computing.mlp.contract)


def test_maps_into_the_residual_stream_are_drawn_by_how_many_there_are():
    spec = tiny(width=64, heads=(2, 0), inner=(0, 400), embedding_width=128)
    model = spec.build(seed=0)
    for weight in (model.blocks[0].attention.output.weight, model.blocks[1].mlp.contract.weight):
        assert weight.std().item() == pytest.approx(0.02 / 2**0.5, rel=0.1)


def test_attention_probabilities_are_seen_and_zero_for_the_future():
    model = tiny().build(seed=0)
    seen = []
    for points in model.probe_points():
        (softmax,) = points.softmax
        softmax.register_forward_hook(lambda _m, _a, output: seen.append(output))
    model(torch.randint(0, 17, (3, 10)))
    assert [tuple(p.shape) for p in seen] == [(3, 2, 10, 10), (3, 4, 10, 10)]
    for probabilities in seen:
        assert not probabilities.triu(1).any()
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))


def test_no_position_sees_a_later_token():
    model = tiny().build(seed=0)
    tokens = torch.randint(0, 17, (1, 10))
    changed = tokens.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % 17
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_embedding_adds_positions_and_encode_ends_in_the_final_norm():
    model = tiny().build(seed=0)
    tokens = torch.randint(0, 17, (2, 5))
    hidden = model.vocabulary.embed(tokens) + model.positions.weight[:5]
    torch.testing.assert_close(model.embed(tokens), hidden)
    for layer in model.blocks:
        hidden = layer(hidden)
    expected = functional.layer_norm(hidden, (8,), eps=1e-5)
    torch.testing.assert_close(model(tokens), expected)


def test_loss_is_the_mean_cross_entropy_of_the_next_token():
    # Untied, one cluster, one table: the plain softmax over the vocabulary.
    spec = tiny(divisor=1, cutoffs=(), tied=(True,), embedding_width=8)
    model = spec.build(seed=3)
    tokens = torch.randint(0, 17, (3, 10))
    logits = model(tokens) @ model.vocabulary.tables[0].weight.T
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model.loss(tokens), expected)


def test_loss_goes_through_the_adaptive_softmax():
    model = tiny().build(seed=3)
    tokens = torch.randint(0, 17, (3, 10))
    hidden = model(tokens)
    each = [
        model.vocabulary.negative_log_likelihood(hidden[b, t, None], tokens[b, t + 1, None])
        for b in range(3)
        for t in range(9)
    ]
    torch.testing.assert_close(model.loss(tokens), torch.cat(each).mean())


def test_weights_have_the_standard_deviations_of_the_spec():
    spec = tiny(width=64, inner=(300, 300), embedding_width=128, vocabulary=900, cutoffs=(300, 600))
    model = spec.build(seed=0)
    layer = model.blocks[0]
    for weight in (layer.mlp.expand.weight, layer.attention.key.weight, model.positions.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    for weight in (layer.mlp.contract.weight, layer.attention.output.weight):
        # narrower by the square root of the number of maps into the residual stream
        assert weight.std().item() == pytest.approx(0.02 / (2 * spec.depth) ** 0.5, rel=0.1)
    vocabulary = model.vocabulary
    assert vocabulary.tables[1].weight.std().item() == pytest.approx(0.02, rel=0.1)
    projections = [*vocabulary.projections, *vocabulary.own_projections.values()]
    assert len(projections) == 4
    for projection in projections:
        assert projection.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not layer.mlp.expand.bias.any()
    assert not vocabulary.token_bias.any()


def test_a_build_is_in_eval_mode_repeats_by_seed_and_leaves_the_global_generator():
    before = torch.get_rng_state()
    first, again, other = (tiny().build(seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.positions.weight, other.positions.weight)


def test_probe_points_name_every_place():
    model = tiny().build(seed=0)
    for points, layer in zip(model.probe_points(), model.blocks, strict=True):
        attention = layer.attention
        assert points.block is layer
        assert points.act == (layer.mlp.activation,)
        assert points.head == (attention.query, attention.key, attention.value)
        assert points.spectrum == ()
        assert points.linear == (
            *points.head,
            attention.output,
            layer.mlp.expand,
            layer.mlp.contract,
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": -8}, "width must be a whole number above 0, not -8"),
        ({"heads": (2, 3)}, r"heads\[1\] is 3, which does not divide width 8"),
        ({"heads": (2, 4, 4)}, "heads has 3 entries and inner 2"),
        ({"heads": (), "inner": ()}, "both need one for each block"),
        (
            {"inner": (5, -1)},
            r"inner\[1\] must be a whole number above 0, or 0 where the block has",
        ),
        ({"heads": (2, True)}, r"heads\[1\] must be a whole number above 0, or 0 .* not True"),
        ({"heads": (2, 0), "inner": (5, 0)}, r"heads\[1\] and inner\[1\] are both 0"),
        ({"cutoffs": (11, 7)}, "cutoffs .* must increase"),
        ({"cutoffs": (7, 17)}, "stay below the vocabulary 17"),
        ({"tied": (False,)}, "tied has 1 entries; the 3 clusters need one each"),
        ({"divisor": 4}, "divisor 4 leaves no width"),
    ],
)
def test_a_bad_spec_names_the_field(changes, said):
    with pytest.raises(LmscoutError, match=said) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)


def test_sequences_that_do_not_fit_are_refused():
    model = tiny().build(seed=0)
    with pytest.raises(LmscoutError, match=r"11 tokens are too long.* 10 positions"):
        model.loss(torch.zeros(1, 11, dtype=torch.int64))
    with pytest.raises(LmscoutError, match="at least 2 tokens"):
        model.loss(torch.zeros(4, 1, dtype=torch.int64))
