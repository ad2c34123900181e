"""Evaluation: a trained model's perplexity on a text, its score on tasks, and its cost."""

from lmscout.evaluation.cost import parameter_bytes, parameter_count, vocabulary_size
from lmscout.evaluation.loading import (
    LoadedModel,
    devices_of,
    load_config,
    load_model,
    memory_dtype,
    unfilled_model,
)
from lmscout.evaluation.measurement import Evaluation
from lmscout.evaluation.origin import Origin, model_fingerprint, read_origin
from lmscout.evaluation.perplexity import (
    Perplexity,
    check_window,
    checked_tokens,
    model_windows,
    perplexity,
    tokenize_windows,
)
from lmscout.evaluation.protocols import (
    attention_span,
    fit_protocol,
    plain_type,
    protocol_of,
    slides,
)
from lmscout.evaluation.text import Text, read_text, same_text

__all__ = [
    "Evaluation",
    "LoadedModel",
    "Origin",
    "Perplexity",
    "Text",
    "attention_span",
    "check_window",
    "checked_tokens",
    "devices_of",
    "fit_protocol",
    "load_config",
    "load_model",
    "memory_dtype",
    "model_fingerprint",
    "model_windows",
    "parameter_bytes",
    "parameter_count",
    "perplexity",
    "plain_type",
    "protocol_of",
    "read_origin",
    "read_text",
    "same_text",
    "slides",
    "tokenize_windows",
    "unfilled_model",
    "vocabulary_size",
]
