"""Pruned language models: each block keeps its own number of attention groups and MLP channels.

lmscout copies this file into the folders that it saves, so it needs nothing but torch and
transformers.  Layers are transformers' own, built one by one at the sizes that the
configuration lists; what a block lost altogether is replaced by a zero.
"""

# mypy: disable-error-code="no-untyped-call"

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.pytorch_utils import Conv1D

# No `from __future__ import annotations`: transformers reads the class of a model's
# configuration from the annotation itself.


class PerBlockSizes:
    """What a pruned configuration adds to its family's; all else is the dense model's.

    These are plain attributes, which every version of transformers reads from a file and
    writes to it, and not fields of a dataclass, which configurations are in some.

    Attributes:
        attention_groups: key-value heads of each block, each with as many query heads as in
            the dense model; 0 for a block without attention.
        mlp_channels: MLP width of each block; 0 for a block without MLP.
        block_numbers: number of each block in the dense model.
    """

    base_model_tp_plan: ClassVar[Any] = None  # heads of a block need not divide evenly

    attention_groups = ()
    mlp_channels = ()
    block_numbers = ()


class _Absent(nn.Module):
    """In the place of attention or an MLP that is gone: adds nothing.

    It does not have attention in its name, because transformers searches this file for such
    classes to find out whether the implementation of attention can be chosen.
    """

    def __init__(self, with_weights: bool) -> None:
        super().__init__()
        self.with_weights = with_weights  # attention returns its weights too

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor | tuple[Tensor, None]:
        nothing = hidden_states.new_zeros(())
        return (nothing, None) if self.with_weights else nothing


class _PrunedBody:
    """A decoder made of blocks of different sizes.

    Attributes:
        block_class: transformers' class of a block.
        blocks_name: under which name the decoder keeps its blocks.
    """

    block_class: ClassVar[type[nn.Module]]
    blocks_name: ClassVar[str] = "layers"

    def __init__(self, config: Any) -> None:
        _read_rope(config)
        with _without_blocks(config):
            super().__init__(config)  # type: ignore[call-arg]
        slots = cache_slots(config)
        blocks = nn.ModuleList(self.block(config, *each) for each in enumerate(slots))
        setattr(self, self.blocks_name, blocks)
        self.post_init()  # type: ignore[attr-defined]

    def block(self, config: Any, index: int, slot: int) -> nn.Module:
        """One block of the LLaMA layout, its keys and values kept in a slot of the cache."""
        groups, channels = config.attention_groups[index], config.mlp_channels[index]
        sizes = copy.copy(config)
        sizes.num_attention_heads = config.num_attention_heads // config.num_key_value_heads
        sizes.num_attention_heads *= max(groups, 1)
        sizes.num_key_value_heads = max(groups, 1)
        sizes.intermediate_size = max(channels, 1)
        block: Any = self.block_class(sizes, index)
        block.self_attn.layer_idx = slot
        # Both look up what may change later, such as the attention implementation.
        block.self_attn.config = block.mlp.config = config
        if not groups:
            block.input_layernorm, block.self_attn = nn.Identity(), _Absent(with_weights=True)
        if not channels:
            block.post_attention_layernorm, block.mlp = nn.Identity(), _Absent(with_weights=False)
        return block  # type: ignore[no-any-return]


class _PrunedGpt2Body(_PrunedBody):
    """The same for GPT-2, whose attention projects query, key and value at once."""

    block_class: ClassVar[type[nn.Module]] = GPT2Block
    blocks_name: ClassVar[str] = "h"

    def block(self, config: Any, index: int, slot: int) -> nn.Module:
        groups, channels = config.attention_groups[index], config.mlp_channels[index]
        sizes = copy.copy(config)
        sizes.n_inner = max(channels, 1)
        # The number in the dense model: attention may be scaled by it.
        block: Any = GPT2Block(sizes, layer_idx=config.block_numbers[index])
        attention = block.attn
        attention.layer_idx, attention.config = slot, config
        attention.num_heads = max(groups, 1)
        attention.split_size = attention.num_heads * attention.head_dim
        attention.c_attn = Conv1D(3 * attention.split_size, config.n_embd)
        attention.c_proj = Conv1D(config.n_embd, attention.split_size)
        if not groups:
            block.ln_1, block.attn = nn.Identity(), _Absent(with_weights=True)
        if not channels:
            block.ln_2, block.mlp = nn.Identity(), _Absent(with_weights=False)
        return block  # type: ignore[no-any-return]


class _PrunedCausal:
    """A language model over a pruned decoder.

    Attributes:
        body_class: class of the decoder.
    """

    body_class: ClassVar[type[PreTrainedModel]]
    base_model_prefix: ClassVar[str]

    def __init__(self, config: Any) -> None:
        with _without_blocks(config):
            super().__init__(config)  # type: ignore[call-arg]
        setattr(self, self.base_model_prefix, self.body_class(config))
        self.post_init()  # type: ignore[attr-defined]


def _read_rope(config: Any) -> None:
    """Let transformers 4 know the rotary embedding, which it has other names for."""
    rope = getattr(config, "rope_parameters", None)
    if rope and "rope_type" in rope and not hasattr(type(config), "rope_scaling"):
        scaling = {name: one for name, one in rope.items() if name != "rope_theta"}
        plain = rope["rope_type"] == "default"
        length = config.max_position_embeddings
        config.rope_theta = rope["rope_theta"]
        config.rope_scaling = None if plain else older_scaling(scaling, length)


