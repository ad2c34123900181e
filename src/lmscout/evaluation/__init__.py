"""Evaluation: a trained model's perplexity on a text, and what the model costs."""

from lmscout.evaluation.cost import (
    Speed,
    measure_speed,
    multiply_adds,
    parameter_bytes,
    parameter_count,
)
from lmscout.evaluation.loading import LoadedModel, load_model
from lmscout.evaluation.perplexity import Perplexity, perplexity
from lmscout.evaluation.protocols import PROTOCOLS, Protocol, protocol_of
from lmscout.evaluation.text import Text, read_text, same_text, shared_lines
from lmscout.evaluation.tokens import tokenize, tokenize_windows

__all__ = [
    "PROTOCOLS",
    "LoadedModel",
    "Perplexity",
    "Protocol",
    "Speed",
    "Text",
    "load_model",
    "measure_speed",
    "multiply_adds",
    "parameter_bytes",
    "parameter_count",
    "perplexity",
    "protocol_of",
    "read_text",
    "same_text",
    "shared_lines",
    "tokenize",
    "tokenize_windows",
]
