"""Architectures as transformers models, so that an untrained one can be saved and trained.

A folder with a LLaMA whose blocks are all alike is one of transformers' own.  Any other decoder
is a `DesignedForCausalLM`: the Auto classes load it after `lmscout.register()`, or with
``trust_remote_code=True`` where lmscout is installed.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from lmscout.errors import LmscoutError
from lmscout.files import as_json, check_folder, write_file
from lmscout.models import spec_from_dict
from lmscout.models.llama import LlamaModel, LlamaSpec, Rotary
from lmscout.models.lts import Gpt2Model, Gpt2Spec, TransformerXlModel, TransformerXlSpec
from lmscout.models.spec import SPEC, ArchitectureSpec

_CODE = "from lmscout.models.pretrained import DesignedConfig, DesignedForCausalLM\n"
_FILE = "modeling_design"  # of a saved folder
_MODELS: dict[type[ArchitectureSpec], Any] = {
    Gpt2Spec: Gpt2Model,
    LlamaSpec: LlamaModel,
    TransformerXlSpec: TransformerXlModel,
}


class DesignedConfig(PreTrainedConfig):
    """Configuration of a designed architecture.

    Attributes:
        spec: the architecture, as `ArchitectureSpec.to_dict` gives it.
    """

    model_type = "lmscout_design"

    def __init__(self, spec: dict[str, Any] | None = None, **entries: Any) -> None:
        self.spec = spec
        if spec:
            found: Any = spec_from_dict(spec)
            entries["vocab_size"] = found.vocabulary
            entries["hidden_size"], entries["num_hidden_layers"] = found.width, found.depth
            entries["max_position_embeddings"], entries["use_cache"] = found.max_length, False
        super().__init__(**entries)


class DesignedForCausalLM(PreTrainedModel, GenerationMixin):
    """A designed decoder with transformers' interface; it has no cache of keys and values."""

    config_class = DesignedConfig
    base_model_prefix = "decoder"
    _tied_weights_keys = {  # noqa: RUF012 - as transformers declares it
        "decoder.head.weight": "decoder.tokens.weight"
    }

    def __init__(self, config: DesignedConfig) -> None:
        super().__init__(config)
        spec: Any = spec_from_dict(config.spec or {})
        self.decoder = _MODELS[type(spec)](spec)
        config.tie_word_embeddings = isinstance(spec, LlamaSpec) and spec.tied
        if not config.tie_word_embeddings:
            self._tied_weights_keys = {}
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Compute rotary tables, which are not saved; weights keep the spec's distribution."""
        if isinstance(module, Rotary):
            length, size = module.cosine.shape
            fresh = Rotary(size, length, self.config.spec["rope_theta"])
            module.cosine.data.copy_(fresh.cosine)
            module.sine.data.copy_(fresh.sine)

    def get_input_embeddings(self) -> Any:
        """The embedding; of an adaptive vocabulary all of its tables, in one module."""
        llama = isinstance(self.decoder, LlamaModel)
        return self.decoder.tokens if llama else self.decoder.vocabulary

    def get_output_embeddings(self) -> Any:
        """The output head; None of an adaptive vocabulary, which is no linear layer."""
        return getattr(self.decoder, "head", None)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> CausalLMOutput:
        """Compute next-token logits.

        Args:
            input_ids: ``[B, T]`` int64; padding is on the right, if any.
            labels: ``[B, T]`` int64, -100 where no loss is computed.

        Returns:
            ``logits`` ``[B, T, vocabulary]``, and ``loss`` in nats/token with labels.
        """
        hidden = self.decoder(input_ids)
        llama = isinstance(self.decoder, LlamaModel)
        logits = self.decoder.head(hidden) if llama else self._log_probabilities(hidden)
        loss = None
        if labels is not None:
            targets = labels[:, 1:].flatten()
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets)
        return CausalLMOutput(loss=loss, logits=logits)

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        """Log-probabilities ``[B, T, vocabulary]`` of an adaptive softmax."""
        flat = hidden.flatten(0, 1)
        found: Tensor = self.decoder.vocabulary.log_probabilities(flat)
        return found.view(*hidden.shape[:2], -1)


