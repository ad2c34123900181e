"""The correction of a product for the configuration, against the regression written out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import BayesianRidge

from lmscout.discovery.combination import FEWEST, Product, correction
from lmscout.metrics import spearman
from lmscout.proxies import Expression, format_expression, parse
from lmscout.proxies.primitives import SPEC_LEAVES
from lmscout.statistics.deep_values import joined_score

NODE = parse("sum(average(act)) * max(total(head))")


def architectures(n, seed=0):
    """Depths, widths and sizes as benchmarks have them."""
    rng = np.random.default_rng(seed)
    depth = rng.integers(2, 17, n).astype(float)
    width = rng.choice([64.0, 128.0, 256.0, 512.0], n)
    return {"depth": depth, "width": width, "params": depth * width**2 * rng.uniform(8, 16, n)}


def curved_quality(spec):
    """ln perplexity with curvature: at every size there is a best shape."""
    shape = np.log(spec["width"] / spec["depth"])
    return -np.exp(6 - 0.2 * np.log(spec["params"]) + 0.05 * (shape - 3) ** 2)


def product_of(scores):
    return Product((), NODE, (scores[None],))


def noisy(spec, seed=1):
    rng = np.random.default_rng(seed)
    return spec["params"] ** 0.7 * np.exp(0.2 * rng.normal(size=len(spec["params"])))


def expected(scores, spec, quality, other_scores, other_spec):
    """Of other architectures, the logarithm of quality up to a constant, term by term."""

    def table(scores, spec):
        columns = [np.log(np.abs(scores)), *(np.log(spec[leaf]) for leaf in SPEC_LEAVES)]
        u, d, w, p = (
            (one - own.mean()) / own.std() for one, own in zip(columns, known, strict=True)
        )
        corrections = [d, w, p, d * d, d * w, d * p, w * w, w * p, p * p]
        return np.stack([u, u * d, u * w, u * p, *corrections], axis=1)

    known = [np.log(np.abs(scores)), *(np.log(spec[leaf]) for leaf in SPEC_LEAVES)]
    ridge = BayesianRidge().fit(table(scores, spec), -np.log(-quality))
    return ridge.predict(table(other_scores, other_spec))


def scored(node, scores, spec):
    leaves = {Expression(leaf): spec[leaf] for leaf in SPEC_LEAVES}
    return joined_score(node, {NODE: scores, **leaves})


@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_the_regression_that_it_says(sign):
    spec, others = architectures(60), architectures(200, seed=5)
    scores, other_scores = sign * noisy(spec), sign * noisy(others, seed=6)
    quality = curved_quality(spec)
    found = correction(product_of(scores), spec, quality)
    assert found.corrected
    wanted = expected(scores, spec, quality, other_scores, others)
    got = scored(found.node, other_scores, others)
    np.testing.assert_allclose(got - got.mean(), wanted - wanted.mean(), atol=2e-3)
    np.testing.assert_array_equal(found.searched[0], scored(found.node, scores, spec))


def test_it_ranks_unseen_architectures_better_where_quality_is_curved():
    spec, others = architectures(40), architectures(300, seed=7)
    scores, unseen = noisy(spec), noisy(others, seed=8)
    found = correction(product_of(scores), spec, curved_quality(spec))
    truth = curved_quality(others)
    reached = spearman(scored(found.node, unseen, others), truth)
    assert reached > 0.99
    assert reached > spearman(unseen, truth) + 0.015


def test_where_there_is_nothing_but_the_product_the_order_hardly_changes():
    spec = architectures(60)
    rng = np.random.default_rng(3)
    quality = np.exp(rng.normal(size=60))
    scores = quality * np.exp(0.05 * rng.normal(size=60))
    found = correction(product_of(scores), spec, quality)
    assert spearman(found.searched[0], quality) > 0.99


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(FEWEST, 60))
def test_its_text_is_the_formula_and_it_rises_with_quality(seed, n):
    spec = architectures(n, seed)
    quality = curved_quality(spec) * np.exp(0.02 * np.random.default_rng(seed).normal(size=n))
    found = correction(product_of(noisy(spec, seed)), spec, quality)
    assert parse(format_expression(found.node)) == found.node
    assert found.node.size <= NODE.size + 96
    assert spearman(found.searched[0], quality) > 0.8


def test_what_does_not_vary_has_no_part_in_it():
    spec = {**architectures(40), "width": np.full(40, 256.0)}
    found = correction(product_of(noisy(spec)), spec, curved_quality(spec))
    assert found.corrected
    assert found.node.leaves == NODE.leaves | {"depth", "params"}


def test_what_cannot_be_corrected_stays_as_it_is():
    spec = architectures(40)
    quality = curved_quality(spec)
    few = product_of(noisy(spec)[: FEWEST - 1])
    cut = {leaf: values[: FEWEST - 1] for leaf, values in spec.items()}
    assert correction(few, cut, quality[: FEWEST - 1]) is few
    signs = product_of(noisy(spec) - np.median(noisy(spec)))
    assert correction(signs, spec, quality) is signs
    long = dataclasses.replace(product_of(noisy(spec)), node=parse("+".join(["depth"] * 100)))
    assert correction(long, spec, quality) is long
