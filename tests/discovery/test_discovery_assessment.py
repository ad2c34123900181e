"""Comparison of a proxy with the configuration baselines."""

from dataclasses import replace

import numpy as np
from tiny_benchmark import tiny_benchmark

from lmscout.discovery.assessment import (
    Compared,
    assess,
    assess_baselines,
    beats,
    compare_baselines,
)

BENCHMARK = tiny_benchmark(9)
ALIKE = replace(BENCHMARK, specs=(BENCHMARK.specs[0],) * 9)


class Alone(Compared):
    def __init__(self, assessed, baselines, ahead):
        self.one, self.baselines, self.ahead = assessed, baselines, ahead

    @property
    def assessed(self):
        return self.one


def test_a_proxy_beats_baselines_where_its_correlation_is_above_all_of_theirs():
    baselines = assess_baselines(BENCHMARK)
    for scores in (BENCHMARK.quality, -BENCHMARK.quality):
        one = assess("mine", scores, BENCHMARK)
        highest = max(other.agreement.spearman.value for other in baselines)
        assert beats(one, baselines) == (one.agreement.spearman.value > max(highest, 0.0))


def test_a_configuration_that_tells_nothing_apart_is_not_beaten():
    one = assess("mine", BENCHMARK.quality, ALIKE)
    baselines, ahead = compare_baselines(BENCHMARK.quality, ALIKE)
    assert all(np.isnan(other.agreement.spearman.value) for other in baselines)
    assert beats(one, baselines) is None
    compared = Alone(one, baselines, ahead).comparison_json()
    assert compared["beats_baselines"] is None
    assert compared["ahead_of_best_baseline"]["value"] is None
