"""Evaluation: a trained model's perplexity on a text, its score on tasks, and what it costs."""

from lmscout.evaluation.cost import (
    Speed,
    measure_speed,
    multiply_adds,
    parameter_bytes,
    parameter_count,
    vocabulary_size,
)
from lmscout.evaluation.loading import (
    LoadedModel,
    devices_of,
    load_config,
    load_model,
    memory_dtype,
    unfilled_model,
)
from lmscout.evaluation.origin import Origin, model_fingerprint, read_origin
from lmscout.evaluation.perplexity import Perplexity, checked_tokens, perplexity
from lmscout.evaluation.protocols import (
    PROTOCOLS,
    Protocol,
    attention_span,
    fit_protocol,
    longest_window,
    protocol_of,
)
from lmscout.evaluation.results import Evaluation
from lmscout.evaluation.tasks import USUAL_SHOTS, TaskScore, check_tasks, score_tasks
from lmscout.evaluation.text import Text, read_text, same_text, shared_lines
from lmscout.evaluation.tokens import check_window, model_windows, tokenize, tokenize_windows

__all__ = [
    "PROTOCOLS",
    "USUAL_SHOTS",
    "Evaluation",
    "LoadedModel",
    "Origin",
    "Perplexity",
    "Protocol",
    "Speed",
    "TaskScore",
    "Text",
    "attention_span",
    "check_tasks",
    "check_window",
    "checked_tokens",
    "devices_of",
    "fit_protocol",
    "load_config",
    "load_model",
    "longest_window",
    "measure_speed",
    "memory_dtype",
    "model_fingerprint",
    "model_windows",
    "multiply_adds",
    "parameter_bytes",
    "parameter_count",
    "perplexity",
    "protocol_of",
    "read_origin",
    "read_text",
    "same_text",
    "score_tasks",
    "shared_lines",
    "tokenize",
    "tokenize_windows",
    "unfilled_model",
    "vocabulary_size",
]
