"""Small random models of every family, with everything that a family may have."""

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}

CONFIGS = {
    "llama": LlamaConfig(**COMMON, head_dim=8, tie_word_embeddings=True),
    "llama-bias": LlamaConfig(
        **COMMON, head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=False
    ),
    "mistral": MistralConfig(**COMMON, head_dim=8, sliding_window=None),
    "qwen2": Qwen2Config(**COMMON),
    "qwen3": Qwen3Config(**COMMON, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=3, n_head=4, initializer_range=0.2
    ),
}


def random_model(name, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.1)  # biases start at zero, where they hide mistakes
    return model


def random_windows(count=6, length=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(64, (count, length), generator=generator)
