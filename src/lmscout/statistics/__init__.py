"""Statistics of models: the pass, the reductions, sketches, and their cache."""

from lmscout.statistics.collect import Statistics, collect
from lmscout.statistics.deep_values import full_reading, score, score_proxies
from lmscout.statistics.reductions import OPERATIONS, chain_means, unary_means
from lmscout.statistics.single_pass import INPUT_NAMES, Batch, read_model
from lmscout.statistics.workers import Workers

__all__ = [
    "INPUT_NAMES",
    "OPERATIONS",
    "Batch",
    "Statistics",
    "Workers",
    "chain_means",
    "collect",
    "full_reading",
    "read_model",
    "score",
    "score_proxies",
    "unary_means",
]
