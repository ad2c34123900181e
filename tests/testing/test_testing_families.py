"""Every family passes the kit, and the kit finds the faults that it is for."""

import dataclasses

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from lmscout.evaluation import modeling_lmscout
from lmscout.pruning.families import (
    CHANNELS,
    Affine,
    Attention,
    BlockParts,
    Llama,
    family_of,
    set_units,
)
from lmscout.pruning.families.gpt2 import Gpt2
from lmscout.testing import check_family, random_model

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SMALL_GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MULTIPLIERS = {
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.5,
    "logits_scaling": 1.5,
}
TOKEN_NUMBERS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "sliding_window": 16,
    "final_logit_softcapping": 5.0,
}
EXPERTS = {
    "head_dim": 8,
    "moe_intermediate_size": 16,
    "num_experts": 6,
    "num_experts_per_tok": 3,
}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama-biases-tied": LlamaConfig(
        **SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama-wide-heads": LlamaConfig(**SMALL, head_dim=16),
    "mistral": MistralConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen2-tied": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "qwen3-biases": Qwen3Config(**SMALL, head_dim=16, attention_bias=True),
    "granite": GraniteConfig(**SMALL, **MULTIPLIERS),
    "granite-biases-tied": GraniteConfig(
        **SMALL, **MULTIPLIERS, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "smollm3": SmolLM3Config(**SMALL, **TOKEN_NUMBERS, no_rope_layers=[1, 0, 1]),
    "smollm3-sliding-biases": SmolLM3Config(
        **SMALL,
        **TOKEN_NUMBERS,
        no_rope_layers=[0, 1, 1],
        use_sliding_window=True,
        sliding_window=16,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    # A masked model adds epsilon to a mean over all heads, so a small one makes no difference.
    "olmo2": Olmo2Config(**SMALL, **TOKEN_NUMBERS, rms_norm_eps=1e-9),
    "olmo2-biases-tied": Olmo2Config(
        **SMALL,
        **TOKEN_NUMBERS,
        rms_norm_eps=1e-9,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    "phi3": Phi3Config(**SMALL, **TOKEN_NUMBERS),
    "phi3-partial-rotary": Phi3Config(
        **SMALL,
        **TOKEN_NUMBERS,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
        },
        sliding_window=16,
        tie_word_embeddings=True,
    ),
    "gemma2": Gemma2Config(**SMALL, **GEMMA, attn_logit_softcapping=2.0),
    "gemma2-unbounded-biases": Gemma2Config(
        **SMALL,
        **GEMMA | {"final_logit_softcapping": None},
        attn_logit_softcapping=None,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    "gemma3": Gemma3TextConfig(**SMALL, **GEMMA, layer_types=ALTERNATING),
    "gemma3-biases": Gemma3TextConfig(
        **SMALL,
        **GEMMA | {"final_logit_softcapping": None},
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=5, num_experts_per_tok=2),
    "mixtral-tied-wide-heads": MixtralConfig(
        **SMALL,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=3,
        sliding_window=16,
        tie_word_embeddings=True,
        output_router_logits=True,
    ),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, **EXPERTS, norm_topk_prob=True),
    "qwen3_moe-some-dense": Qwen3MoeConfig(
        **SMALL, **EXPERTS, mlp_only_layers=[0], attention_bias=True, tie_word_embeddings=True
    ),
    "mixtral-channels": MixtralConfig(
        **SMALL | {"intermediate_size": 32}, num_local_experts=3, num_experts_per_tok=2
    ),
    "qwen3_moe-some-dense-channels": Qwen3MoeConfig(
        **SMALL, **EXPERTS | {"moe_intermediate_size": 32}, mlp_only_layers=[0]
    ),
    "gpt2": GPT2Config(**SMALL_GPT2, n_inner=24),
    "gpt2-scaled-by-block": GPT2Config(
        **SMALL_GPT2, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False
    ),
}
for _name, _config in CONFIGS.items():
    if _name.endswith("channels"):
        set_units(_config, CHANNELS)
TOKENS = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_conforms(name):
    check_family(family_of(CONFIGS[name]), random_model(CONFIGS[name]), TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "phi3", "gemma3", "qwen3_moe-some-dense"])
def test_the_kit_saves_as_users_do_where_it_is_asked_to(name):
    family = family_of(CONFIGS[name])
    check_family(family, random_model(CONFIGS[name]), TOKENS, fresh_process=True)


class Copying(Llama):
    def parts(self, block):
        parts = super().parts(block)
        copied = Affine(parts.mlp.output.weight.clone(), None)
        return BlockParts(parts.attention, dataclasses.replace(parts.mlp, output=copied))


class Miscounting(Llama):
    def parts(self, block):
        parts = super().parts(block)
        return BlockParts(dataclasses.replace(parts.attention, units=1), parts.mlp)


class Unbiased(Llama):
    def parts(self, block):
        parts = super().parts(block)
        query, *others = parts.attention.inputs
        inputs = (Affine(query.weight, None), *others)
        return BlockParts(dataclasses.replace(parts.attention, inputs=inputs), parts.mlp)


class KeyForValue(Gpt2):
    def parts(self, block):
        parts = super().parts(block)
        query, key, value = parts.attention.inputs
        attention = dataclasses.replace(parts.attention, inputs=(query, value, key))
        return BlockParts(attention, parts.mlp)


class HalfHeads(Attention):
    def inner(self, normed, context):
        fields = vars(self) | {"units": self.units // 2, "head_size": self.head_size * 2}
        return Attention(**fields).inner(normed, context)


class Interleaved(Llama):
    """Counts half heads as units, which only another order of units shows."""

    def parts(self, block):
        parts = super().parts(block)
        whole = parts.attention
        fields = vars(whole) | {"units": whole.units * 2, "head_size": whole.head_size // 2}
        return BlockParts(HalfHeads(**fields), parts.mlp)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (Copying(), "llama", "block 0 mlp: a map is a copy"),
        (Miscounting(), "llama", r"rows, but 1 units make \[32, 8, 8\]"),
        (Unbiased(), "qwen2", "the family's forward pass: logits differ"),
        (KeyForValue(), "gpt2", "the family's forward pass: logits differ"),
        (Interleaved(), "llama", "the model with attention units reordered: logits differ"),
    ],
)
def test_the_kit_finds_a_family_that_is_wrong(family, config, message):
    with pytest.raises(AssertionError, match=message):
        check_family(family, random_model(CONFIGS[config]), TOKENS)


def test_the_kit_finds_a_cache_that_blocks_without_attention_confuse(monkeypatch):
    monkeypatch.setattr(
        modeling_lmscout, "cache_slots", lambda config: list(range(config.num_hidden_layers))
    )
    with pytest.raises(AssertionError, match=r"'sublayers' .any.: text in two parts"):
        check_family(Llama(), random_model(CONFIGS["llama"]), TOKENS)


def test_the_kit_refuses_weights_that_decide_nothing():
    model = random_model(CONFIGS["llama"])
    for block in model.model.layers:
        block.mlp.down_proj.weight.data.zero_()
        block.self_attn.o_proj.weight.data.zero_()
    with pytest.raises(AssertionError, match="too little to check anything"):
        check_family(Llama(), model, TOKENS)
