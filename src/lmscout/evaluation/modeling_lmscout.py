"""Pruned language models: each block keeps its own number of attention groups and MLP channels.

lmscout copies this file into the folders that it saves, so it imports only torch and
transformers.  Layers are transformers' own, built one by one at the sizes that the
configuration lists; removed attention or MLP is replaced by a zero.
"""

# mypy: disable-error-code="no-untyped-call"

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.models.gpt2 import modeling_gpt2 as gpt2
from transformers.models.llama import modeling_llama as llama
from transformers.pytorch_utils import Conv1D


class PerBlockSizes:
    """Entries that a pruned configuration adds to its family's.

    They are plain attributes, which every version of transformers reads and writes, and no
    dataclass fields, which configurations have in some.

    Attributes:
        attention_groups: key-value heads of each block, each with as many query heads as in
            the dense model; 0 for a block without attention.
        mlp_channels: MLP width of each block, or number of its experts; 0 for a block without
            either.
        block_numbers: number of each block in the dense model.
        expert_channels: width of the experts of each block; none for the configuration's.
    """

    base_model_tp_plan: ClassVar[Any] = None  # heads of a block need not divide evenly

    attention_groups = ()
    mlp_channels = ()
    block_numbers = ()
    expert_channels = ()


class BlockEntries(dict[str, Any]):
    """Entries of a block in config.json, also as attributes, as serving engines read them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class BlockConfigs:
    """What configurations of the DeciLM family have in place of `PerBlockSizes`.

    vLLM, SGLang, TensorRT-LLM and llama.cpp's converter know the family (model type nemotron-nas),
    whose attention has all heads of a block, or none.
    """

    base_model_tp_plan: ClassVar[Any] = None

    @property
    def block_configs(self) -> list[BlockEntries]:
        """Attention and MLP of each block: {"attention": {...}, "ffn": {...}}."""
        found: list[BlockEntries] = self.__dict__.get("block_configs", [])
        return found

    @block_configs.setter
    def block_configs(self, given: Any) -> None:
        if not isinstance(given, list | tuple):
            raise ValueError("block_configs is no list")
        blocks = []
        for one in given:
            if not all(isinstance(one.get(part), dict) for part in ("attention", "ffn")):
                raise ValueError("block_configs: a block has no attention, or no ffn")
            blocks.append(BlockEntries({name: BlockEntries(one[name]) for name in one}))
        self.__dict__["block_configs"] = blocks

    @property
    def attention_groups(self) -> list[int]:
        """Key-value heads of each block; 0 for a block without attention."""
        config: Any = self
        parts = (one.attention for one in self.block_configs)
        return [
            0 if one.no_op else config.num_attention_heads // one.n_heads_in_group for one in parts
        ]

    @property
    def mlp_channels(self) -> list[int]:
        """MLP width of each block; 0 for a block without MLP."""
        config: Any = self
        parts = (one.ffn for one in self.block_configs)
        return [0 if one.no_op else mlp_width(one.ffn_mult, config.hidden_size) for one in parts]


def mlp_width(multiplier: float, hidden: int) -> int:
    """The MLP width that engines of the DeciLM family make of `ffn_mult`, a multiple of 256."""
    return -(-int(2 * multiplier * hidden / 3) // WIDTH_STEP) * WIDTH_STEP


WIDTH_STEP = 256


class _Absent(nn.Module):
    """Zero in place of removed attention or MLP.

    Its name has no "attention" in it: transformers searches this file for such classes to find
    out whether the implementation of attention can be chosen.
    """

    def __init__(self, with_weights: bool) -> None:
        super().__init__()
        self.with_weights = with_weights  # attention returns a pair

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor | tuple[Tensor, None]:
        zero = hidden_states.new_zeros(())
        return (zero, None) if self.with_weights else zero


class _PrunedBody:
    """A decoder made of blocks of different sizes.

    Attributes:
        block_class: transformers' class of a block.
        blocks_name: attribute of the decoder that holds its blocks.
        norms: attributes of a block that are norms of its attention, and of its MLP.
    """

    block_class: ClassVar[type[nn.Module]]
    blocks_name: ClassVar[str] = "layers"
    norms: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (
        ("input_layernorm",),
        ("post_attention_layernorm",),
    )

    def __init__(self, config: Any) -> None:
        _read_rope(config)
        with _without_blocks(config):
            super().__init__(config)  # type: ignore[call-arg]
        slots = cache_slots(config)
        blocks = nn.ModuleList(self.block(config, *each) for each in enumerate(slots))
        setattr(self, self.blocks_name, blocks)
        self.post_init()  # type: ignore[attr-defined]

    def block(self, config: Any, index: int, slot: int) -> nn.Module:
        """Build a block of the LLaMA layout that uses layer `slot` of the cache."""
        groups, channels = config.attention_groups[index], config.mlp_channels[index]
        sizes = self.sizes(config, index)
        block: Any = self.block_class(sizes, self.number(config, index))
        block.self_attn.layer_idx = slot
        # Shared, since the attention implementation may be changed later.
        block.self_attn.config = block.mlp.config = config
        if not groups:
            block.self_attn = _Absent(with_weights=True)
        if not channels:
            block.mlp = _Absent(with_weights=False)
        for names, units in zip(self.norms, (groups, channels), strict=True):
            for name in () if units else names:
                setattr(block, name, nn.Identity())
        return block  # type: ignore[no-any-return]

    def sizes(self, config: Any, index: int) -> Any:
        """The configuration with the sizes of one block."""
        groups, channels = max(config.attention_groups[index], 1), config.mlp_channels[index]
        sizes = copy.copy(config)
        sizes.num_attention_heads = config.num_attention_heads // config.num_key_value_heads
        sizes.num_attention_heads *= groups
        sizes.num_key_value_heads = groups
        sizes.intermediate_size = max(channels, 1)
        return sizes

    def number(self, config: Any, index: int) -> int:
        """The number by which a block finds what the configuration lists by block."""
        return index


def expert_width(config: Any) -> str:
    """Name of the field that holds the width of an expert."""
    names = "moe_intermediate_size", "intermediate_size"
    return next(name for name in names if hasattr(config, name))


class _PrunedExpertsBody(_PrunedBody):
    """The same for mixtures of experts, which `mlp_channels` counts in place of channels."""

    def block(self, config: Any, index: int, slot: int) -> nn.Module:
        block: Any = super().block(config, index, slot)
        if hasattr(block.mlp, "experts"):
            block.mlp.experts.config = config
        return block  # type: ignore[no-any-return]

    def sizes(self, config: Any, index: int) -> Any:
        sizes, experts = super().sizes(config, index), max(config.mlp_channels[index], 1)
        width = expert_width(config)
        own = config.expert_channels[index] if config.expert_channels else getattr(config, width)
        setattr(sizes, width, max(own, 1))
        sizes.num_experts = experts
        sizes.num_experts_per_tok = min(experts, config.num_experts_per_tok)
        return sizes

    def number(self, config: Any, index: int) -> int:
        """Which blocks have experts follows from their numbers in the dense model."""
        return config.block_numbers[index]  # type: ignore[no-any-return]


class _OtherHeads:
    """A shared configuration, but for the number of query heads."""

    def __init__(self, shared: Any, heads: int) -> None:
        self.shared, self.num_attention_heads = shared, heads

    def __getattr__(self, name: str) -> Any:
        if name == "shared":  # a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self.shared, name)


class _PrunedPhi3Body(_PrunedBody):
    """The same for Phi-3, whose attention reads its number of heads from the configuration."""

    def block(self, config: Any, index: int, slot: int) -> nn.Module:
        block: Any = super().block(config, index, slot)
        if config.attention_groups[index]:
            size = block.self_attn.head_dim
            heads = block.self_attn.o_proj.in_features // size
            block.self_attn.config = _OtherHeads(config, heads)
        return block  # type: ignore[no-any-return]


_AFTER = ("post_attention_layernorm",), ("post_feedforward_layernorm",)


class _PrunedOlmo2Body(_PrunedBody):
    """The same for OLMo 2, whose norms come after."""

    norms = _AFTER


class _PrunedGemmaBody(_PrunedBody):
    """The same for Gemma, with norms before and after."""

    norms = ("input_layernorm", *_AFTER[0]), ("pre_feedforward_layernorm", *_AFTER[1])


class _PrunedGpt2Body(_PrunedBody):
    """The same for GPT-2, whose attention projects query, key and value at once."""

    blocks_name: ClassVar[str] = "h"

    def block(self, config: Any, index: int, slot: int) -> nn.Module:
        groups, channels = config.attention_groups[index], config.mlp_channels[index]
        sizes = copy.copy(config)
        sizes.n_inner = max(channels, 1)
        # The number in the dense model: attention may be scaled by it.
        block: Any = gpt2.GPT2Block(sizes, layer_idx=config.block_numbers[index])
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
    """Set the rotary embedding's entries under the names of transformers 4."""
    rope = getattr(config, "rope_parameters", None)
    if rope and "rope_type" in rope and not hasattr(type(config), "rope_scaling"):
        scaling = {name: one for name, one in rope.items() if name != "rope_theta"}
        plain = rope["rope_type"] == "default"
        length = config.max_position_embeddings
        config.rope_theta = rope["rope_theta"]
        config.rope_scaling = None if plain else older_scaling(scaling, length)


