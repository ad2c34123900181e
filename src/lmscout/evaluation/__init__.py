"""Evaluation: a trained model's perplexity on a text, its score on tasks, and its cost."""

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
from lmscout.evaluation.perplexity import (
    Perplexity,
    check_window,
    checked_tokens,
    model_windows,
    perplexity,
    tokenize,
    tokenize_windows,
)
from lmscout.evaluation.protocols import (
    PROTOCOLS,
    Protocol,
    attention_span,
    fit_protocol,
    protocol_of,
)
from lmscout.evaluation.results import Evaluation
from lmscout.evaluation.task_data import questions_sha256
from lmscout.evaluation.tasks import TaskScore, check_tasks, score_tasks
from lmscout.evaluation.text import Text, read_text, same_text

__all__ = [
    "PROTOCOLS",
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
    "measure_speed",
    "memory_dtype",
    "model_fingerprint",
    "model_windows",
    "multiply_adds",
    "parameter_bytes",
    "parameter_count",
    "perplexity",
    "protocol_of",
    "questions_sha256",
    "read_origin",
    "read_text",
    "same_text",
    "score_tasks",
    "tokenize",
    "tokenize_windows",
    "unfilled_model",
    "vocabulary_size",
]
