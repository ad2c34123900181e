"""Correlations of scores and quality, their intervals, and what is beyond the configuration."""

from lmscout.ranking.baselines import configuration_baselines
from lmscout.ranking.bootstrap import Agreement, Interval, agreement, spearman_difference
from lmscout.ranking.conditional import partial_spearman, top_recall, within_cell_spearman
from lmscout.ranking.correlation import (
    fisher_z,
    kendall,
    kendall_many,
    midranks,
    spearman,
    spearman_many,
)
from lmscout.ranking.linear import log_pearson, logarithm
from lmscout.ranking.random_search import equivalent_trials, expected_best_rank, true_ranks

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