def older_scaling(scaling: dict[str, Any], length: int | None) -> dict[str, Any]:
    """A scaling of rotary embeddings over `length` tokens, without its base, for transformers 4."""
    name = "original_max_position_embeddings"
    if scaling["rope_type"] == "yarn" and scaling.get(name) == length:
        # What transformers 5 adds; transformers 4 would scale by the ratio of the two, 1.
        return {key: one for key, one in scaling.items() if key != name}
    return scaling


@contextmanager
def _without_blocks(config: Any) -> Iterator[None]:
    """Build a dense class without blocks while the block runs."""
    depth, config.num_hidden_layers = config.num_hidden_layers, 0
    try:
        yield
    finally:
        config.num_hidden_layers = depth


def cache_slots(config: Any) -> list[int]:
    """The layer of the cache that each block uses.

    transformers takes the number of past tokens from the first layer of the cache, and the mask
    from the first layer of each kind (full, sliding).  So blocks with attention use the first
    layers of their kind, in order, and blocks without it the remaining ones.
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


PRUNED: dict[str, tuple[type[Any], type[PreTrainedModel], type[PreTrainedModel]]] = {}
"""Configuration, decoder and language model by the dense model's type, and those of `DECI`."""
DECI = "nemotron-nas"
"""The model type of the DeciLM family."""