def older_scaling(scaling: dict[str, Any], length: int | None) -> dict[str, Any]:
    """A scaling of rotary embeddings as transformers 4 reads it.

    Args:
        scaling: as transformers 5 has it, without the base.
        length: tokens that the model reads.
    """
    name = "original_max_position_embeddings"
    if scaling["rope_type"] == "yarn" and scaling.get(name) == length:
        # What transformers 5 adds; transformers 4 would scale by the ratio of the two, 1.
        return {key: one for key, one in scaling.items() if key != name}
    return scaling


@contextmanager
def _without_blocks(config: Any) -> Iterator[None]:
    """Let a dense class be built without the blocks, which would be dense."""
    depth, config.num_hidden_layers = config.num_hidden_layers, 0
    try:
        yield
    finally:
        config.num_hidden_layers = depth


def cache_slots(config: Any) -> list[int]:
    """Which layer of the cache each block uses.

    Transformers asks the first layer of the cache how many tokens it has seen, and the first
    of a kind (full, sliding) for the mask of all of that kind.  So blocks with attention take
    the first layers of their kind, in order; those without it get what is left over, unused.
    """
    depth = len(config.attention_groups)
    kinds = getattr(config, "layer_types", None) or [""] * depth
    slots = [0] * depth
    for kind in set(kinds):
        free = [index for index in range(depth) if kinds[index] == kind]
        order = sorted(free, key=lambda index: config.attention_groups[index] == 0)
        for index, slot in zip(order, free, strict=True):
            slots[index] = slot
    return slots


class LmscoutLlamaConfig(PerBlockSizes, LlamaConfig):
    """A pruned LLaMA."""

    model_type = "lmscout_llama"


class LmscoutLlamaModel(_PrunedBody, LlamaModel):
    """A pruned LLaMA, without the head."""

    config: LmscoutLlamaConfig
    block_class = LlamaDecoderLayer


class LmscoutLlamaForCausalLM(_PrunedCausal, LlamaForCausalLM):
    """A pruned LLaMA."""

    config: LmscoutLlamaConfig
    body_class = LmscoutLlamaModel


class LmscoutMistralConfig(PerBlockSizes, MistralConfig):
    """A pruned Mistral."""

    model_type = "lmscout_mistral"


class LmscoutMistralModel(_PrunedBody, MistralModel):
    """A pruned Mistral, without the head."""

    config: LmscoutMistralConfig
    block_class = MistralDecoderLayer


class LmscoutMistralForCausalLM(_PrunedCausal, MistralForCausalLM):
    """A pruned Mistral."""

    config: LmscoutMistralConfig
    body_class = LmscoutMistralModel


class LmscoutQwen2Config(PerBlockSizes, Qwen2Config):
    """A pruned Qwen2."""

    model_type = "lmscout_qwen2"


class LmscoutQwen2Model(_PrunedBody, Qwen2Model):
    """A pruned Qwen2, without the head."""

    config: LmscoutQwen2Config
    block_class = Qwen2DecoderLayer


class LmscoutQwen2ForCausalLM(_PrunedCausal, Qwen2ForCausalLM):
    """A pruned Qwen2."""

    config: LmscoutQwen2Config
    body_class = LmscoutQwen2Model


class LmscoutQwen3Config(PerBlockSizes, Qwen3Config):
    """A pruned Qwen3."""

    model_type = "lmscout_qwen3"


class LmscoutQwen3Model(_PrunedBody, Qwen3Model):
    """A pruned Qwen3, without the head."""

    config: LmscoutQwen3Config
    block_class = Qwen3DecoderLayer


class LmscoutQwen3ForCausalLM(_PrunedCausal, Qwen3ForCausalLM):
    """A pruned Qwen3."""

    config: LmscoutQwen3Config
    body_class = LmscoutQwen3Model


class LmscoutGpt2Config(PerBlockSizes, GPT2Config):
    """A pruned GPT-2."""

    model_type = "lmscout_gpt2"


class LmscoutGpt2Model(_PrunedGpt2Body, GPT2Model):
    """A pruned GPT-2, without the head."""

    config: LmscoutGpt2Config


class LmscoutGpt2ForCausalLM(_PrunedCausal, GPT2LMHeadModel):
    """A pruned GPT-2."""

    config: LmscoutGpt2Config
    body_class = LmscoutGpt2Model


# By the dense model's type: configuration, decoder, language model.
PRUNED: dict[str, tuple[type[Any], type[PreTrainedModel], type[PreTrainedModel]]] = {
    "llama": (LmscoutLlamaConfig, LmscoutLlamaModel, LmscoutLlamaForCausalLM),
    "mistral": (LmscoutMistralConfig, LmscoutMistralModel, LmscoutMistralForCausalLM),
    "qwen2": (LmscoutQwen2Config, LmscoutQwen2Model, LmscoutQwen2ForCausalLM),
    "qwen3": (LmscoutQwen3Config, LmscoutQwen3Model, LmscoutQwen3ForCausalLM),
    "gpt2": (LmscoutGpt2Config, LmscoutGpt2Model, LmscoutGpt2ForCausalLM),
}

for _config_class, _body_class, _causal_class in PRUNED.values():
    # Whoever saves such a model, say after fine-tuning it, saves this file with it.
    _config_class.register_for_auto_class()
    _body_class.register_for_auto_class("AutoModel")
    _causal_class.register_for_auto_class("AutoModelForCausalLM")
    # A copy of this file in a saved folder is known by that folder alone; lmscout's is by all.
    if __name__.startswith("lmscout."):
        AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
        AutoModel.register(_config_class, _body_class, exist_ok=True)
        AutoModelForCausalLM.register(_config_class, _causal_class, exist_ok=True)
