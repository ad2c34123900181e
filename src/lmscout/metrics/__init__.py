"""Correlations of scores and quality, their intervals, and what is beyond the configuration."""

from lmscout.metrics.bootstrap import Agreement, Interval, agreement, spearman_difference
from lmscout.metrics.conditional import (
    configuration_baselines,
    equivalent_trials,
    expected_best_rank,
    partial_spearman,
    top_recall,
    true_ranks,
    within_cell_spearman,
)
from lmscout.metrics.correlation import (
    fisher_z,
    kendall,
    kendall_many,
    log_pearson,
    logarithm,
    midranks,
    spearman,
    spearman_many,
)

__all__ = [
    "Agreement",
    "Interval",
    "agreement",
    "configuration_baselines",
    "equivalent_trials",
    "expected_best_rank",
    "fisher_z",
    "kendall",
    "kendall_many",
    "log_pearson",
    "logarithm",
    "midranks",
    "partial_spearman",
    "spearman",
    "spearman_difference",
    "spearman_many",
    "top_recall",
    "true_ranks",
    "within_cell_spearman",
]