def _add_family(
    kind: str,
    title: str,
    config: type[Any],
    body: type[PreTrainedModel],
    causal: type[PreTrainedModel],
    block: type[nn.Module],
    *,
    pruned: type[_PrunedBody],
    sizes_class: type[Any] = PerBlockSizes,
    model_type: str | None = None,
) -> None:
    """Define {title}Config, {title}Model and {title}ForCausalLM."""

    def define(part: str, bases: tuple[type[Any], ...], **attributes: Any) -> type[Any]:
        name = f"{title}{part}"
        own = type(name, bases, {"__module__": __name__, "__doc__": None, **attributes})
        globals()[name] = own
        return own

    sizes = define("Config", (sizes_class, config), model_type=model_type or f"lmscout_{kind}")
    decoder = define("Model", (pruned, body), config_class=sizes, block_class=block)
    whole = define("ForCausalLM", (_PrunedCausal, causal), config_class=sizes, body_class=decoder)
    PRUNED[kind] = sizes, decoder, whole
    # A model that is saved again, say after fine-tuning, takes this file along.
    sizes.register_for_auto_class()
    decoder.register_for_auto_class("AutoModel")
    whole.register_for_auto_class("AutoModelForCausalLM")
    # The copy of this file in a saved folder is not registered for other folders.
    if __name__.startswith("lmscout."):
        AutoConfig.register(sizes.model_type, sizes, exist_ok=True)
        AutoModel.register(sizes, decoder, exist_ok=True)
        AutoModelForCausalLM.register(sizes, whole, exist_ok=True)


_BODIES: dict[str, type[_PrunedBody]] = {
    "gpt2": _PrunedGpt2Body,
    "phi3": _PrunedPhi3Body,
    "olmo2": _PrunedOlmo2Body,
    "gemma2": _PrunedGemmaBody,
    "gemma3_text": _PrunedGemmaBody,
    "mixtral": _PrunedExpertsBody,
    "qwen3_moe": _PrunedExpertsBody,
}
_NAMES = ("Config", "Model", "ForCausalLM", "DecoderLayer")
_FAMILIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    kind: (kind, title, tuple(title + name for name in _NAMES))
    for kind, title in (
        *(("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3")),
        *(("granite", "Granite"), ("smollm3", "SmolLM3"), ("olmo2", "Olmo2"), ("phi3", "Phi3")),
        *(("gemma2", "Gemma2"), ("mixtral", "Mixtral"), ("qwen3_moe", "Qwen3Moe")),
    )
}
_TEXT = "Gemma3TextConfig", "Gemma3TextModel", "Gemma3ForCausalLM", "Gemma3DecoderLayer"
_FAMILIES["gemma3_text"] = "gemma3", "Gemma3Text", _TEXT
_GPT2 = "GPT2Config", "GPT2Model", "GPT2LMHeadModel", "GPT2Block"
_FAMILIES["gpt2"] = "gpt2", "Gpt2", _GPT2
for _kind, (_name, _title, _classes) in _FAMILIES.items():
    try:
        _module = import_module(f"transformers.models.{_name}.modeling_{_name}")
    except ImportError:  # a version of transformers without the family
        continue
    _found = (getattr(_module, name) for name in _classes)
    _add_family(_kind, f"Lmscout{_title}", *_found, pruned=_BODIES.get(_kind, _PrunedBody))
_add_family(
    DECI,
    "DeciLM",
    *(getattr(llama, f"Llama{name}") for name in _NAMES),
    pruned=_PrunedBody,
    sizes_class=BlockConfigs,
    model_type=DECI,
)