AutoConfig.register(DesignedConfig.model_type, DesignedConfig, exist_ok=True)
AutoModelForCausalLM.register(DesignedConfig, DesignedForCausalLM, exist_ok=True)


def untrained_model(spec: ArchitectureSpec, seed: int = 0) -> PreTrainedModel:
    """Build an untrained causal language model with transformers' interface, in eval mode.

    Its weights are those of ``spec.build(seed)``.

    Raises:
        LmscoutError: transformers has no class for the architecture.
    """
    if not has_class(spec):
        raise LmscoutError(
            f"save_pretrained: no transformers class for this architecture (got {spec.kind}, "
            f"expected {' or '.join(one.kind for one in _MODELS)}); use to_model()"
        )
    weights = spec.build(seed).state_dict()
    model: PreTrainedModel
    if isinstance(spec, LlamaSpec) and _is_plain(spec):
        model = _plain_llama(spec, weights)
    else:
        model = DesignedForCausalLM(DesignedConfig(spec.to_dict()))
        model.decoder.load_state_dict(weights)
    model.eval()
    return model


def has_class(spec: ArchitectureSpec) -> bool:
    """Whether transformers has a class for an architecture; not for FlexiBERT's encoders."""
    return type(spec) in _MODELS


def save_untrained(spec: ArchitectureSpec, folder: Path, seed: int = 0) -> None:
    """Write an untrained model and its ``spec.json`` as a folder that transformers loads.

    Raises:
        LmscoutError: transformers has no class for the architecture; the folder cannot be written.
    """
    model = untrained_model(spec, seed)
    own = isinstance(model, DesignedForCausalLM)
    if own:
        names = {"AutoConfig": DesignedConfig, "AutoModelForCausalLM": DesignedForCausalLM}
        model.config.auto_map = {auto: f"{_FILE}.{one.__name__}" for auto, one in names.items()}
    check_folder(folder, f"folder {folder}", make=True)
    model.save_pretrained(folder)
    if own:
        Path(folder, f"{_FILE}.py").write_text(_CODE)
    write_file(Path(folder, SPEC), as_json(spec.to_dict()))


def _is_plain(spec: LlamaSpec) -> bool:
    sizes = set(zip(spec.heads, spec.key_value_heads, spec.inner, strict=True))
    return len(sizes) == 1 and 0 not in sizes.pop()


def _plain_llama(spec: LlamaSpec, weights: dict[str, Tensor]) -> LlamaForCausalLM:
    """A LLaMA whose blocks are alike, in transformers' own class."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=spec.vocabulary,
            hidden_size=spec.width,
            intermediate_size=spec.inner[0],
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.heads[0],
            num_key_value_heads=spec.key_value_heads[0],
            max_position_embeddings=spec.max_length,
            rms_norm_eps=spec.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
            tie_word_embeddings=spec.tied,
        )
    )
    renamed = {}
    for name, tensor in weights.items():
        for own, other in _LLAMA_NAMES:
            name = name.replace(own, other)  # noqa: PLW2901
        renamed[f"model.{name}" if name.startswith("norm.") else name] = tensor
    model.load_state_dict(renamed)
    return model


_LLAMA_NAMES = (
    ("tokens.", "model.embed_tokens."),
    ("attention_norm.", "input_layernorm."),
    ("mlp_norm.", "post_attention_layernorm."),
    ("blocks.", "model.layers."),
    ("attention.query.", "self_attn.q_proj."),
    ("attention.key.", "self_attn.k_proj."),
    ("attention.value.", "self_attn.v_proj."),
    ("attention.output.", "self_attn.o_proj."),
    *((f"mlp.{name}.", f"mlp.{name}_proj.") for name in ("gate", "up", "down")),
    ("head.", "lm_head."),
)
