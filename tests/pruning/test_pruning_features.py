"""Features of plans against plain counting, and the scales of the target."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmscout.pruning.features import SCALES, ImportanceMass, PlanFeatures, TargetScale
from lmscout.pruning.plan import Shape

SHAPE = Shape((2, 4), (5, 3), (100, 110), (10, 12))
SCORES = ([[3.0, 1.0], [4.0, 2.0, 1.0, 0.0]], [[5.0, 4.0, 3.0, 2.0, 1.0], [6.0, 3.0, 1.0]])


def test_features_are_what_they_are_called():
    features = PlanFeatures(SHAPE, ImportanceMass.of_scores(*SCORES))
    values = features(np.array([[1, 4, 2, 0]]))[0]
    named = dict(zip(features.names, values, strict=True))
    assert len(named) == len(values) == 6 * 2 + 3
    assert named["block00.attention.removed"] == 0.5
    assert named["block01.attention.removed"] == 0.0
    assert named["block00.mlp.removed"] == pytest.approx(0.6)
    attention, mlp = 3 + 1 + 4 + 2 + 1, 15 + 10
    assert named["block00.attention.importance"] == pytest.approx(1 / attention)
    assert named["block00.mlp.importance"] == pytest.approx((3 + 2 + 1) / mlp)
    assert named["block01.mlp.importance"] == pytest.approx(10 / mlp)
    assert named["block01.mlp.empty"] == 1
    assert named["block00.mlp.empty"] == 0
    kept = 100 + 4 * 110 + 2 * 10
    assert named["parameters.removed"] == pytest.approx(1 - kept / SHAPE.parameters)
    assert named["attention.importance"] == pytest.approx(1 / attention)
    assert named["mlp.importance"] == pytest.approx((6 + 10) / mlp)


@given(st.integers(0, 10**6))
def test_no_feature_falls_where_more_is_removed(seed):
    rng = np.random.default_rng(seed)
    more = rng.integers(0, [3, 5, 6, 4], 4)
    less = rng.integers(0, more + 1)
    features = PlanFeatures(SHAPE, ImportanceMass.of_scores(*SCORES))
    first, second = features(np.array([more, less]))
    assert (second >= first - 1e-12).all()


@settings(max_examples=50)
@given(
    name=st.sampled_from(SCALES),
    values=arrays(np.float64, 20, elements=st.floats(-0.05, 5.0)),
)
def test_scales_keep_the_order_and_lead_back(name, values):
    scale = TargetScale.of(name, values)
    assert scale.backward(scale.forward(values)) == pytest.approx(values, abs=1e-9, rel=1e-6)
    order = np.argsort(values)
    assert (np.diff(scale.forward(values)[order]) >= 0).all()


def test_wild_predictions_are_held_back():
    values = np.geomspace(0.01, 3.0, 50)
    for name in SCALES:
        wild = TargetScale.of(name, values).backward(np.array([-1e6, 1e6]))
        assert np.isfinite(wild).all()
        assert wild[0] < values.min()
        assert wild[1] > values.max()
