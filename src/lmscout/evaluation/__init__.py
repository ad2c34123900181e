"""Evaluation: a trained model's perplexity on a text, its score on tasks, and its cost."""

from lmscout.evaluation.checkpoint import Origin, model_fingerprint, read_origin
from lmscout.evaluation.cost import parameter_bytes, parameter_count, vocabulary_size
from lmscout.evaluation.loading import (
    LoadedModel,
    devices_of,
    dtype_named,
    load_config,
    load_model,
    memory_dtype,
    unfilled_model,
)
from lmscout.evaluation.measurement import Evaluation
from lmscout.evaluation.perplexity import (
    Perplexity,
    checked_tokens,
    fit_protocol,
    model_windows,
    perplexity,
    plain_type,
    protocol_of,
    tokenize_windows,
)
from lmscout.evaluation.text import Text, read_text, same_text

__all__ = [
    "Evaluation",
    "LoadedModel",
    "Origin",
    "Perplexity",
    "Text",
    "checked_tokens",
    "devices_of",
    "dtype_named",
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
    "tokenize_windows",
    "unfilled_model",
    "vocabulary_size",
]
